"""Rotary positions by matrix units, and kernels of one byte a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.models import layers
from nextstep_jax.models.layers import Projection, apply_rope, rms_norm, rope_table
from nextstep_jax.models.param_layouts import quantize_kernel


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
