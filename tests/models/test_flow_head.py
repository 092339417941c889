"""The flow head: modulations computed beforehand give the velocity of the plain call."""

import dataclasses

import jax
import numpy as np
import pytest

from nextstep_jax.config import FlowHeadConfig, NextStepConfig, preset
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.models.param_layouts import stack_layers


def test_velocity_at_equals_velocity(tiny_config, tiny_params):
    model, variables = NextStep(tiny_config), {"params": tiny_params}
    x = jax.random.normal(jax.random.key(0), (3, tiny_config.token_channels))
    condition = jax.random.normal(jax.random.key(1), (3, tiny_config.transformer.width))
    times = np.array([0.0, 0.3, 0.9, 1.0], np.float32)
    embedded = model.apply(variables, times, method="embed_times")
    table = model.apply(variables, embedded, condition, method="modulations")
    for i, t in enumerate(times):
        now = jax.tree.map(lambda leaf, i=i: leaf[i], table)
        expected = model.apply(variables, x, np.full(3, t), condition, method="velocity")
        np.testing.assert_allclose(model.apply(variables, x, now, method="velocity_at"), expected, atol=2e-6)


def test_scanned_head_equals_unrolled(tiny_config, tiny_params):
    scanned = NextStep(tiny_config.with_transformer(scan_layers=True, remat="full"))
    x = jax.random.normal(jax.random.key(0), (5, tiny_config.token_channels))
    condition = jax.random.normal(jax.random.key(1), (5, tiny_config.transformer.width))
    t = np.linspace(0, 1, 5, dtype=np.float32)
    ours = scanned.apply({"params": stack_layers(tiny_params)}, x, t, condition, method="velocity")
    plain = NextStep(tiny_config).apply({"params": tiny_params}, x, t, condition, method="velocity")
    np.testing.assert_allclose(ours, plain, atol=2e-6)


def test_paper_sizes():
    """Table 6: 40M, 157M and 528M parameters, for a 14B transformer."""
    sizes = {}
    for width, layers in ((1024, 6), (1536, 12), (2048, 24)):
        config = NextStepConfig(flow_head=FlowHeadConfig(width, layers))
        sizes[width] = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)["flow_head"]))
    assert sizes[1536] == 157_228_096
    assert round(sizes[1024] / 1e6) in range(38, 43) and round(sizes[2048] / 1e6) in range(520, 535)


def test_preset_14b_has_the_released_number_of_parameters():
    params = abstract_params(preset("14b"))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == 14_953_814_080


@pytest.fixture(scope="module")
def map_head(tiny_config, tiny_params):
    """A model whose map head is a copy of its flow head, with the additions away from zero in `trained`."""
    config = dataclasses.replace(tiny_config, map_head=True)
    fresh = init_params(config, jax.random.key(3))["map_head"]
    added = {name: fresh[name] for name in ("duration_embed", "guidance_embed", "unconditional")}
    begin = tiny_params | {"map_head": tiny_params["flow_head"] | added}
    moved = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(4), x.shape), added)
    return config, begin, tiny_params | {"map_head": tiny_params["flow_head"] | moved}


def _points(config):
    x, condition, unconditional = (
        jax.random.normal(jax.random.key(i), (3, width))
        for i, width in enumerate((config.token_channels, *[config.transformer.width] * 2))
    )
    return x, np.array([0.0, 0.2, 0.7], np.float32), np.array([1.0, 0.2, 0.9], np.float32), condition, unconditional


def test_a_copied_head_begins_as_the_velocity_whatever_the_second_time(map_head):
    config, params, trained = map_head
    x, s, t, condition, unconditional = _points(config)
    model, w = NextStep(config), np.array([1.0, 3.0, 8.0], np.float32)
    expected = model.apply({"params": params}, x, s, condition, method="velocity")
    found = model.apply({"params": params}, x, s, t, condition, unconditional, w, method="average_velocity")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    later = model.apply({"params": trained}, x, s, t, condition, unconditional, w, method="average_velocity")
    for changed in ((x, s, t + 0.1, condition, unconditional, w), (x, s, t, condition, unconditional, w + 1)):
        other = model.apply({"params": trained}, *changed, method="average_velocity")
        assert np.abs(other - later).max(-1).min() > 1e-4
    # Without guidance the unconditional state has no effect.
    other = model.apply({"params": trained}, x, s, t, condition, 2 * unconditional, w, method="average_velocity")
    np.testing.assert_array_equal(other[0], later[0])
    assert np.abs(other - later)[1:].max(-1).min() > 1e-4


def test_modulations_computed_beforehand_give_the_average_velocity(map_head):
    config, _, params = map_head
    x, s, t, condition, unconditional = _points(config)
    model, variables, w = NextStep(config), {"params": params}, np.array([1.0, 3.0, 8.0], np.float32)
    embedded = model.apply(variables, s, t, method="embed_durations")
    table = model.apply(variables, embedded, condition, unconditional, w, method="map_modulations")
    for i in range(3):
        now = jax.tree.map(lambda leaf, i=i: leaf[i], table)
        jump = (x, np.full(3, s[i]), np.full(3, t[i]), condition, unconditional, w)
        expected = model.apply(variables, *jump, method="average_velocity")
        np.testing.assert_allclose(model.apply(variables, x, now, method="average_velocity_at"), expected, 2e-6, 2e-6)


def abstract_params(config: NextStepConfig) -> dict:
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
