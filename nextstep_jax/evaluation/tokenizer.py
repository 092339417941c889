"""How well an image tokenizer reconstructs images: PSNR, SSIM and, on the built-in dataset, scene accuracy.

The paper judges tokenizers by PSNR and SSIM on 256-pixel images (section 5; 30.60 dB and 0.89 on ImageNet-1K). A transformer
cannot draw what its tokenizer cannot: the scene accuracy, the fraction of images in which the same scene is read before and
after, bounds the score in ShapeEval.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data import images
from nextstep_jax.data.shapes import CANVAS, Scene
from nextstep_jax.data.source import Source
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.reconstruction import WINDOW, psnr, ssim
from nextstep_jax.models.image_tokenizer import ImageTokenizer
from nextstep_jax.rewards.scene_reader import parse_scene

# Pixels [B, height, width, 3] in [-1, 1] to their reconstructions.
Reconstruct = Callable[[np.ndarray], jax.Array]


def reconstruction(config: ImageTokenizerConfig, params: dict) -> Reconstruct:
    """Encode and decode with an image tokenizer: the posterior's mean, unperturbed."""
    return functools.partial(jax.jit(ImageTokenizer(config).apply), {"params": params})


def source_images(
    source: Source, area: int, limit: int, skipped: list[str], order: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """The first `limit` readable images of a source, each resized and cropped to its bucket: [height, width, 3] uint8.

    Args:
      skipped: gets one line for each sample or image that cannot be read.
      order: indices of the samples in the order they are read; None: as they are stored.

    Raises:
      InputError: the source holds latents.
    """
    taken = 0
    for index in range(len(source)) if order is None else order:
        try:
            sample = source[index]
        except InputError as error:
            skipped.append(str(error))
            continue
        for number, part in enumerate(sample.images):
            if taken == limit:
                return
            if part.is_latents:
                raise InputError(f"{source.name}: holds latents; reconstructions are compared with images")
            try:
                image = images.load(part.data, f"{source.name}: {sample.key}: image {number}")
            except InputError as error:
                skipped.append(str(error))
                continue
            size = images.bucket_for(width=image.width, height=image.height, area=area)
            yield np.asarray(images.resize_crop(image, *size))
            taken += 1


def evaluate(originals: Iterable[np.ndarray], reconstruct: Reconstruct, batch: int = 16) -> dict[str, Any]:
    """Mean scores over images [height, width, 3] uint8, reconstructed `batch` of one size at a time.

    Returns:
      "n": images; "psnr": dB; "ssim": over the "ssim_n" images with sides of at least 11 pixels; "scene_accuracy": of the
      "scene_n" images of 64x64 pixels the fraction in which ShapeEval reads the same background, word and objects before and
      after. A mean over no images is None.

    Raises:
      InputError: no images.
    """
    queues: dict[tuple[int, ...], list[np.ndarray]] = collections.defaultdict(list)
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "scene_accuracy": []}
    for image in originals:
        queue = queues[image.shape]
        queue.append(image)
        if len(queue) == batch:
            _score(queue, reconstruct, batch, scores)
            queue.clear()
    for queue in queues.values():
        if queue:
            _score(queue, reconstruct, batch, scores)
    if not scores["psnr"]:
        raise InputError("there are no images to reconstruct")
    means = {name: float(np.mean(values)) if values else None for name, values in scores.items()}
    counts = {"n": len(scores["psnr"]), "ssim_n": len(scores["ssim"]), "scene_n": len(scores["scene_accuracy"])}
    return counts | means


def _score(queue: list[np.ndarray], reconstruct: Reconstruct, batch: int, scores: dict[str, list[float]]) -> None:
    filling = [queue[-1]] * (batch - len(queue))  # one program per size
    x = images.to_float(np.stack([*queue, *filling]))
    levels = images.to_uint8(np.asarray(reconstruct(x)))[: len(queue)]
    x, y = x[: len(queue)], images.to_float(levels)
    scores["psnr"] += np.asarray(psnr(x, y)).tolist()
    if min(x.shape[1:3]) >= WINDOW:
        scores["ssim"] += np.asarray(ssim(x, y)).tolist()
    if x.shape[1:3] == (CANVAS, CANVAS):
        pairs = zip(queue, levels, strict=True)
        scores["scene_accuracy"] += [float(_names(parse_scene(a)) == _names(parse_scene(b))) for a, b in pairs]


def _names(scene: Scene) -> tuple:
    """What is in a scene, without the measured positions."""
    things = sorted((thing.shape, thing.color, thing.size) for thing in scene.objects)
    return scene.background, scene.word and (scene.word.text, scene.word.color), things
