"""What is written otherwise for matrix units, statistics of norms, and kernels of one byte a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.models import layers
from nextstep_jax.models.layers import Projection, apply_rope, layer_norm, rms_norm, rope_table
from nextstep_jax.models.param_layouts import quantize_kernel
from nextstep_jax.models.transformer import remat_policy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrix_units_rotate_to_the_same_bits(dtype):
    """On TPUs, forward and backward."""
    x, g = jax.random.normal(jax.random.key(0), (2, 1, 32, 3, 16)).astype(dtype)
    table = rope_table(1000 * jnp.arange(32)[None], 16, 1e6)
    cos, sin = (t[:, :, None, :] for t in table)
    expected, pull = jax.vjp(lambda x: apply_rope(x, table), x)
    found, pull_found = jax.vjp(lambda x: layers._rotate_by_product(x, cos, sin), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull_found(g)[0], pull(g)[0])
    lowered = jax.jit(apply_rope).trace(x, table)
    dots = {name: lowered.lower(lowering_platforms=(name,)).as_text().count("dot_general") for name in ("cpu", "cuda", "tpu")}
    assert dots == {"cpu": 0, "cuda": 0, "tpu": 1}


@pytest.mark.parametrize("equation, shape", [("BSD,DNH->BSNH", (16, 3, 4)), ("...I,IO->...O", (16, 12))])
@pytest.mark.parametrize("dtype, near", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_on_tpus_kernel_and_bias_get_their_gradients_from_one_product(monkeypatch, equation, shape, dtype, near):
    """The same derivatives, backward and forward, and no sum over positions beside the products."""
    projection, keys = Projection(equation, shape, len(shape) - 1, dtype), jax.random.split(jax.random.key(0), 4)
    x, of_x = jax.random.normal(keys[0], (2, 2, 40, 16))
    params = {"kernel": jax.random.normal(keys[1], shape), "bias": jax.random.normal(keys[2], shape[1:])}
    weights = jax.random.normal(keys[3], (2, 40, *shape[1:]))

    def loss(params, x):
        return jnp.sum(projection.apply({"params": params}, x).astype(jnp.float32) * weights)

    def derivatives():
        tangents = jax.tree.map(jnp.ones_like, params), of_x
        of_output = jax.jvp(lambda *a: projection.apply({"params": a[0]}, a[1]), (params, x), tangents)
        gradient = jax.grad(loss, argnums=(0, 1))
        return (of_output, gradient(params, x)), str(jax.make_jaxpr(gradient)(params, x))

    expected, plain = derivatives()
    monkeypatch.setattr(layers, "target_platform", lambda: "tpu")
    found, text = derivatives()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (one, other)), rtol=near, atol=near * 10)
    assert plain.count("reduce_sum") > text.count("reduce_sum")
    assert plain.count("dot_general") == text.count("dot_general")


def test_no_other_bias_is_taken_for_such(monkeypatch):
    """Of a kernel with two contracted axes, or one of one byte a number, beside its scales."""
    monkeypatch.setattr(layers, "_product_and_bias", None)
    monkeypatch.setattr(layers, "target_platform", lambda: "tpu")
    x, kernel, bias = jnp.ones((1, 2, 4, 8)), jax.random.normal(jax.random.key(0), (4, 8, 6)), jnp.arange(6.0)
    for small in ({"kernel": kernel}, quantize_kernel(kernel, 2)):
        found = Projection("BSNH,NHD->BSD", (4, 8, 6), 1).apply({"params": {**small, "bias": bias}}, x)
        np.testing.assert_allclose(found, jnp.broadcast_to(kernel.sum((0, 1)) + bias, found.shape), atol=0.2)
    small = quantize_kernel(kernel[0], 1) | {"bias": bias}
    found = Projection("...I,IO->...O", (8, 6), 1).apply({"params": small}, x)
    np.testing.assert_allclose(found, jnp.broadcast_to(kernel[0].sum(0) + bias, found.shape), atol=0.2)


@pytest.mark.parametrize("remat", ["full", "dots", "attention", "gate:host"])
@pytest.mark.parametrize("norm, statistics", [(lambda x: rms_norm(x, x[0], 1e-6), 1), (lambda x: layer_norm(x, 1e-6), 2)])
def test_statistics_are_kept_whatever_else_is_computed_again(remat, norm, statistics):
    x, weights = jax.random.normal(jax.random.key(0), (2, 6, 32))

    def sums(norm):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(norm(x)) * weights))
        return str(jax.make_jaxpr(gradient)(x)).count("reduce_sum")

    assert sums(jax.checkpoint(norm, policy=remat_policy(remat))) == sums(norm)
    assert sums(jax.checkpoint(norm)) == sums(norm) + statistics


def test_quantized_projection_is_near_the_exact_one():
    """Each entry is off by at most half a step of its output's scale."""
    kernel = jax.random.normal(jax.random.key(0), (4, 8, 6)) * jnp.arange(6)  # the first output is all zeros
    small = quantize_kernel(kernel, 2)
    assert small["kernel"].dtype == jnp.int8 and small["kernel_scale"].shape == (6,)
    assert np.all(np.abs(small["kernel"] * small["kernel_scale"] - kernel) <= 0.5001 * small["kernel_scale"])
    projection = Projection("BSNH,NHD->BSD", (4, 8, 6))
    x = jax.random.normal(jax.random.key(1), (2, 1, 4, 8))
    found = projection.apply({"params": small}, x)
    restored = small["kernel"].astype(jnp.float32) * small["kernel_scale"]
    np.testing.assert_allclose(found, projection.apply({"params": {"kernel": restored}}, x), rtol=1e-4, atol=1e-4)


def test_scales_are_exact_in_half_precision():
    """Over many rows the rounding of single products averages out; what is left is each output's gain."""
    kernel = jax.random.normal(jax.random.key(0), (64, 32))
    small = quantize_kernel(kernel, 1)
    x = jax.random.normal(jax.random.key(1), (1, 4096, 64)).astype(jnp.bfloat16)
    found = Projection("BSD,DF->BSF", (64, 32), dtype="bfloat16").apply({"params": small}, x)
    exact = np.asarray(x, np.float64)[0] @ (
        np.asarray(small["kernel"], np.float64) * np.asarray(small["kernel_scale"], np.float64)
    )
    gains = np.sum(np.asarray(found, np.float64)[0] * exact, axis=0) / np.sum(np.square(exact), axis=0)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(gains, 1, atol=2e-4)  # scales in bfloat16 are up to 4e-3 off


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_takes_its_statistics_in_float32(dtype):
    """Against float64 on the same numbers: nothing is lost but the rounding of the result."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 257)) * rng.uniform(0.1, 30, size=(64, 1)), dtype)
    scale = jnp.asarray(rng.uniform(0.5, 2, size=257), jnp.float32)
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale, np.float64)
    rounded = np.asarray(jnp.asarray(exact, jnp.float32).astype(dtype), np.float64)
    found = np.asarray(rms_norm(x, scale, 1e-6), np.float64)
    np.testing.assert_allclose(found, exact, rtol=2e-6 if dtype == "float32" else 2**-8)
    assert np.mean(found == rounded) > (0 if dtype == "float32" else 0.99)
