"""Text in images, read by RapidOCR, whose package ships its models (Chinese and English)."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from nextstep_jax.errors import InputError


class Line(NamedTuple):
    """A line of text found: its four corners [4, 2] (x, y) in pixels, what it says, and the reader's confidence (0 to 1)."""

    corners: np.ndarray
    text: str
    confidence: float

    @property
    def area(self) -> float:
        """Of its quadrangle, in pixels (shoelace formula)."""
        x, y = self.corners.T
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def open_reader(what: str) -> Callable[[UInt8[np.ndarray, "height width 3"]], list[Line]]:
    """A function that reads an image's lines, top to bottom. InputError names `what` if the package is not installed."""
    if not importlib.util.find_spec("rapidocr_onnxruntime"):
        raise InputError(f"{what} needs the package rapidocr-onnxruntime: pip install 'nextstep_jax[rewards]'")
    from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR()

    def read(image: np.ndarray) -> list[Line]:
        lines, _ = engine(np.ascontiguousarray(image[..., ::-1]))  # it takes BGR
        return [Line(np.asarray(corners, float), text, float(confidence)) for corners, text, confidence in lines or ()]

    return read
