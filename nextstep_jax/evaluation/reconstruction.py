"""How close reconstructions are to their originals: PSNR and SSIM.

Letters: B images [B, height, width, channels] of one kind of number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.errors import InputError

Array = jax.Array

K1, K2 = 0.01, 0.03  # they keep the ratios finite


class SsimConvention(NamedTuple):
    """What programs differ in when they say SSIM.

    Attributes:
      window: weights of a window down and across, their sum 1.
      unbiased: variances of a window divide by its number of pixels less one.
      dynamic_range: that of the values as the constants see it, for values from 0 to 1.
    """

    window: tuple[float, ...]
    unbiased: bool = False
    dynamic_range: float = 1.0

    @property
    def size(self) -> int:
        """Pixels of a window's side."""
        return len(self.window)


def _gaussian(size: int, sigma: float) -> tuple[float, ...]:
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return tuple(weights / weights.sum())


GAUSSIAN = SsimConvention(_gaussian(11, 1.5))  # Wang et al., 2004
# LlamaGen's tokenizer evaluation: scikit-image's uniform windows, told of a range of 2 for values from 0 to 1. The constants
# are four times as large, so the numbers are higher.
LLAMAGEN = SsimConvention((1 / 7,) * 7, unbiased=True, dynamic_range=2.0)


def psnr(images: Array, reconstructions: Array, low: float = -1.0, high: float = 1.0) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB, [B] float32; infinite for equal images. Possible values run from `low` to `high`."""
    x, y = _pair(images, reconstructions, low, high)
    return -10.0 * jnp.log10(jnp.square(x - y).mean((1, 2, 3)))


def ssim(
    images: Array, reconstructions: Array, low: float = -1.0, high: float = 1.0, convention: SsimConvention = GAUSSIAN
) -> Float[Array, " B"]:
    """Structural similarity, [B] float32, 1 for equal images; mean over channels and over windows inside the image.

    Possible values run from `low` to `high`.

    Raises:
      InputError: an image smaller than the convention's window.
    """
    x, y = _pair(images, reconstructions, low, high)
    _, height, width, _ = x.shape
    size = convention.size
    if min(height, width) < size:
        raise InputError(f"SSIM needs images of at least {size}x{size} pixels, found {height}x{width}")
    down, across = _window_means(height, convention), _window_means(width, convention)
    c1, c2 = ((k * convention.dynamic_range) ** 2 for k in (K1, K2))
    correction = size**2 / (size**2 - 1) if convention.unbiased else 1.0

    def local_mean(values: Array) -> Array:
        return jnp.einsum("ph,bhwc,qw->bpqc", down, values, across, precision="highest")

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = (correction * (local_mean(v * v) - mean**2) for v, mean in ((x, mean_x), (y, mean_y)))
    covariance = correction * (local_mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _pair(images: Array, reconstructions: Array, low: float, high: float) -> tuple[Array, Array]:
    """Both as float32, `low` at 0 and `high` at 1."""
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise InputError(f"images must be two of [B, height, width, channels], found {images.shape}, {reconstructions.shape}")
    x, y = ((jnp.asarray(values, jnp.float32) - low) / (high - low) for values in (images, reconstructions))
    return x, y


def _window_means(size: int, convention: SsimConvention) -> np.ndarray:
    """[size - window + 1, size] matrix: row p holds the window that starts at p."""
    starts = np.arange(size - convention.size + 1)[:, None]
    matrix = np.zeros((len(starts), size), np.float32)
    matrix[starts, starts + np.arange(convention.size)] = convention.window
    return matrix
