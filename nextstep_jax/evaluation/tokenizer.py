"""How well an image tokenizer reconstructs images: PSNR, SSIM, rFID and, on the built-in dataset, scene accuracy.

The paper judges tokenizers by PSNR and SSIM on 256-pixel images (Table 8: 30.60 dB and 0.89 on ImageNet-1K) and does not say in
which of the conventions in use; `PROTOCOLS` names two, and SSIM is computed in both ways. A transformer cannot draw what its
tokenizer cannot: the scene accuracy, the fraction of images in which the same scene is read before and after, bounds the score
in ShapeEval.
"""

import collections
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data import images
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.records import ImagePart
from nextstep_jax.data.shapes import CANVAS, Scene
from nextstep_jax.data.source import Source
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.devices import on_all_devices
from nextstep_jax.evaluation.fid.features import Extractor, Found
from nextstep_jax.evaluation.fid.statistics import frechet_distance, statistics
from nextstep_jax.evaluation.reconstruction import GAUSSIAN, LLAMAGEN, psnr, ssim
from nextstep_jax.models.image_tokenizer import ImageTokenizer, sample_posterior
from nextstep_jax.rewards.scene_reader import parse_scene

# Pixels [B, height, width, 3] in [-1, 1] to their reconstructions.
Reconstruct = Callable[[np.ndarray], Any]


class Protocol(NamedTuple):
    """A convention of scoring tokenizers.

    Attributes:
      crop: an image and the side of a square to the part of it that is reconstructed.
      sample: reconstruct a draw from the posterior, not its mean.
      description: in words.
    """

    crop: Callable[[Image.Image, int], Image.Image]
    sample: bool
    description: str


def bucket_crop(image: Image.Image, area: int) -> Image.Image:
    """Resized and cropped to its bucket, of about `area` x `area` pixels."""
    return images.resize_crop(image, *images.bucket_for(width=image.width, height=image.height, area=area))


PROTOCOLS: Mapping[str, Protocol] = {
    "ours": Protocol(bucket_crop, False, "aspect-ratio buckets, the posterior's mean"),
    "llamagen": Protocol(images.adm_center_crop, True, "ADM's center crop, a draw from the posterior (LlamaGen)"),
}


def reconstruction(config: ImageTokenizerConfig, params: dict) -> Reconstruct:
    """Encode and decode with an image tokenizer, on all devices: the posterior's mean, unperturbed."""
    return on_all_devices(lambda params, x: ImageTokenizer(config).apply({"params": params}, x), params)


def sampled_reconstruction(config: ImageTokenizerConfig, params: dict, seed: int = 0) -> Reconstruct:
    """Encode, draw from the posterior, decode. An image's draw depends on its pixels and the seed alone, not on its batch."""
    tokenizer = ImageTokenizer(config)

    def run(params: dict, x: jax.Array, digests: jax.Array) -> Any:
        posterior: Any = tokenizer.apply({"params": params}, x, method="encode")
        key = jax.random.key(seed)
        shape = posterior.mean.shape[1:]
        noise = jax.vmap(lambda digest: jax.random.normal(jax.random.fold_in(key, digest), shape))(digests)
        return tokenizer.apply({"params": params}, sample_posterior(posterior, noise, config), method="decode")

    compiled = on_all_devices(run, params)

    def call(x: np.ndarray) -> Any:
        return compiled(x, np.array([zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in x], np.uint32))

    return call


def source_images(
    source: Source,
    area: int,
    limit: int,
    skipped: list[str],
    order: Sequence[int] | None = None,
    crop: Callable[[Image.Image, int], Image.Image] = bucket_crop,
) -> Iterator[np.ndarray]:
    """The first `limit` readable images of a source, each cropped: [height, width, 3] uint8. A folder needs no captions.

    Args:
      area: side of the square that `crop` is told.
      skipped: gets one line for each sample or image that cannot be read.
      order: indices of the samples in the order they are read; None: as they are stored.

    Raises:
      InputError: the source holds latents.
    """
    taken = 0
    for index in range(len(source)) if order is None else order:
        try:
            parts = _parts(source, index)
        except InputError as error:
            skipped.append(str(error))
            continue
        for name, part in parts:
            if taken == limit:
                return
            if part.is_latents:
                raise InputError(f"{source.name}: holds latents; reconstructions are compared with images")
            try:
                image = images.load(part.data, name)
            except InputError as error:
                skipped.append(str(error))
                continue
            yield np.asarray(crop(image, area))
            taken += 1


