"""The analytic FLOP counts, against parameter counts and against the compiler's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.batch import Batch
from nextstep_jax.config import ImageTokenizerConfig, preset
from nextstep_jax.models.image_tokenizer import ImageTokenizer
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.training import flops


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_work_of_packed_rows_counts_what_is_visible():
    """Two samples of 2 and 3 positions and one of padding: 1+2 and 1+2+3 pairs."""
    segment_ids = np.array([[1, 1, 2, 2, 2, 0]])
    batch = Batch(
        text_ids=np.zeros((1, 6), np.int32),
        image_tokens=np.zeros((1, 6, 4), np.float32),
        is_image=np.array([[0, 0, 0, 1, 1, 0]], bool),
        positions=np.array([[0, 1, 0, 1, 2, 0]]),
        segment_ids=segment_ids,
        text_weight=np.array([[0, 1, 0, 0, 0, 0]], np.float32),
        image_weight=np.array([[0, 0, 0, 1, 0.5, 0]], np.float32),
    )
    assert jax.tree.map(float, flops.work_of(batch)) == flops.Work(5, 9, 2, 1, 2)


def test_a_14b_step_can_be_counted_inside_a_program():
    rows = jnp.ones((1, 8), jnp.int32)
    batch = Batch(rows, jnp.zeros((1, 8, 64)), rows > 0, rows, rows, *jnp.ones((2, 1, 8)))
    counted = jax.jit(lambda batch: flops.multitask_flops(preset("14b"), flops.work_of(batch)))(batch)
    assert counted == pytest.approx(float(flops.multitask_flops(preset("14b"), flops.Work(8, 16, 8, 8, 8))))


def test_full_rows():
    assert flops.full_row_work(1000, 100, 60) == flops.Work(1000, 10 * 5050, 600, 400, 600)


def test_a_14b_step_is_six_flops_a_parameter_and_token():
    """With one text target a token, and attention over short samples, products with the weights are nearly everything."""
    config = preset("14b")
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    products = size(params["decoder"]) + size(params["lm_head"])
    tokens = 16384
    found = flops.multitask_flops(config, flops.Work(tokens, tokens, 0, tokens, 0))
    assert found == pytest.approx(6 * products * tokens, rel=1e-3)


def test_the_flow_head_costs_six_flops_a_parameter_and_draw():
    config = preset("14b")
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))["flow_head"]
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    per_token = params["condition"]["kernel"].size
    found = flops.flow_head_forward(config.flow_head, config.token_channels, config.transformer.width, 10)
    assert found == 2 * 10 * (per_token + config.flow_head.batch_mul * (matrices - per_token))


def test_the_transformer_count_agrees_with_the_compiler():
    """The compiler also counts masked pairs, norms and the softmax."""
    config = preset("tiny").with_transformer(layers=2)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    rows, length = 2, 64
    x = jax.ShapeDtypeStruct((rows, length, config.transformer.width), jnp.float32)
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def decode(params, x, positions, segments):
        return NextStep(config).apply({"params": params}, x, positions, segments, method=lambda m, *a: m.decoder(*a))

    compiler = jax.jit(decode).lower(params, x, ids, ids).cost_analysis()["flops"]
    ours = flops.transformer_forward(config.transformer, flops.Work(rows * length, rows * length**2, 0, 0, 0))
    assert ours < compiler < 1.35 * ours


@pytest.mark.parametrize("stem, multipliers, blocks", [(4, (1, 1), 1), (1, (1, 2), 2)])
def test_the_tokenizer_count_agrees_with_the_compiler(stem, multipliers, blocks):
    config = ImageTokenizerConfig(channels=64, channel_multipliers=multipliers, blocks_per_level=blocks, stem_patch=stem)
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = ImageTokenizer(config)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)
    compiler = jax.jit(model.apply).lower(params, pixels).cost_analysis()["flops"]
    ours = flops.reconstruction_flops(config, 64, 64) / 3
    assert 0.85 * ours < compiler < 1.25 * ours  # it leaves out products with padding, and adds the norms


def test_unknown_devices_have_no_peak():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    assert flops.peak_flops(Device("cpu")) is None
    assert flops.peak_flops(Device("TPU v5 lite")) == 197e12
    assert flops.peak_flops(Device("TPU v5p")) == 459e12
    assert flops.peak_flops(Device("TPU7x")) == 2307e12 / 2  # a chip is two devices
    assert flops.peak_flops(Device("NVIDIA H200")) == 989e12
