"""From a dataset of images to one of latents, so that training need not run the image tokenizer."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nextstep_jax.data import images, records, shard_job, shards
from nextstep_jax.data.augment import draws
from nextstep_jax.errors import InputError
from nextstep_jax.progress import progress_bar

# [B, height, width, 3] float32 in [-1, 1] -> [B, h, w, c] latents as `patchify` takes them.
EncodeFn = Callable[[np.ndarray], np.ndarray]


def encode(
    directory: str | os.PathLike,
    encode_fn: EncodeFn,
    out: str | os.PathLike,
    *,
    area: int = 256,
    square: bool = False,
    keep_size: bool = False,
    crop: str = "center",
    batch: int = 8,
    dtype: str = "bfloat16",
    encoder: Mapping[str, Any] | None = None,
    threads: int = 2,
    progress: bool = False,
) -> dict[str, Any]:
    """Resize and crop every image of a dataset to its bucket, encode it, and write the dataset anew with latents.

    Images are decoded in threads and encoded in batches of equal sizes; a last, smaller batch is filled up, so that
    `encode_fn` sees at most one shape per bucket. Texts and everything else stay. Resumable like `build`.

    Args:
      area: side of the square whose area the buckets have, in pixels.
      square: that square is the only bucket, as in the paper's stage 1.
      keep_size: no buckets: every image stays as it is, and has sides that are multiples of 16 pixels.
      crop: which part of an image is kept: its "center", or one drawn at "random".
      batch: images a call.
      dtype: of the stored latents.
      encoder: what identifies `encode_fn` (JSON values); noted in the index, and another may not go on with the same
        folder.

    Returns:
      The new index's counts: samples, images.

    Raises:
      InputError: naming a wrong option, a dataset that holds latents already, or what `encode_fn` returned instead of
        latents.
      DamagedDataError: naming a damaged shard or image.
    """
    if dtype not in records.LATENT_DTYPES:
        raise InputError(f"dtype must be one of {', '.join(records.LATENT_DTYPES)}, found {dtype!r}")
    if batch < 1 or threads < 1:
        raise InputError(f"batch and threads must be at least 1, found {batch} and {threads}")
    if crop not in ("center", "random"):
        raise InputError(f"crop must be center or random, found {crop!r}")
    if keep_size and square:
        raise InputError("keep_size and square cannot both be asked for")
    images.buckets(area)
    source = shards.ArrayRecordSource(directory)
    if source.index["latents"] is not None:
        raise InputError(f"{directory}: holds latents already")
    latents = {**({"keep_size": True} if keep_size else {"area": area}), "dtype": dtype, **(encoder or {})}
    latents |= ({"square": True} if square else {}) | ({"crop": crop} if crop != "center" else {})
    fit = _as_it_is if keep_size else functools.partial(_pixels, area=area, square=square, crop=crop)
    plan = {"source": source.name, "samples": len(source), "latents": latents}
    done, start = [], 0
    bar = progress_bar(source.name, "sample", len(source), progress)
    with shard_job.locked(out, plan) as out, concurrent.futures.ThreadPoolExecutor(threads) as pool, bar:
        for number, shard in enumerate(source.index["shards"]):
            shards.verify_shard(directory, shard)
            indices = range(start, start + shard.samples)
            samples = _with_pixels(source, indices, fit, pool, ahead=2 * threads)
            made_from = shard_job.digest(shard.sha256, latents)
            done.append(shard_job.make_shard(out, number, made_from, _encoded(samples, encode_fn, batch, dtype)))
            start = indices.stop
            bar.update(shard.samples)
        shard_job.finish(out, source.name, done, latents)
    return {"samples": len(source), "images": sum(entry.images for entry in done)}


def _with_pixels(
    source: shards.ArrayRecordSource,
    indices: range,
    fit: Callable[[records.ImagePart, str, tuple[int, int]], np.ndarray],
    pool: concurrent.futures.Executor,
    ahead: int,
) -> Iterator[tuple[records.Sample, list[np.ndarray]]]:
    """Samples in order, each with its images brought to their sizes, read `ahead` in threads."""

    def read(index: int) -> tuple[records.Sample, list[np.ndarray]]:
        sample = source[index]
        return sample, [
            fit(part, f"{source.directory}: {sample.key}: image {i}", (index, i)) for i, part in enumerate(sample.images)
        ]

    running: collections.deque[concurrent.futures.Future] = collections.deque()
    for index in indices:
        running.append(pool.submit(read, index))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _pixels(part: records.ImagePart, name: str, numbers: tuple[int, int], *, area: int, square: bool, crop: str) -> np.ndarray:
    """An image in its size; `numbers` are that of its sample, and its own among the sample's."""
    image = images.load(part.data, name)
    size = (area, area) if square else images.bucket_for(width=image.width, height=image.height, area=area)
    draw = draws("crop", *numbers)
    return np.asarray(images.resize_crop(image, *size, (0.5, 0.5) if crop == "center" else (draw.random(), draw.random())))


