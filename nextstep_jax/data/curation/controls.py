"""Pairs of an image and a control image computed from it, for controllable generation and perception (paper section 5.1.3)."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from nextstep_jax.data.curation.annotators import annotator_files, open_depth, open_pose
from nextstep_jax.data.curation.image_signals import gray
from nextstep_jax.data.curation.stages import Dropped, Make, Values, require_kinds, require_package
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError

Pixels = UInt8[np.ndarray, "height width 3"]

# What the control image is called in instructions.
CONTROLS = {
    "canny": "edge map",
    "soft_edge": "soft edge map",
    "gray": "grayscale image",
    "low_resolution": "low-resolution image",
    "color_grid": "grid of colors",
    "segmentation": "color segmentation",
    "mask": "masked image",
}
# Those that take a model of the user's.
MODEL_CONTROLS = {"depth": "depth map", "pose": "pose"}
_TO_IMAGE = (
    "Generate an image from this {control}: {text}",
    "{text} Follow the {control}.",
    "Turn this {control} into: {text}",
)
_FROM_IMAGE = ("Give the {control} of this image.", "Extract the {control}.", "Turn this image into its {control}.")


@dataclasses.dataclass(frozen=True)
class Controls:
    """A pair becomes edits: from a control image and the caption to the image ("generate"), from the image to its control
    image ("perceive").

    Attributes:
      kinds: control images to choose from, of `CONTROLS` and `MODEL_CONTROLS`.
      per_image: how many different kinds of one image.
      directions: what is trained on; one is drawn for each control image.
      depth, pose: onnx:FOLDER, the models of those kinds (see `annotators`).
    """

    kinds: tuple[str, ...] = tuple(CONTROLS)
    per_image: int = 1
    directions: tuple[Literal["generate", "perceive"], ...] = ("generate", "perceive")
    depth: str = ""
    pose: str = ""
    version: ClassVar[int] = 1

    def __post_init__(self):
        require_kinds(self.kinds, {**CONTROLS, **MODEL_CONTROLS}, self.per_image)
        if not self.directions:
            raise InputError("directions must name generate, perceive or both")
        for name in MODEL_CONTROLS:
            if getattr(self, name) and name not in self.kinds:
                raise InputError(f"{name} is set, and kinds has no {name}")

    def prepare(self) -> Make:
        cv2 = require_package("cv2", "opencv-python", "controls")
        models = {}
        for name, opener in (("depth", open_depth), ("pose", open_pose)):
            if name in self.kinds:
                if not getattr(self, name):
                    raise InputError(f"{name} of controls is not set (expected onnx:FOLDER, or kinds without {name})")
                models[name] = opener(getattr(self, name), cv2)

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            if sample.kind != "pair":
                raise Dropped("not a pair", f"{sample.key}: controls are made of pairs, found kind {sample.kind!r}")
            pixels = sample.images[0].pixels(sample.key)
            caption = "".join(part.text for part in sample.texts).strip()
            for kind in map(str, rng.choice(self.kinds, self.per_image, replace=False)):
                direction = rng.choice(self.directions)
                control = models[kind](pixels) if kind in models else control_image(kind, pixels, rng, cv2)
                yield _as_edit(sample, kind, str(direction), pixels, control, caption, rng)

        return make

    def model_files(self) -> list[pathlib.Path]:
        return [*annotator_files(self.depth), *annotator_files(self.pose)]


def _as_edit(
    sample: Sample, kind: str, direction: str, pixels: np.ndarray, control: np.ndarray, caption: str, rng: np.random.Generator
) -> Sample:
    source, target = (control, pixels) if direction == "generate" else (pixels, control)
    templates = _TO_IMAGE if direction == "generate" else _FROM_IMAGE
    name = (CONTROLS | MODEL_CONTROLS)[kind]
    text = templates[rng.integers(len(templates))].format(control=name, text=caption)
    parts = (ImagePart.from_pixels(source, loss=False), TextPart(text), ImagePart.from_pixels(target))
    metadata = {**sample.metadata, "control": kind, "direction": direction}
    return Sample(parts, "edit", f"{sample.key}#{kind}", {}, metadata)


def control_image(kind: str, pixels: Pixels, rng: np.random.Generator, cv2: Any) -> Pixels:
    """The control image of `CONTROLS` of an image, in its size; `cv2` is OpenCV."""
    makers: Mapping[str, Callable[[], np.ndarray]] = {
        "canny": lambda: cv2.Canny(gray(pixels), 100, 200),
        "soft_edge": lambda: _soft_edges(gray(pixels), cv2),
        "gray": lambda: gray(pixels),
        "low_resolution": lambda: _shrink_and_enlarge(pixels, 8, cv2.INTER_CUBIC, cv2),
        "color_grid": lambda: _shrink_and_enlarge(pixels, 32, cv2.INTER_NEAREST, cv2),
        "segmentation": lambda: _segment(pixels, cv2),
        "mask": lambda: _masked(pixels, rng),
    }
    image = makers[kind]()
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def _soft_edges(luma: np.ndarray, cv2: Any) -> np.ndarray:
    """Gradient magnitude of the smoothed image, its 99th percentile at white."""
    smooth = cv2.GaussianBlur(luma.astype(np.float32), (0, 0), 1.5)
    magnitude = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    top = float(np.percentile(magnitude, 99)) or 1.0
    return np.clip(magnitude * (255 / top), 0, 255).astype(np.uint8)


def _shrink_and_enlarge(pixels: np.ndarray, factor: int, enlarge: int, cv2: Any) -> np.ndarray:
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=enlarge)


def _segment(pixels: np.ndarray, cv2: Any, colors: int = 6, side: int = 256) -> np.ndarray:
    """Regions of k-means clusters of color, each in the mean of its pixels; clustered at a side of 256 pixels."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    small = cv2.resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    small = cv2.medianBlur(small, 5)
    points = small.reshape(-1, 3).astype(np.float32)
    colors = min(colors, len(np.unique(small.reshape(-1, 3), axis=0)))
    cv2.setRNGSeed(0)  # the same image gives the same regions
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    _, labels, centers = cv2.kmeans(points, colors, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    regions = centers.astype(np.uint8)[labels.ravel()].reshape(small.shape)
    return cv2.resize(regions, (width, height), interpolation=cv2.INTER_NEAREST)


def _masked(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with a gray rectangle over a tenth to a half of it."""
    height, width = pixels.shape[:2]
    rows, columns = (max(1, round(n * rng.uniform(0.32, 0.7))) for n in (height, width))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    masked = pixels.copy()
    masked[top : top + rows, left : left + columns] = 127
    return masked
