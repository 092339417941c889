"""Watermarks, found by a small classifier that ships and was trained on the marks of `overlays`, over other images."""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np
from PIL import Image

from nextstep_jax.data.curation.embedders import OnnxModel
from nextstep_jax.data.curation.stages import Measure, Values, worst_of_images
from nextstep_jax.errors import InputError

MODEL = pathlib.Path(__file__).parent / "watermark.onnx"
_SIDE, _MAX_SIDE = 256, 2048  # pixels of the shorter and the longer side while looking
_CELL = 8  # both are multiples of it


@dataclasses.dataclass(frozen=True)
class Watermark:
    """How sure a classifier is that there is a watermark ("score", 0 to 1), on the worst image: text or a logo through which
    the image can be seen. Text that hides what is behind it is none.

    Attributes:
      model: an ONNX file from images [1, 3, height, width] of 0 to 255, the shorter side 256 pixels and both multiples of 8, to
        one number; "" takes the one that ships.
    """

    model: str = ""
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        model = OnnxModel(self._path, "signal watermark")

        def measure(pixels: np.ndarray) -> Values:
            image = Image.fromarray(pixels)
            scale = _SIDE / min(image.size)
            width, height = (_CELL * round(min(_MAX_SIDE, max(_SIDE, n * scale)) / _CELL) for n in image.size)
            small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0), np.float32)
            found = model({model.inputs[0]: np.ascontiguousarray(small.transpose(2, 0, 1)[None])})
            if found.size != 1 or not np.isfinite(found).all():
                raise InputError(f"{self._path}: expected one finite number, found shape {list(found.shape)}")
            return {"score": round(float(found.reshape(())), 4)}

        measure(np.full((_SIDE, _SIDE, 3), 127, np.uint8))
        return worst_of_images(measure, high_is_worse=True)

    @property
    def _path(self) -> pathlib.Path:
        return pathlib.Path(self.model) if self.model else MODEL

    def model_files(self) -> list[pathlib.Path]:
        return [self._path] if self._path.is_file() else []
