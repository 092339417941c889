"""From images to the features that two sets of them are compared by.

Letters: n images, d features.
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data import images
from nextstep_jax.evaluation.devices import on_all_devices
from nextstep_jax.evaluation.fid.resize import resize_clean, resize_tf
from nextstep_jax.generation.tokenizer import encode_means
from nextstep_jax.models.inception import SIDE, Inception

# How images are looked at, and what the distance is then called.
MODES = {"tf": "FID", "clean": "FID (clean)", "own": "FD-own"}
CELLS = 4  # a side, over which the own features are averaged
_LATENTS = 16  # a side, of an image whose own features are taken


class Found(NamedTuple):
    """What a network says of n images.

    Attributes:
      features: float32 [n, d].
      logits: float32 [n, classes] of Inception; None for others.
    """

    features: np.ndarray
    logits: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Looks at images.

    Attributes:
      mode: see MODES.
      weights_sha256: of the network's weights.
      prepare: an image [height, width, 3] uint8 to the network's input, on the host.
      network: inputs [B, ...] to (features [B, d], logits or None).
    """

    mode: str
    weights_sha256: str
    prepare: Callable[[np.ndarray], np.ndarray]
    network: Callable[[np.ndarray], tuple[Any, Any]]

    @property
    def title(self) -> str:
        """What the Fréchet distance of these features is called."""
        return MODES[self.mode]

    def __call__(self, pictures: Iterable[np.ndarray], batch: int = 32) -> Found:
        """Look at images [height, width, 3] uint8 of any sizes, `batch` at a time; neither the batch nor the number of devices
        changes more than rounding.
        """
        features: list[Any] = []
        logits: list[Any] = []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for part in _batches(pictures, batch):
                inputs = np.stack(list(pool.map(self.prepare, part)))
                filled = np.concatenate([inputs, np.repeat(inputs[-1:], batch - len(part), axis=0)])  # one program
                some, more = jax.device_get(self.network(filled))
                features.append(some[: len(part)])
                logits.append(None if more is None else more[: len(part)])
        if not features:
            return Found(np.zeros((0, 1), np.float32), None)
        return Found(np.concatenate(features), None if logits[0] is None else np.concatenate(logits))


def inception_extractor(mode: str, params: dict, weights_sha256: str) -> Extractor:
    """FID's network with one of the modes "tf" and "clean"."""
    resize = {"tf": resize_tf, "clean": resize_clean}[mode]

    def prepare(image: np.ndarray) -> np.ndarray:
        return (resize(image, SIDE) - np.float32(128)) / np.float32(128)

    def look(params: dict, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return Inception().apply({"params": params}, pixels)

    return Extractor(mode, weights_sha256, prepare, on_all_devices(look, params))


def own_extractor(config: ImageTokenizerConfig, params: dict, weights_sha256: str) -> Extractor:
    """The latents of an image tokenizer, averaged over 4 x 4 parts of the image: d = 16 * latent channels.

    Needs no further weights. The distance compares with others of the same tokenizer alone, and with no FID.
    """
    side = _LATENTS * config.downsample

    def prepare(image: np.ndarray) -> np.ndarray:
        return images.to_float(np.asarray(images.resize_crop(Image.fromarray(image), side, side)))

    def look(params: dict, pixels: jax.Array) -> tuple[jax.Array, None]:
        means = encode_means(config, params, pixels)
        rows, cell = len(means), _LATENTS // CELLS
        parts = means.reshape(rows, CELLS, cell, CELLS, cell, means.shape[-1]).mean((2, 4))
        return parts.reshape(rows, -1).astype(jnp.float32), None

    return Extractor("own", weights_sha256, prepare, on_all_devices(look, params))


def _batches(pictures: Iterable[np.ndarray], batch: int) -> Iterator[list[np.ndarray]]:
    waiting = iter(pictures)
    while part := list(itertools.islice(waiting, batch)):
        yield part
