"""Batches of images alone, for training the image tokenizer.

Letters: B images of a data shard.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from nextstep_jax.data import images
from nextstep_jax.data.source import Source
from nextstep_jax.errors import InputError

_FIRST_REPORT = 100  # images read before the fraction of unreadable ones is judged


class PixelBatch(NamedTuple):
    """pixels [B, height, width, 3] uint8, and "source:key" of each image."""

    pixels: np.ndarray
    keys: tuple[str, ...]


class PixelBatches:
    """Endless iterator of `PixelBatch` over the images of several sources, one per sample, reshuffled every epoch.

    Images are resized to cover height x width and cropped in the middle (large JPEGs are decoded at reduced size). An
    unreadable one is left out and counted; if more than a fraction `max_bad_fraction` are, the next batch raises instead.
    `set_state(get_state())` continues with the very next batch, whatever the number of workers. It makes the rows of one data
    shard; `data_shards.py` joins them.

    Args:
      batch_size: B.
      data_shard, data_shards: this is data shard n of N; they share the images out.
      workers: reader processes; 0 reads in threads.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        height: int,
        width: int,
        *,
        seed: int = 42,
        data_shard: int = 0,
        data_shards: int = 1,
        workers: int = 0,
        max_bad_fraction: float = 0.01,
    ):
        if not sources or batch_size < 1:
            raise InputError(
                f"a stream of images needs a source and a batch of at least 1, found {len(sources)} and {batch_size}"
            )
        self._batch_size, self._max_bad_fraction, self._workers = batch_size, max_bad_fraction, workers
        parts = [grain.MapDataset.range(len(source)).map(_Read(source, height, width)) for source in sources]
        self._images = grain.MapDataset.concatenate(parts).shuffle(seed).repeat()[data_shard::data_shards]
        self._reader = None
        self._position = 0
        self._read = 0
        self._bad: list[str] = []

    def __iter__(self) -> "PixelBatches":
        return self

    def __next__(self) -> PixelBatch:
        """The next batch. InputError when too many images could not be read, quoting the latest error."""
        if self._reader is None:
            self._reader = self._read_ahead()
        rows, keys = [], []
        while len(rows) < self._batch_size:
            pixels, text = next(self._reader)
            self._position += 1
            self._read += 1
            if pixels is None:
                self._bad.append(text)
                if self._read >= _FIRST_REPORT and len(self._bad) > self._max_bad_fraction * self._read:
                    raise InputError(f"{len(self._bad)} of {self._read} images cannot be used, the latest: {text}")
                continue
            rows.append(pixels)
            keys.append(text)
        return PixelBatch(np.stack(rows), tuple(keys))

    def _read_ahead(self):
        # Each of n readers takes every n-th image, and none is left out before this point, so the order is that of one reader.
        rest = self._images[self._position :]
        # Without processes, threads: decoding goes on while the device computes.
        stream = rest.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * self._batch_size))
        if self._workers:
            processes = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._batch_size)
            stream = stream.mp_prefetch(processes)
        return iter(stream)

    def get_state(self) -> dict[str, Any]:
        """How many images of this data shard have been read."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `get_state`'s result."""
        if not isinstance(state, dict) or not isinstance(state.get("next_index"), int):
            raise InputError(f"the saved data state is {state!r}, expected one that this version wrote")
        self.close()
        self._position = state["next_index"]

    def close(self) -> None:
        """Stop the readers; the next batch restarts them."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Read(NamedTuple):
    """index -> (pixels, "source:key"), or (None, error message); picklable, for reader processes."""

    source: Source
    height: int
    width: int

    def __call__(self, index: int) -> tuple[np.ndarray | None, str]:
        try:
            sample = self.source[index]
            parts = sample.images
            if not parts:
                return None, f"{self.source.name}:{sample.key} holds no image"
            name = f"{self.source.name}:{sample.key}"
            image = images.load(parts[index % len(parts)].data, name, cover=(self.height, self.width))
            return np.asarray(images.resize_crop(image, self.height, self.width)), name
        except InputError as error:
            return None, str(error)
