"""Control images that take a model, which the user brings: depth, and the pose of a person.

    onnx:FOLDER     model.onnx, in FOLDER or FOLDER/onnx, and preprocessor_config.json, as exporters for ONNX Runtime write them

A depth model (DPT, Depth Anything) has an output `predicted_depth` [1, h, w], larger for what is nearer. A pose model (ViTPose)
has an output `heatmaps` [1, 17, h, w], one for each keypoint of COCO. No package ships either. Whether all is there is tried at
the start, with an image.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from nextstep_jax.data.curation.embedders import OnnxModel, Preprocessing, model_file
from nextstep_jax.data.curation.stages import Dropped
from nextstep_jax.errors import InputError

Pixels = UInt8[np.ndarray, "height width 3"]
# The control image of an image, in its size. Dropped if there is none.
Annotate = Callable[[Pixels], Pixels]

KEYPOINTS = 17
# COCO's keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles (left before right).
_LIMBS = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
_MIN_CONFIDENCE, _MIN_POINTS = 0.3, 4


class DenseModel:
    """A model from an image to maps over it, [channels, h, w]. InputError names what is missing, wrong, or fails."""

    def __init__(self, spelling: str, what: str, output: str, channels: int):
        kind, _, rest = spelling.partition(":")
        if kind != "onnx" or not rest:
            raise InputError(f"{what} must be onnx:FOLDER, found {spelling!r}")
        folder = pathlib.Path(rest)
        self._model = OnnxModel(model_file(folder, "model.onnx"), what)
        self._preprocess = Preprocessing(folder / "preprocessor_config.json")
        if self._preprocess.crops:
            raise InputError(f"{folder / 'preprocessor_config.json'}: {what} needs the whole image, and do_center_crop cuts it")
        self._output, self._channels = self._model.output(output), channels
        self(np.full((64, 64, 3), 127, np.uint8))

    def __call__(self, pixels: Pixels) -> Float[np.ndarray, "channels h w"]:
        found = self._model({self._model.inputs[0]: self._preprocess(pixels)}, self._output)
        maps = found.reshape(-1, *found.shape[-2:]) if found.ndim >= 2 else found
        if maps.ndim != 3 or len(maps) != self._channels or not np.isfinite(maps).all():
            raise InputError(
                f"{self._model.path}: expected finite numbers [1, {self._channels}, h, w], found shape {list(found.shape)}"
            )
        return maps.astype(np.float32)


def annotator_files(spelling: str) -> list[pathlib.Path]:
    """The files behind `spelling` that decide what it gives."""
    folder = pathlib.Path(spelling.partition(":")[2])
    paths = (model_file(folder, "model.onnx"), folder / "preprocessor_config.json")
    return [path for path in paths if spelling and path.is_file()]


def open_depth(spelling: str, cv2: Any) -> Annotate:
    """Depth as gray, the nearest white and the farthest black."""
    model = DenseModel(spelling, "depth", "predicted_depth", 1)

    def annotate(pixels: Pixels) -> Pixels:
        near = cv2.resize(model(pixels)[0], pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        low, high = float(near.min()), float(near.max())
        if high - low <= 1e-6 * max(abs(low), abs(high)):
            raise Dropped("no depth", "the depth model finds the same depth everywhere")
        return np.repeat(np.rint((near - low) * (255 / (high - low))).astype(np.uint8)[..., None], 3, axis=2)

    return annotate


def open_pose(spelling: str, cv2: Any) -> Annotate:
    """The keypoints of the person whom the model sees most clearly, joined by limbs, on black."""
    model = DenseModel(spelling, "pose", "heatmaps", KEYPOINTS)

    def annotate(pixels: Pixels) -> Pixels:
        (height, width), maps = pixels.shape[:2], model(pixels)
        points: dict[int, tuple[int, int]] = {}
        for number, heat in enumerate(maps):
            row, column = np.unravel_index(int(heat.argmax()), heat.shape)
            if heat[row, column] >= _MIN_CONFIDENCE:
                y, x = (row + 0.5) * height / heat.shape[0], (column + 0.5) * width / heat.shape[1]
                points[number] = (int(x), int(y))
        if len(points) < _MIN_POINTS:
            raise Dropped("no pose", f"the pose model finds {len(points)} keypoints, fewer than {_MIN_POINTS}")
        drawn, thick = np.zeros_like(pixels), max(1, round(min(height, width) / 80))
        for number, (a, b) in enumerate(_LIMBS):
            if a in points and b in points:
                cv2.line(drawn, points[a], points[b], _color(number / len(_LIMBS)), thick, cv2.LINE_AA)
        for number, point in points.items():
            cv2.circle(drawn, point, thick + 1, _color(number / KEYPOINTS), -1, cv2.LINE_AA)
        return drawn

    return annotate


def _color(turn: float) -> tuple[int, int, int]:
    """A full color of the circle of hues, at a part of a turn."""
    distances = (abs((6 * turn + offset) % 6 - 3) - 1 for offset in (0, 4, 2))
    red, green, blue = (round(255 * min(1.0, max(0.0, distance))) for distance in distances)
    return red, green, blue
