"""The image tokenizer's two compiled ends: pixels -> image tokens, image tokens -> pixels.

Letters: B images, n = h * w tokens of C numbers.
"""

import functools

import jax
import numpy as np
from jaxtyping import Float

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.models.image_tokenizer import (
    ImageTokenizer,
    patchify,
    sample_posterior,
    scale_latents,
    unpatchify,
    unscale_latents,
)
from nextstep_jax.models.tiled_decode import decode_tiled

Array = jax.Array
Images = Float[Array, "B height width 3"]

MAX_ACTIVATION_BYTES = 2**30  # bytes of one activation at the pixels' resolution, of which the decoder holds several


@functools.partial(jax.jit, static_argnames=("config", "patch"))
def encode_images(config: ImageTokenizerConfig, patch: int, params: dict, pixels: Images, key: Array) -> Float[Array, "B n C"]:
    """Image tokens [B, n, C] of pixels [B, height, width, 3] in [-1, 1]; `key` draws from the posterior."""
    posterior = ImageTokenizer(config).apply({"params": params}, pixels, method="encode")
    noise = jax.random.normal(key, posterior.mean.shape)
    return patchify(scale_latents(sample_posterior(posterior, noise, config), config), patch)


@functools.partial(jax.jit, static_argnames=("config",))
def encode_means(config: ImageTokenizerConfig, params: dict, pixels: Images) -> Float[Array, "B h w c"]:
    """Posterior means [B, h, w, c] of pixels [B, height, width, 3] in [-1, 1], scaled as the transformer sees them."""
    return scale_latents(ImageTokenizer(config).apply({"params": params}, pixels, method="encode").mean, config)


def decode_images(
    config: ImageTokenizerConfig, patch: int, h: int, w: int, params: dict, tokens: Float[Array, "B n C"]
) -> Float[Array | np.ndarray, "B height width 3"]:
    """Pixels [B, height, width, 3], near [-1, 1], of image tokens [B, h * w, C]; in strips (the same up to rounding) where an
    activation of all images would take more than MAX_ACTIVATION_BYTES bytes.
    """
    latents = _latents(config, patch, h, w, tokens)
    positions = tokens.shape[0] * (h * w) * (patch * config.downsample // config.stem_patch) ** 2
    if positions * config.channels * params["decoder"]["conv_out"]["kernel"].dtype.itemsize > MAX_ACTIVATION_BYTES:
        return decode_tiled(config, params, latents)
    return _decode(config, params, latents)


@functools.partial(jax.jit, static_argnames=("config", "patch", "h", "w"))
def _latents(config: ImageTokenizerConfig, patch: int, h: int, w: int, tokens: Array) -> Array:
    return unscale_latents(unpatchify(tokens, h, w, patch), config)


@functools.partial(jax.jit, static_argnames=("config",))
def _decode(config: ImageTokenizerConfig, params: dict, latents: Array) -> Array:
    return ImageTokenizer(config).apply({"params": params}, latents, method="decode")