def _parts(source: Source, index: int) -> list[tuple[str, ImagePart]]:
    """The images of a sample and what they are called."""
    if isinstance(source, FolderSource):
        return [(str(source.directory / source.names[index]), source.read_image(index))]
    sample = source[index]
    return [(f"{source.name}: {sample.key}: image {number}", part) for number, part in enumerate(sample.images)]


class _Scores:
    """Scores of images by their number, as batches come in, and their features."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {name: {} for name in ("psnr", "ssim", "ssim_llamagen", "scene_accuracy")}
        self.before: list[Found] = []
        self.after: list[Found] = []

    def add(self, name: str, numbers: Sequence[int], values: Iterable[float]) -> None:
        self.values[name] |= dict(zip(numbers, map(float, values), strict=True))


def evaluate(
    originals: Iterable[np.ndarray], reconstruct: Reconstruct, batch: int = 16, extractor: Extractor | None = None
) -> dict[str, Any]:
    """Mean scores over images [height, width, 3] uint8, reconstructed `batch` of one size at a time.

    Args:
      extractor: also compares the sets of originals and of reconstructions.

    Returns:
      "n": images; "psnr": dB; "ssim": over the "ssim_n" images with sides of at least 11 pixels; "ssim_llamagen": over the same
      in LlamaGen's convention; "scene_accuracy": of the "scene_n" images of 64x64 pixels the fraction in which ShapeEval reads
      the same background, word and objects before and after; "rfid": the Fréchet distance. A mean over no images is None, as is
      a distance without an extractor. "values": {name: those of each image, in order} of psnr, ssim, ssim_llamagen and
      scene_accuracy.

    Raises:
      InputError: no images, or a single one with an extractor.
    """
    queues: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = collections.defaultdict(list)
    scores = _Scores()
    for numbered in enumerate(originals):
        queue = queues[numbered[1].shape]
        queue.append(numbered)
        if len(queue) == batch:
            _score(queue, reconstruct, batch, scores, extractor)
            queue.clear()
    for queue in queues.values():
        if queue:
            _score(queue, reconstruct, batch, scores, extractor)
    values = {name: [found[number] for number in sorted(found)] for name, found in scores.values.items()}
    if not values["psnr"]:
        raise InputError("there are no images to reconstruct")
    means = {name: float(np.mean(found)) if found else None for name, found in values.items()}
    counts = {"n": len(values["psnr"]), "ssim_n": len(values["ssim"]), "scene_n": len(values["scene_accuracy"])}
    return counts | means | {"rfid": _distance(scores, extractor), "values": values}


def _score(
    queue: list[tuple[int, np.ndarray]], reconstruct: Reconstruct, batch: int, scores: _Scores, extractor: Extractor | None
) -> None:
    numbers, pixels = [number for number, _ in queue], [image for _, image in queue]
    filling = [pixels[-1]] * (batch - len(queue))  # one program per size
    x = images.to_float(np.stack([*pixels, *filling]))
    levels = images.to_uint8(np.asarray(reconstruct(x)))[: len(queue)]
    x, y = x[: len(queue)], images.to_float(levels)
    scores.add("psnr", numbers, psnr(x, y).tolist())
    if min(x.shape[1:3]) >= GAUSSIAN.size:
        scores.add("ssim", numbers, ssim(x, y).tolist())
        scores.add("ssim_llamagen", numbers, ssim(x, y, convention=LLAMAGEN).tolist())
    if x.shape[1:3] == (CANVAS, CANVAS):
        pairs = zip(pixels, levels, strict=True)
        scores.add("scene_accuracy", numbers, (_names(parse_scene(a)) == _names(parse_scene(b)) for a, b in pairs))
    if extractor is not None:
        scores.before.append(extractor(pixels, batch))
        scores.after.append(extractor(levels, batch))


def _distance(scores: _Scores, extractor: Extractor | None) -> float | None:
    if extractor is None:
        return None
    before, after = (
        statistics(np.concatenate([found.features for found in part]), extractor.mode, extractor.weights_sha256)
        for part in (scores.before, scores.after)
    )
    return frechet_distance(before, after)


def _names(scene: Scene) -> tuple:
    """What is in a scene, without the measured positions."""
    things = sorted((thing.shape, thing.color, thing.size) for thing in scene.objects)
    return scene.background, scene.word and (scene.word.text, scene.word.color), things
