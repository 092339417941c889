"""How close reconstructions are to their originals: PSNR and SSIM.

Letters: B images [B, height, width, channels] of one kind of number.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.errors import InputError

Array = jax.Array

# Wang et al. 2004: a Gaussian window, and constants that keep the ratios finite.
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(images: Array, reconstructions: Array, low: float = -1.0, high: float = 1.0) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB, [B] float32; infinite for equal images. Possible values run from `low` to `high`."""
    x, y = _pair(images, reconstructions, low, high)
    return -10.0 * jnp.log10(jnp.square(x - y).mean((1, 2, 3)))


def ssim(images: Array, reconstructions: Array, low: float = -1.0, high: float = 1.0) -> Float[Array, " B"]:
    """Structural similarity, [B] float32, 1 for equal images; mean over channels and over windows inside the image.

    Possible values run from `low` to `high`.

    Raises:
      InputError: an image smaller than the window of 11 x 11 pixels.
    """
    x, y = _pair(images, reconstructions, low, high)
    _, height, width, _ = x.shape
    if min(height, width) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, found {height}x{width}")
    down, across = _window_means(height), _window_means(width)

    def local_mean(values: Array) -> Array:
        return jnp.einsum("ph,bhwc,qw->bpqc", down, values, across, precision="highest")

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (var_x + var_y + K2**2)
    return (luminance * structure).mean((1, 2, 3))


def _pair(images: Array, reconstructions: Array, low: float, high: float) -> tuple[Array, Array]:
    """Both as float32, `low` at 0 and `high` at 1."""
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise InputError(f"images must be two of [B, height, width, channels], found {images.shape}, {reconstructions.shape}")
    x, y = ((jnp.asarray(values, jnp.float32) - low) / (high - low) for values in (images, reconstructions))
    return x, y


def _window_means(size: int) -> np.ndarray:
    """[size - WINDOW + 1, size] matrix: row p holds the Gaussian window that starts at p."""
    window = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    starts = np.arange(size - WINDOW + 1)[:, None]
    matrix = np.zeros((len(starts), size), np.float32)
    matrix[starts, starts + np.arange(WINDOW)] = window / window.sum()
    return matrix
