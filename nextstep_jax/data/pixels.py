"""Batches of images alone, for training the image tokenizer.

Letters: B images of a data shard.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from nextstep_jax.data import images
from nextstep_jax.data.augment import draws
from nextstep_jax.data.packing import SampleCounts
from nextstep_jax.data.prefetch import prefetch
from nextstep_jax.data.source import Source
from nextstep_jax.errors import InputError

logger = logging.getLogger(__name__)

_JUDGED_AFTER = 100  # images read before the fraction of those left out counts
_NAMED = 5  # unusable images that are named


class PixelBatch(NamedTuple):
    """pixels [B, height, width, 3] uint8, "source:key" of each image, and what became of the images read so far."""

    pixels: np.ndarray
    keys: tuple[str, ...]
    counts: SampleCounts


class PixelBatches:
    """Endless iterator of `PixelBatch` over the images of several sources, one per sample, reshuffled every epoch.

    Images are resized to cover height x width and cropped (large JPEGs are decoded at reduced size). One that cannot be read is
    left out and counted; above `max_skipped` of those read, the next batch raises instead. `set_state(get_state())` continues
    with the very next batch, whatever the number of workers. It makes the rows of one data shard; `data_shards.py` joins them.

    Args:
      batch_size: B.
      crop: "center", or "random": a part drawn anew in every epoch.
      data_shard, data_shards: this is data shard n of N; they share the images out.
      workers: reader processes; 0 reads in threads.
      max_skipped: the largest fraction of images that may be unusable.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        height: int,
        width: int,
        *,
        crop: str = "center",
        seed: int = 42,
        data_shard: int = 0,
        data_shards: int = 1,
        workers: int = 0,
        max_skipped: float = 0.01,
    ):
        if not sources or batch_size < 1:
            raise InputError(
                f"a stream of images needs a source and a batch of at least 1, found {len(sources)} and {batch_size}"
            )
        if crop not in ("center", "random"):
            raise InputError(f"crop must be center or random, found {crop!r}")
        if not 0 <= max_skipped <= 1:
            raise InputError(f"max_skipped must be in [0, 1], found {max_skipped}")
        self._batch_size, self._max_skipped, self._workers = batch_size, max_skipped, workers
        read = _Read(tuple(sources), height, width, seed if crop == "random" else None)
        order_seed = seed if seed < 2**32 else draws("shuffle", seed).getrandbits(32)  # Grain takes 32 bits
        order = grain.MapDataset.range(sum(map(len, sources))).shuffle(order_seed).repeat()[data_shard::data_shards]
        self._images = order.map_with_index(read)
        self._identities = [source.identity() for source in sources]
        self._reader: Any = None
        self._position = 0
        self._counts = SampleCounts()
        self._unusable: dict[str, None] = {}

    def __iter__(self) -> "PixelBatches":
        return self

    def __next__(self) -> PixelBatch:
        """The next batch. InputError when too many images could not be read, naming some."""
        if self._reader is None:
            self._reader = prefetch(self._images[self._position :], self._workers, threads=2, buffer=2 * self._batch_size)
        rows: list[np.ndarray] = []
        keys: list[str] = []
        while len(rows) < self._batch_size:
            pixels, text = next(self._reader)
            self._position += 1
            self._counts.read += 1
            if pixels is None:
                self._skip(text)
                continue
            rows.append(pixels)
            keys.append(text)
        return PixelBatch(np.stack(rows), tuple(keys), dataclasses.replace(self._counts))

    def _skip(self, why: str) -> None:
        counts = self._counts
        counts.skipped += 1
        if len(self._unusable) < _NAMED and why not in self._unusable:
            self._unusable[why] = None
            logger.warning("left out, because it cannot be used: %s", why)
        if counts.read >= _JUDGED_AFTER and counts.skipped > self._max_skipped * counts.read:
            raise InputError(
                f"{counts.skipped} of the {counts.read} images read cannot be used, at most {self._max_skipped:.2%} may be "
                f"left out (config.data.max_skipped): {'; '.join(self._unusable)}"
            )

    def get_state(self) -> dict[str, Any]:
        """How many images of this data shard's order have been read, and of which sources."""
        return {"next_index": self._position, "sources": self._identities}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `get_state`'s result. InputError if the sources hold other images than then."""
        if not isinstance(state, dict) or not isinstance(state.get("next_index"), int) or "sources" not in state:
            raise InputError("the saved position in the images is not one that this version wrote")
        if state["sources"] != self._identities:
            raise InputError("the sources hold other images than when the position in the data was saved; restore them")
        self.close()
        self._position = state["next_index"]

    def close(self) -> None:
        """End the readers; the next batch starts them again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Read(NamedTuple):
    """(place in the order, index) -> (pixels, "source:key"), or (None, why not); can be sent to reader processes.

    `crop_seed` is None for the center.
    """

    sources: tuple[Source, ...]
    height: int
    width: int
    crop_seed: int | None

    def __call__(self, place: int, index: int) -> tuple[np.ndarray | None, str]:
        try:
            source, index = self._find(index)
            sample = source[index]
            name = f"{source.name}:{sample.key}"
            if not sample.images:
                return None, f"{name} holds no image"
            part = sample.images[index % len(sample.images)]
            if part.is_latents:
                return None, f"{name}: stored as latents, not as pixels"
            image = images.load(part.data, name, cover=(self.height, self.width))
            at = (0.5, 0.5)
            if self.crop_seed is not None:
                draw = draws("crop", self.crop_seed, place)
                at = (draw.random(), draw.random())
            return np.asarray(images.resize_crop(image, self.height, self.width, at)), name
        except InputError as error:
            return None, str(error)

    def _find(self, index: int) -> tuple[Source, int]:
        for source in self.sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)
