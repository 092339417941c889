"""The image tokenizer's two compiled ends: pixels -> image tokens, image tokens -> pixels.

Letters: B images, n = h * w tokens of C numbers.
"""

import functools

import jax

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.models.image_tokenizer import (
    ImageTokenizer,
    patchify,
    sample_posterior,
    scale_latents,
    unpatchify,
    unscale_latents,
)

Array = jax.Array


@functools.partial(jax.jit, static_argnames=("config", "patch"))
def encode_images(config: ImageTokenizerConfig, patch: int, params: dict, pixels: Array, key: Array) -> Array:
    """Image tokens [B, n, C] of pixels [B, height, width, 3] in [-1, 1]; `key` draws from the posterior."""
    posterior = ImageTokenizer(config).apply({"params": params}, pixels, method="encode")
    noise = jax.random.normal(key, posterior.mean.shape)
    return patchify(scale_latents(sample_posterior(posterior, noise, config), config), patch)


@functools.partial(jax.jit, static_argnames=("config", "patch", "h", "w"))
def decode_images(config: ImageTokenizerConfig, patch: int, h: int, w: int, params: dict, tokens: Array) -> Array:
    """Pixels [B, height, width, 3], near [-1, 1], of image tokens [B, h * w, C]."""
    latents = unscale_latents(unpatchify(tokens, h, w, patch), config)
    return ImageTokenizer(config).apply({"params": params}, latents, method="decode")
