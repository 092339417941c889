"""Signals of images that need no model: size, sharpness, perceptual hashes."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nextstep_jax.data.curation.stages import Measure, Values, require_package, worst_of_images
from nextstep_jax.data.records import Sample

Pixels = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Shorter side and number of pixels of the smallest image, ratio of sides (at least 1) of the longest."""

    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        return _size


def _size(sample: Sample) -> Values:
    sides = [sorted((part.height, part.width)) for part in sample.images]
    if not sides:
        return {}
    return {
        "min_side": min(short for short, _ in sides),
        "pixels": min(short * long for short, long in sides),
        "aspect": round(max(long / short for short, long in sides), 4),
    }


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Clarity, measured at one size so that images compare: variance of the Laplacian ("laplacian"), mean squared Sobel
    gradient ("tenengrad"), standard deviation of gray ("contrast"), and how much stronger gradients are on a JPEG's 8-pixel
    block borders than off them ("blockiness", 1 for none, in the image's own size).

    Attributes:
      side: pixels of the shorter side while measuring; smaller images are measured as they are.
    """

    side: int = 512
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        cv2 = require_package("cv2", "opencv-python", "signal sharpness")
        clarity = worst_of_images(functools.partial(self._clarity, cv2), high_is_worse=False)
        blocks = worst_of_images(lambda pixels: {"blockiness": blockiness(gray(pixels))}, high_is_worse=True)
        return lambda sample: {**clarity(sample), **blocks(sample)}

    def _clarity(self, cv2, pixels: np.ndarray) -> Values:
        luma = gray(pixels).astype(np.float32)
        short = min(luma.shape)
        if short > self.side:
            size = tuple(max(1, round(n * self.side / short)) for n in luma.shape[::-1])
            luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
        laplacian = cv2.Laplacian(luma, cv2.CV_32F)
        across, down = cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)
        found = {"laplacian": laplacian.var(), "tenengrad": np.mean(across**2 + down**2), "contrast": luma.std()}
        return {name: round(float(value), 4) for name, value in found.items()}


def gray(pixels: Pixels) -> UInt8[np.ndarray, "height width"]:
    """Luma (ITU-R 601) of an image."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def blockiness(luma: UInt8[np.ndarray, "height width"]) -> float:
    """Mean absolute step across columns and rows that are multiples of 8, over that across all others; 1 for images too
    small.
    """
    on, off = [], []
    for image in (luma, luma.T):
        steps = np.abs(np.diff(image.astype(np.int16), axis=1)).mean(axis=0) if image.shape[1] > 1 else np.zeros(0)
        border = np.arange(1, len(steps) + 1) % 8 == 0
        on.append(steps[border])
        off.append(steps[~border])
    borders, insides = np.concatenate(on), np.concatenate(off)
    if not len(borders) or not insides.any():
        return 1.0
    return round(float(borders.mean() / insides.mean()), 4)


# --- perceptual hashes ------------------------------------------------------------------------------------------------

HASH_SIDE = 8  # bits along a side
_SAMPLED = 32  # pixels along a side of what is transformed


@dataclasses.dataclass(frozen=True)
class PerceptualHash:
    """Hashes of the target image (the last one): 64 bits of its lowest frequencies, in hexadecimal; of the whole image first,
    then of its center with each fraction of `crops` kept, and of the mirror images of all ("hashes"). Two images are
    near-duplicates where one's whole matches any of the other's (see `duplicates`).
    """

    crops: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8)
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        return self._measure

    def _measure(self, sample: Sample) -> Values:
        if not sample.images:
            return {}
        luma = gray(sample.images[-1].pixels(sample.key))
        views = [_center(luma, fraction) for fraction in (1.0, *self.crops)]
        found = [perceptual_hash(view) for view in (*views, *(view[:, ::-1] for view in views))]
        return {"hashes": [f"{value:016x}" for value in found]}


def _center(image: np.ndarray, fraction: float) -> np.ndarray:
    rows, columns = (max(1, round(n * fraction)) for n in image.shape)
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    return image[top : top + rows, left : left + columns]


def perceptual_hash(luma: UInt8[np.ndarray, "height width"]) -> int:
    """64 bits: whether each of the 8x8 lowest DCT coefficients of the image, shrunk to 32x32, is above their median (the
    constant one does not count to it). Blur, noise, JPEG and another size change few of them.
    """
    small = np.asarray(
        Image.fromarray(np.ascontiguousarray(luma)).resize((_SAMPLED, _SAMPLED), Image.Resampling.BOX), np.float64
    )
    basis = _dct_basis()
    low = basis @ small @ basis.T
    bits = (low > np.median(low.ravel()[1:])).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _dct_basis() -> Float[np.ndarray, "8 32"]:
    frequency, place = np.arange(HASH_SIDE)[:, None], np.arange(_SAMPLED)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SAMPLED))
