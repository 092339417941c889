"""The distribution of an image tokenizer's latents, and what noise in them does to reconstructions (paper Figures 6 and 7).

Letters: B images, h x w latent grid, c latent channels.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.errors import InputError
from nextstep_jax.generation.tokenizer import encode_means
from nextstep_jax.models.image_tokenizer import ImageTokenizer, perturb

Array = jax.Array
Images = Float[Array, "B height width 3"]


def distance_to_normal(values: np.ndarray) -> dict[str, float]:
    """How far numbers of any shape are from a standard normal distribution.

    Returns:
      mean, variance, skewness and excess_kurtosis (0, 1, 0, 0 for a normal distribution), and `ks`, the Kolmogorov-Smirnov
      distance: the largest difference between the two distribution functions, from 0 to 1.

    Raises:
      InputError: fewer than two numbers, or all alike.
    """
    x = np.sort(np.asarray(values, np.float64).ravel())
    if len(x) < 2 or not x[-1] > x[0]:
        raise InputError(f"a distribution needs at least two different numbers, found {len(x)} numbers")
    mean, deviation = x.mean(), x.std()
    z = (x - mean) / deviation
    below = np.asarray(jax.scipy.stats.norm.cdf(x))
    steps = np.arange(len(x) + 1) / len(x)
    ks = max(np.max(steps[1:] - below), np.max(below - steps[:-1]))
    moments = {"skewness": np.mean(z**3), "excess_kurtosis": np.mean(z**4) - 3}
    return {name: float(value) for name, value in ({"mean": mean, "variance": deviation**2} | moments | {"ks": ks}).items()}


def encode_latents(
    config: ImageTokenizerConfig, params: dict, images: Images, normalize: bool = True
) -> Float[np.ndarray, "B h w c"]:
    """Latents [B, h, w, c], scaled as the transformer sees them, of images [B, height, width, 3] in [-1, 1]: posterior means.

    Args:
      normalize: False leaves out the per-token normalization of a tokenizer that has one.
    """
    config = config if normalize else dataclasses.replace(config, normalize=False)
    return np.asarray(encode_means(config, params, jnp.asarray(images)))


def reconstruct_noisy(
    config: ImageTokenizerConfig, params: dict, images: Images, strengths: Sequence[float], seed: int = 0
) -> Float[np.ndarray, "strengths B height width 3"]:
    """Reconstructions [len(strengths), B, height, width, 3] of images [B, height, width, 3] in [-1, 1], clipped to that range.

    The noise is added where training adds it (objectives/reconstruction.py): to the encoder's normalized latents, unscaled.

    Args:
      strengths: alpha, standard deviations of the noise; each uses the same noise.
    """
    return np.stack([np.asarray(_reconstruct(config, params, jnp.asarray(images), alpha, seed)) for alpha in strengths])


@functools.partial(jax.jit, static_argnames="config")
def _reconstruct(config: ImageTokenizerConfig, params: dict, images: Array, alpha: float, seed: int) -> Array:
    tokenizer, variables = ImageTokenizer(config), {"params": params}
    posterior: Any = tokenizer.apply(variables, images, method="encode")
    noise = jax.random.normal(jax.random.key(seed), posterior.mean.shape)
    made: Any = tokenizer.apply(variables, perturb(posterior.mean, jnp.asarray(alpha), noise), method="decode")
    return jnp.clip(made, -1, 1)
