"""Decoding images that are too large for the accelerator's memory: strip by strip, without seams.

Tiles decoded on their own would show, since every GroupNorm takes its statistics over the whole image. So the decoder runs
layer by layer here. Between two layers the activation of the whole image lies in host memory; the accelerator holds one
strip of rows and the rows next to it, normalizes it with the whole image's statistics and convolves it. The result is that
of `ImageTokenizer.decode` up to rounding. Only the part at the latents' own resolution runs in one piece.

Letters: B images, h x w latent grid, c latent channels; H x W x C an activation.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.models.image_tokenizer import (
    Conv,
    GroupNormSwish,
    ImageTokenizer,
    channel_statistics,
    depth_to_space,
    pool_statistics,
    upsample,
)

Array = jax.Array


class Activation(NamedTuple):
    """[B, H, W, C] values in host memory, and their `channel_statistics`."""

    values: np.ndarray
    statistics: tuple[Array, Array]


def decode_tiled(config: ImageTokenizerConfig, params: dict, latents: Array, rows: int = 8) -> np.ndarray:
    """What `ImageTokenizer(config).decode` gives for latents [B, h, w, c]: pixels [B, height, width, 3] float32.

    Args:
      params: of the image tokenizer.
      rows: a strip is at most so many rows of the latent grid (times 2 for each level's doubling).
    """
    decoder, h = params["decoder"], latents.shape[1]
    strips = h // max(n for n in range(1, min(rows, h) + 1) if h % n == 0)
    sweep = functools.partial(_sweep, config, strips)

    middle = jax.jit(lambda p, z: ImageTokenizer(config).apply({"params": p}, z, method="decode_middle"))(params, latents)
    x = Activation(np.asarray(middle), channel_statistics(middle))
    for level in reversed(range(len(config.channel_multipliers))):
        layers = decoder[f"up_{level}"]
        for b in range(config.blocks_per_level + 1):
            block = layers[f"block_{b}"]
            y = sweep({"norm": block["norm1"], "conv": block["conv1"]}, x)
            shortcut = {"shortcut": block["shortcut"]} if "shortcut" in block else {}
            x = sweep({"norm": block["norm2"], "conv": block["conv2"], **shortcut}, y, skip=x)
        if level:
            x = sweep({"upsample": layers["upsample"]}, x)
    x = sweep({"norm": decoder["norm_out"], "conv": decoder["conv_out"]}, x)
    pixels = depth_to_space(x.values, config.stem_patch)  # type: ignore[arg-type]  # reshapes NumPy, which stays on the host
    return np.asarray(pixels).astype(np.float32)


def _sweep(config: ImageTokenizerConfig, strips: int, layer: dict, x: Activation, skip: Activation | None = None) -> Activation:
    """One layer over the whole activation: norm and convolution of x, plus (a projection of) `skip`."""
    batch, height, width, _ = x.values.shape
    rows, scale = height // strips, 2 if "upsample" in layer else 1
    made: np.ndarray | None = None
    means, variances = [], []
    for strip in range(strips):
        start, stop = strip * rows, (strip + 1) * rows
        seen = np.arange(start - 1, stop + 1)
        inside = (seen >= 0) & (seen < height)
        skipped = None if skip is None else skip.values[:, start:stop]
        seen_values = x.values[:, np.clip(seen, 0, height - 1)]
        values, (mean, variance) = _strip(config, layer, seen_values, x.statistics, inside, skipped)
        if made is None:
            made = np.empty((batch, scale * height, scale * width, values.shape[-1]), values.dtype)
        made[:, scale * start : scale * stop] = values
        means.append(mean)
        variances.append(variance)
    assert made is not None, "an image has at least one strip"
    return Activation(made, pool_statistics(jnp.stack(means), jnp.stack(variances), axis=0))


@functools.partial(jax.jit, static_argnums=0)
def _strip(
    config: ImageTokenizerConfig,
    layer: dict,
    x: Array,
    statistics: tuple[Array, Array],
    inside: Array,
    skip: Array | None,
) -> tuple[Array, tuple[Array, Array]]:
    """A layer on one strip. x [B, rows + 2, W, C] has a row more on each side; `inside` [rows + 2]: the image has that row."""
    margin = 1
    if "norm" in layer:
        x = GroupNormSwish(config).apply({"params": layer["norm"]}, x, statistics)
    x = jnp.where(inside[:, None, None], x, 0)  # the image's edge is padded with zeros, after the norm
    if "upsample" in layer:
        x, margin = upsample(x), 2
    kernel = layer.get("upsample") or layer["conv"]
    y = Conv(config, kernel["bias"].shape[0]).apply({"params": kernel}, x)[:, margin:-margin]
    if skip is not None:
        if "shortcut" in layer:
            skip = nn.Dense(y.shape[-1], dtype=config.dtype).apply({"params": layer["shortcut"]}, skip)
        y = skip + y
    return y, channel_statistics(y)
