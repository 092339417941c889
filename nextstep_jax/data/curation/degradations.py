"""Pairs of a degraded image and the original, for restoration (paper section 5.1.3)."""

import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from nextstep_jax.data import images
from nextstep_jax.data.curation.overlays import watermark
from nextstep_jax.data.curation.stages import Dropped, Make, Values, require_kinds, require_package
from nextstep_jax.data.records import ImagePart, Sample, TextPart

Pixels = UInt8[np.ndarray, "height width 3"]

# Instructions that ask for the original back, by degradation.
INSTRUCTIONS = {
    "blur": ("Sharpen this blurred image.", "Remove the blur.", "Make this image sharp."),
    "motion_blur": ("Remove the motion blur.", "Sharpen this image, the camera was moved."),
    "noise": ("Remove the noise.", "Denoise this image."),
    "jpeg": ("Remove the compression artifacts.", "Restore this JPEG image to full quality."),
    "low_resolution": ("Increase the resolution of this image.", "Upscale this image and restore its details."),
    "haze": ("Remove the haze.", "Dehaze this image."),
    "rain": ("Remove the rain.", "Show this scene without rain."),
    "low_light": ("Brighten this dark image.", "Restore this image taken in low light."),
    "scratches": ("Remove the scratches.", "Repair this scratched photograph."),
    "holes": ("Fill in the missing parts.", "Restore the parts of the image that are missing."),
    "gray": ("Colorize this image.", "Give this image its colors back."),
    "watermark": ("Remove the watermark.", "Show this image without the watermark."),
}


@dataclasses.dataclass(frozen=True)
class Degradations:
    """Every image of a pair becomes edits from a degraded image to the original.

    Attributes:
      kinds: degradations to choose from, keys of `INSTRUCTIONS`.
      per_image: how many different ones of one image.
    """

    kinds: tuple[str, ...] = tuple(INSTRUCTIONS)
    per_image: int = 1
    version: ClassVar[int] = 1

    def __post_init__(self):
        require_kinds(self.kinds, INSTRUCTIONS, self.per_image)

    def prepare(self) -> Make:
        cv2 = require_package("cv2", "opencv-python", "degradations")

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            if sample.kind != "pair":
                raise Dropped("not a pair", f"{sample.key}: degradations are made of pairs, found kind {sample.kind!r}")
            pixels = sample.images[0].pixels(sample.key)
            for kind in map(str, rng.choice(self.kinds, self.per_image, replace=False)):
                choices = INSTRUCTIONS[kind]
                degraded = ImagePart.from_pixels(degrade(kind, pixels, rng, cv2), loss=False)
                parts = (degraded, TextPart(choices[rng.integers(len(choices))]), sample.images[0])
                yield Sample(parts, "edit", f"{sample.key}#{kind}", {}, {**sample.metadata, "degradation": kind})

        return make


def degrade(kind: str, pixels: Pixels, rng: np.random.Generator, cv2: Any) -> Pixels:
    """The image degraded as `INSTRUCTIONS` names it, in its size; how strongly is drawn from `rng`. `cv2` is OpenCV."""
    makers: Mapping[str, Callable[[], np.ndarray]] = {
        "blur": lambda: cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.006, 0.015) * min(pixels.shape[:2])),
        "motion_blur": lambda: _motion_blur(pixels, rng, cv2),
        "noise": lambda: _clip(pixels + rng.normal(0, rng.uniform(15, 45), pixels.shape)),
        "jpeg": lambda: _jpeg(pixels, int(rng.integers(5, 20))),
        "low_resolution": lambda: _low_resolution(pixels, int(rng.integers(3, 7)), cv2),
        "haze": lambda: _haze(pixels, rng, cv2),
        "rain": lambda: _streaks(pixels, rng, cv2, count=(0.0008, 0.002), length=(0.03, 0.08), brightness=200, tilt=0.3),
        "low_light": lambda: _clip((pixels / 255.0) ** rng.uniform(2.0, 3.0) * 255 + rng.normal(0, 4, pixels.shape)),
        "scratches": lambda: _streaks(pixels, rng, cv2, count=(0.00005, 0.0001), length=(0.3, 0.9), brightness=235, tilt=1.0),
        "holes": lambda: _holes(pixels, rng, cv2),
        "gray": lambda: np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")),
        "watermark": lambda: watermark(pixels, rng)[0],
    }
    return np.ascontiguousarray(makers[kind](), np.uint8)


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _motion_blur(pixels: np.ndarray, rng: np.random.Generator, cv2: Any) -> np.ndarray:
    size = max(3, 2 * round(rng.uniform(0.02, 0.05) * min(pixels.shape[:2])) + 1)
    kernel = np.zeros((size, size), np.float32)
    angle, center = rng.uniform(0, np.pi), size // 2
    reach = np.linspace(-center, center, 4 * size)
    kernel[np.rint(center + reach * np.sin(angle)).astype(int), np.rint(center + reach * np.cos(angle)).astype(int)] = 1
    return cv2.filter2D(pixels, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    return np.asarray(images.load(data.getvalue()))


def _low_resolution(pixels: np.ndarray, factor: int, cv2: Any) -> np.ndarray:
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _haze(pixels: np.ndarray, rng: np.random.Generator, cv2: Any) -> np.ndarray:
    """The model of fog, I t + A (1 - t) with white light A; transmission t falls smoothly towards the top."""
    height, width = pixels.shape[:2]
    cloud = cv2.resize(rng.uniform(-0.12, 0.12, (4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    depth = np.linspace(rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.8), height, dtype=np.float32)[:, None]
    transmission = np.clip(depth + cloud, 0.1, 0.95)[..., None]
    return _clip(pixels * transmission + 235 * (1 - transmission))


def _streaks(
    pixels: np.ndarray,
    rng: np.random.Generator,
    cv2: Any,
    count: tuple[float, float],
    length: tuple[float, float],
    brightness: int,
    tilt: float,
) -> np.ndarray:
    """Bright lines: `count` a pixel (at least six), `length` of the image's height, steep up to `tilt` (1: every direction)."""
    height, width = pixels.shape[:2]
    layer = np.zeros((height, width), np.float32)
    slant = rng.uniform(-tilt, tilt)
    for _ in range(max(6, round(height * width * rng.uniform(*count)))):
        x, y, reach = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(*length) * height
        angle = np.pi / 2 * (1 + (slant + rng.normal(0, 0.03) if tilt < 1 else rng.uniform(-1, 1)))
        end = (round(x + reach * np.cos(angle)), round(y + reach * np.sin(angle)))
        cv2.line(layer, (round(x), round(y)), end, float(rng.uniform(0.4, 0.9)), max(1, height // 300), cv2.LINE_AA)
    alpha = layer[..., None]
    return _clip(pixels * (1 - alpha) + brightness * alpha)


def _holes(pixels: np.ndarray, rng: np.random.Generator, cv2: Any) -> np.ndarray:
    """Black brush strokes over the image."""
    height, width = pixels.shape[:2]
    holed = pixels.copy()
    for _ in range(int(rng.integers(2, 6))):
        points = np.cumsum(rng.normal(0, 0.12, (5, 2)), axis=0) + rng.uniform(0.2, 0.8, 2)
        stroke = np.rint(points * (width, height)).astype(np.int32)
        cv2.polylines(holed, [stroke], False, (0, 0, 0), max(2, round(0.05 * min(height, width))))
    return holed
