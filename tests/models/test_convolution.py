"""The written-out gradient of the convolution against automatic differentiation of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from nextstep_jax.models import convolution
from nextstep_jax.models.convolution import convolve


def plain(x, kernel, stride):
    padding = [(1, 1), (1, 1)] if stride == 1 else [(0, 1), (0, 1)]
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradients(function, x, kernel, stride):
    return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel, stride))), argnums=(0, 1))(x, kernel)


def arrays(batch, height, width, channels, out, seed=0):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((batch, height, width, channels), (3, 3, channels, out)))


def assert_gradients_agree(batch, height, width, channels, out, stride):
    x, kernel = arrays(batch, height, width, channels, out)
    if height * width > convolution._TINY_PIXELS:
        np.testing.assert_array_equal(convolve(x, kernel, stride), plain(x, kernel, stride))
    else:  # one product, whose sums have another order
        np.testing.assert_allclose(convolve(x, kernel, stride), plain(x, kernel, stride), rtol=0, atol=2e-5)
    for ours, theirs in zip(gradients(convolve, x, kernel, stride), gradients(plain, x, kernel, stride), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, np.abs(theirs).max()))


@settings(max_examples=6, deadline=None)
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2])
    )
)
def test_the_gradient_is_that_of_the_plain_convolution(sizes):
    batch, h, w, channels, out, stride = sizes
    assert_gradients_agree(batch, h * 2, w * 2, channels, out, stride)


@pytest.mark.parametrize("size", [(2, 4, 6), (1, 6, 3), (3, 5, 7)])
def test_large_images_take_the_products_with_the_same_gradient(monkeypatch, size):
    monkeypatch.setattr(convolution, "_PRODUCT_PIXELS", 1)
    monkeypatch.setattr(convolution, "_PRODUCT_CHANNELS", 1)
    monkeypatch.setattr(convolution, "_STRIP_POSITIONS", 24)
    assert_gradients_agree(*size, 4, 5, 1)


def test_the_gradient_works_inside_a_loop_in_half_precision():
    x, kernel = arrays(4, 4, 4, 3, 5)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

    def one(total, part):
        return total + gradients(convolve, part, kernel, 1)[1], None

    total, _ = lax.scan(one, jnp.zeros_like(kernel), x.reshape(2, 2, *x.shape[1:]))
    assert total.dtype == jnp.bfloat16
    expected = gradients(plain, x.astype(jnp.float32), kernel.astype(jnp.float32), 1)[1]
    np.testing.assert_allclose(total.astype(jnp.float32), expected, rtol=0, atol=0.03 * np.abs(expected).max())
