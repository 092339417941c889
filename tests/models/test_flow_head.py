"""The flow head: modulations computed beforehand give the velocity of the plain call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.config import FlowHeadConfig, NextStepConfig, preset
from nextstep_jax.models import layers as model_layers
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
    """A model with a map head as it begins, and one that is somewhere else."""
    config = dataclasses.replace(tiny_config, map_head=True)
    fresh = init_params(config, jax.random.key(3))["map_head"]
    moved = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(4), x.shape), fresh)
    return config, tiny_params | {"map_head": fresh}, tiny_params | {"map_head": moved}


def _jumps(config, draws=1):
    """Points [3 * draws, C] with two velocities, times [3] and [3], conditions [3, D] twice, and guidance [3]."""
    sizes = (config.token_channels,) * 3, (config.transformer.width,) * 2
    points = [jax.random.normal(jax.random.key(i), (3 * draws, width)) for i, width in enumerate(sizes[0])]
    conditions = [jax.random.normal(jax.random.key(9 + i), (3, width)) for i, width in enumerate(sizes[1])]
    s, t = np.array([0.0, 0.2, 0.7], np.float32), np.array([1.0, 0.4, 0.9], np.float32)
    return points, (s, t), conditions, np.array([1.0, 3.0, 8.0], np.float32)


def apply(config):
    return jax.jit(NextStep(config).apply, static_argnames="method")


def test_a_fresh_map_head_takes_straight_steps(map_head):
    config, params, _ = map_head
    points, times, conditions, w = _jumps(config)
    found = apply(config)({"params": params}, *points, *times, *conditions, w, method="acceleration")
    np.testing.assert_array_equal(found, np.zeros_like(found))


def test_an_acceleration_depends_on_all_it_is_told(map_head):
    config, _, params = map_head
    points, (s, t), conditions, w = _jumps(config)

    model = apply(config)

    def of(*arguments):
        return np.asarray(model({"params": params}, *arguments, method="acceleration"))

    arguments = [*points, s, t, *conditions, w]
    found = of(*arguments)
    for i, argument in enumerate(arguments):
        changed = of(*arguments[:i], argument + 0.1, *arguments[i + 1 :])
        assert np.abs(changed - found)[1:].max(-1).min() > 1e-5, i
    # Without guidance the unconditional state has no effect.
    other = of(*points, s, t, conditions[0], 2 * conditions[1], w)
    np.testing.assert_array_equal(other[0], found[0])


def test_points_share_the_times_and_conditions_of_their_token(map_head):
    config, _, params = map_head
    points, times, conditions, w = _jumps(config, draws=2)
    model, variables = apply(config), {"params": params}
    each = [np.repeat(values, 2, axis=0) for values in (*times, *conditions, w)]
    found = model(variables, *points, *times, *conditions, w, method="acceleration")
    np.testing.assert_allclose(found, model(variables, *points, *each, method="acceleration"), atol=2e-5)
    found = model(variables, points[0], times[0], conditions[0], method="velocity")
    expected = model(variables, points[0], each[0], each[2], method="velocity")
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_modulations_computed_beforehand_give_the_acceleration(map_head):
    config, _, params = map_head
    points, (s, t), conditions, w = _jumps(config)
    model, variables = apply(config), {"params": params}
    embedded = model(variables, s, t, method="embed_jumps")
    table = model(variables, embedded, *conditions, w, method="jump_modulations")
    for i in range(3):
        now = jax.tree.map(lambda leaf, i=i: leaf[i], table)
        jump = (np.full(3, s[i]), np.full(3, t[i]))
        expected = model(variables, *points, *jump, *conditions, w, method="acceleration")
        np.testing.assert_allclose(model(variables, *points, now, method="acceleration_at"), expected, 2e-5, 2e-5)


def test_rates_of_jumps_have_the_same_gradients_on_tpus(map_head, monkeypatch):
    """There a projection has a derivative of its own, which is taken forward and then backward."""
    config, _, params = map_head
    points, (s, t), conditions, w = _jumps(config)
    model = NextStep(config.with_transformer(scan_layers=True, remat="full"))

    def loss(params):
        def arrive(t):
            return model.apply({"params": params}, *points, s, t, *conditions, w, method="acceleration")

        return jnp.sum(jnp.square(jax.jvp(arrive, (jnp.asarray(t),), (jnp.ones_like(t),))[1]))

    gradient, stacked = jax.grad(loss), stack_layers(params)
    expected = gradient(stacked)["map_head"]
    monkeypatch.setattr(model_layers, "target_platform", lambda: "tpu")
    found = gradient(stacked)["map_head"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected["blocks"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def abstract_params(config: NextStepConfig) -> dict:
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
