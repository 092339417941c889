"""The flow head: modulations computed beforehand give the velocity of the plain call."""

import jax
import numpy as np

from nextstep_jax.config import FlowHeadConfig, NextStepConfig, preset
from nextstep_jax.models.nextstep import NextStep
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


def abstract_params(config: NextStepConfig) -> dict:
    from nextstep_jax.models.nextstep import init_params

    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
