"""The two ways of bringing an image to the 299 pixels of FID's network. FIDs of different ways do not compare.

Letters: images [height, width, 3] uint8; resized ones [side, side, 3] float32, levels from 0 to 255.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Levels = UInt8[np.ndarray, "height width 3"]
Resized = Float[np.ndarray, "side side 3"]


def resize_tf(image: Levels, side: int) -> Resized:
    """Bilinear as TensorFlow 1 does it inside the network of 2015: place p of the output lies at p * size / side of the input,
    without a shift by half a pixel and without smoothing (torch-fidelity, ADM's evaluator, clean-fid's legacy_tensorflow).
    """
    rows, columns = _Neighbours.of(image.shape[0], side), _Neighbours.of(image.shape[1], side)
    above, below = (_between(image[row].astype(np.float32), columns) for row in (rows.low, rows.high))
    return above + (below - above) * rows.part[:, None, None]


def resize_clean(image: Levels, side: int) -> Resized:
    """Bicubic with smoothing: Pillow on each channel as float32, clipped to 0 to 255 and not rounded (clean-fid)."""
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    return np.clip(np.stack(resized, axis=-1), 0, 255)


class _Neighbours(NamedTuple):
    """Where each place of the output lies in the input: between two places, `part` of the way."""

    low: np.ndarray
    high: np.ndarray
    part: np.ndarray

    @classmethod
    def of(cls, size: int, side: int) -> "_Neighbours":
        places = np.arange(side, dtype=np.float32) * np.float32(size / side)
        low = places.astype(np.int64)
        return cls(low, np.minimum(low + 1, size - 1), places - low.astype(np.float32))


def _between(rows: np.ndarray, columns: _Neighbours) -> np.ndarray:
    left, right = rows[:, columns.low], rows[:, columns.high]
    return left + (right - left) * columns.part[None, :, None]
