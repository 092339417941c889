"""3x3 convolutions whose weight gradient is also quick on CPUs.

XLA's CPU compiler turns that gradient into a convolution with the batch as its channels and the output's gradient as its
window. From 64x64 pixels and 64 channels on that takes two to three times as long as the matrix products it stands for, and
inside a loop (gradient accumulation) it falls into a path fifty times slower at any size. So on CPUs, and only there, the
gradient is written out; which of the two is compiled follows from the platform that the program is lowered for.

Images of two by two pixels (an encoder's tiles at their coarsest) are one matrix product: nearly every tap falls beside them,
and a convolution takes five times as long on a CPU.

Letters: B images, H x W pixels, I input and O output channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

Array = jax.Array

_TINY_PIXELS = 4  # of an image that is convolved as one product
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# From here on sums of matrix products are quicker than one convolution (measured on 2 cores); a strip's rows stay in cache.
_PRODUCT_PIXELS, _PRODUCT_CHANNELS, _STRIP_POSITIONS = 64 * 64, 64, 4096


def convolve(x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I O"], stride: int = 1) -> Float[Array, "B h w O"]:
    """x [B, H, W, I] with kernel [3, 3, I, O] -> [B, H/stride, W/stride, O].

    Stride 1 pads every edge with zeros, stride 2 the bottom and the right one (H and W even), as the released VAE does.
    """
    if x.shape[1] * x.shape[2] <= _TINY_PIXELS:
        return _one_product(x, kernel, stride)
    return _convolve(x, kernel, stride)


def _one_product(x: Array, kernel: Array, stride: int) -> Array:
    """The same, as the nine shifted images side by side [B, h, w, 9 * I] times the kernel as a matrix."""
    padding = _padding(stride)
    h, w = x.shape[1] // stride, x.shape[2] // stride
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ends = (1 + stride * (h - 1), 1 + stride * (w - 1))
    shifted = [x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(3) for j in range(3)]
    return jnp.einsum("bhwi,io->bhwo", jnp.concatenate(shifted, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    return _plain(x, kernel, stride)


def _plain(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), _padding(stride), dimension_numbers=_LAYOUT)


def _padding(stride: int) -> tuple[tuple[int, int], ...]:
    return ((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1))


def _forward(x: Array, kernel: Array, stride: int):
    return _plain(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def default(x: Array, g: Array) -> Array:
        return jax.vjp(lambda kernel: _plain(x, kernel, stride), kernel)[1](g)[0]

    cpu = functools.partial(_weight_gradient, stride=stride)
    (of_x,) = jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](g)
    return of_x, lax.platform_dependent(x, g, cpu=cpu, default=default)


_convolve.defvjp(_forward, _backward)


def _weight_gradient(x: Array, g: Array, stride: int) -> Array:
    """The kernel's gradient [3, 3, I, O], from input x [B, H, W, I] and the output's gradient g [B, H/stride, W/stride, O]."""
    _, height, width, channels = x.shape
    if stride == 1 and height * width >= _PRODUCT_PIXELS and min(channels, g.shape[-1]) >= _PRODUCT_CHANNELS:
        return _by_products(x, g)
    return _by_convolution(x, g, stride)


def _by_convolution(x: Array, g: Array, stride: int) -> Array:
    """Convolve [I, H, W, B] with the window [h, w, B, O]; the barrier keeps the transposes out of the convolution."""
    x, g = lax.optimization_barrier((x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)))
    taps = lax.conv_general_dilated(x, g, (1, 1), _padding(stride), rhs_dilation=(stride, stride), dimension_numbers=_LAYOUT)
    return taps.transpose(1, 2, 0, 3)


def _by_products(x: Array, g: Array) -> Array:
    """For each of the nine shifts [positions, I]^T [positions, O], summed over strips of rows."""
    batch, height, width, channels = x.shape
    out = g.shape[-1]
    rows = max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or batch * n * width <= _STRIP_POSITIONS))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_strip(total: Array, strip: Array) -> tuple[Array, None]:
        seen = lax.dynamic_slice_in_dim(padded, strip * rows, rows + 2, axis=1)
        given = lax.dynamic_slice_in_dim(g, strip * rows, rows, axis=1).reshape(-1, out)
        shifted = (seen[:, i : i + rows, j : j + width].reshape(-1, channels) for i in range(3) for j in range(3))
        taps = [jnp.dot(x.T, given, preferred_element_type=jnp.float32) for x in shifted]
        return total + jnp.stack(taps).reshape(total.shape), None

    total = jnp.zeros((3, 3, channels, out), jnp.float32)
    return lax.scan(add_strip, total, jnp.arange(height // rows))[0].astype(g.dtype)
