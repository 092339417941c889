"""The colors of an image token before it is decoded: a linear map from its numbers to 2x2 pixels.

The latents of a VAE carry the local color almost linearly, so least squares over a few hundred tokens of simple images give a
preview that costs a matrix product. Letters: C channels of a token, n tokens.
"""

import contextlib
import hashlib
import os
import pathlib
import tempfile

import jax
import numpy as np

from nextstep_jax.data.images import to_float
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.tokenizer import encode_images

_IMAGES, _BATCH, _SIDE = 48, 8, 4  # images, at once, and their sides in tokens


def token_colors(weights: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens [n, C] to [n, 12] uint8: red, green and blue of their 2x2 quarters in reading order."""
    levels = tokens @ weights[:-1] + weights[-1]
    return np.round(255 * np.clip(levels / 2 + 0.5, 0, 1)).astype(np.uint8)


def preview_weights(pipeline: Pipeline, cache: pathlib.Path | None = None) -> np.ndarray:
    """The map [C + 1, 12] of a pipeline's image tokenizer; kept in the folder `cache` by the tokenizer's digest."""
    config, params = pipeline.image_tokenizer
    digest = hashlib.sha256(repr(config).encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    shape = (pipeline.config.token_channels + 1, 12)
    file = cache / f"preview-{digest.hexdigest()[:32]}.npy" if cache is not None else None
    if file is not None and file.is_file():
        try:
            weights = np.load(file, allow_pickle=False)
            if weights.shape == shape and weights.dtype == np.float32 and np.isfinite(weights).all():
                return weights
        except (OSError, ValueError):
            pass  # another program's file, or one cut short: computed anew
    weights = _fit(pipeline)
    if file is not None:
        _write(file, weights)
    return weights


def _fit(pipeline: Pipeline) -> np.ndarray:
    config, params = pipeline.image_tokenizer
    side = pipeline.token_pixels
    pixels = np.stack([_simple_image(np.random.default_rng(i), _SIDE * side) for i in range(_IMAGES)])
    tokens = [
        np.asarray(encode_images(config, pipeline.config.patch, params, to_float(batch), jax.random.key(0)))
        for batch in np.split(pixels, _IMAGES // _BATCH)
    ]
    inputs = np.concatenate(tokens).reshape(_IMAGES * _SIDE**2, -1)
    quarters = to_float(pixels).reshape(_IMAGES, _SIDE, 2, side // 2, _SIDE, 2, side // 2, 3).mean((3, 6))
    targets = quarters.transpose(0, 1, 3, 2, 4, 5).reshape(len(inputs), 12)
    design = np.concatenate([inputs, np.ones((len(inputs), 1), np.float32)], axis=1)
    return np.linalg.lstsq(design, targets, rcond=1e-3)[0].astype(np.float32)


def _simple_image(rng: np.random.Generator, side: int) -> np.ndarray:
    """[side, side, 3] uint8: a gradient with a few flat rectangles and discs on it."""
    y, x = np.mgrid[:side, :side] / side
    corners = rng.uniform(0, 255, (3, 3))
    image = corners[0] * (1 - x[..., None]) + corners[1] * x[..., None] * (1 - y[..., None]) + corners[2] * (x * y)[..., None]
    for _ in range(rng.integers(1, 5)):
        a, b, radius = rng.uniform(0, 1, 3) * (1, 1, 0.5)
        inside = (np.hypot(x - a, y - b) < radius) if rng.random() < 0.5 else np.maximum(abs(x - a), abs(y - b)) < radius
        image[inside] = rng.uniform(0, 255, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def _write(file: pathlib.Path, weights: np.ndarray) -> None:
    """Whole or not at all; a folder that cannot be written to costs the next start a second."""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            np.save(part, weights)
        os.replace(part.name, file)
