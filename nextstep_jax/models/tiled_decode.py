"""Decoding images too large for the accelerator's memory, strip by strip, without seams.

Tiles decoded on their own would show: every GroupNorm takes its statistics over the whole image. So here the decoder runs layer
by layer. Between two convolutions the activation of the whole image lies in host memory; the accelerator holds one strip
of rows and its two neighbouring rows at a time, normalizes it with the whole image's statistics and convolves it. The
result is `decode`'s up to rounding. Only the layers before the first level run at once (the latent's resolution).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.models.image_tokenizer import Conv, ImageTokenizer, NormSwish, depth_to_space, group_statistics, upsample

Array = jax.Array


def decode_tiled(config: ImageTokenizerConfig, params: dict, latents: Array, rows: int = 8) -> np.ndarray:
    """What `ImageTokenizer(config).decode` gives for latents [B, h, w, c]: pixels [B, height, width, 3] float32.

    Args:
      params: of the image tokenizer.
      rows: a strip is at most this many rows of latents, and the same share of larger activations.
    """
    decoder = params["decoder"]
    h = latents.shape[1]
    strips = h // max(n for n in range(1, min(rows, h) + 1) if h % n == 0)
    x = np.asarray(_middle(config, params, latents))
    sweep = functools.partial(_sweep, config, strips)
    for level in reversed(range(len(config.channel_multipliers))):
        layers = decoder[f"up_{level}"]
        for b in range(config.blocks_per_level + 1):
            block = layers[f"block_{b}"]
            y = sweep(x, {"norm": block["norm1"], "conv": block["conv1"]})
            x = sweep(y, {"norm": block["norm2"], "conv": block["conv2"], "shortcut": block.get("shortcut", {})}, x)
        if level:
            x = sweep(x, {"conv": layers["upsample"]})
    x = sweep(x, {"norm": decoder["norm_out"], "conv": decoder["conv_out"]})
    return np.asarray(depth_to_space(x, config.stem_patch)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _middle(config: ImageTokenizerConfig, params: dict, latents: Array) -> Array:
    return ImageTokenizer(config).apply({"params": params}, latents, method="decode_middle")