def _as_it_is(part: records.ImagePart, name: str, numbers: tuple[int, int]) -> np.ndarray:
    image = images.load(part.data, name)
    if image.width % images.TOKEN or image.height % images.TOKEN:
        raise InputError(f"{name}: sides must be multiples of {images.TOKEN} pixels, found {image.width}x{image.height}")
    return np.asarray(image)


class _Waiting:
    """A sample whose images are being encoded."""

    def __init__(self, sample: records.Sample, count: int):
        self.sample, self.missing = sample, count
        self.latents: list[Any] = [None] * count

    def finished(self) -> records.Sample:
        return self.sample.with_images(self.latents)


def _encoded(
    samples: Iterable[tuple[records.Sample, list[np.ndarray]]], encode_fn: EncodeFn, batch: int, dtype: str
) -> Iterator[records.Sample]:
    """The samples, in order, with latents in place of images."""
    waiting: collections.deque[_Waiting] = collections.deque()
    queues: dict[tuple[int, int], list[tuple[_Waiting, int, np.ndarray]]] = collections.defaultdict(list)
    for sample, resized in samples:
        entry = _Waiting(sample, len(resized))
        waiting.append(entry)
        for number, pixels in enumerate(resized):
            queue = queues[pixels.shape[:2]]
            queue.append((entry, number, pixels))
            if len(queue) == batch:
                _run(queue, encode_fn, batch, dtype)
        while waiting and not waiting[0].missing:
            yield waiting.popleft().finished()
    for queue in queues.values():
        if queue:
            _run(queue, encode_fn, batch, dtype)
    yield from (entry.finished() for entry in waiting)


def _run(queue: list[tuple[_Waiting, int, np.ndarray]], encode_fn: EncodeFn, batch: int, dtype: str) -> None:
    """Encode a queue of images of one size, and empty it."""
    pixels = images.to_float(np.stack([pixels for _, _, pixels in queue]))
    height, width = pixels.shape[1:3]
    filling = np.repeat(pixels[-1:], batch - len(queue), axis=0)
    latents = np.asarray(encode_fn(np.concatenate([pixels, filling])))
    if latents.ndim != 4 or len(latents) != batch:
        raise InputError(f"encode_fn must return [{batch}, h, w, c] latents, found {list(latents.shape)}")
    latents = latents[: len(queue)].astype(records.LATENT_DTYPES[dtype])
    if not np.isfinite(latents.astype(np.float32)).all():
        keys = ", ".join(entry.sample.key for entry, _, _ in queue)
        raise InputError(f"encoding gives latents that are not finite numbers in {dtype}, in one of the samples {keys[:300]}")
    for (entry, number, _), values in zip(queue, latents, strict=True):
        loss = entry.sample.images[number].loss
        entry.latents[number] = records.ImagePart.from_latents(values, height, width, loss)
        entry.missing -= 1
    queue.clear()
