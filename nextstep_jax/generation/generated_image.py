"""What the pipeline returns for an image."""

import dataclasses
import os

import numpy as np

from nextstep_jax.data.image_output import encode_image, save_image

Pixels = np.ndarray  # [height, width, 3] uint8
_SHOWN = 256  # CSS pixels in a notebook; smaller images are shown at the largest multiple of their size that fits


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """One image and what made it.

    Attributes:
      pixels: [height, width, 3] uint8.
      tokens: [n, C] float32: n image tokens of C channels.
      record: prompt, thinking if there was any, seed, index and settings, JSON-able; `save` writes it into the file.
    """

    pixels: Pixels
    tokens: np.ndarray
    record: dict

    def save(self, path: str | os.PathLike) -> None:
        """Write a PNG, JPEG or WebP file, by the path's suffix, that carries `record` (`data.image_output.read_record`)."""
        save_image(path, self.pixels, self.record)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What a notebook shows: the file that `save` writes, and the size to show it at."""
        height, width = self.pixels.shape[:2]
        times = max(1, _SHOWN // max(height, width))
        return encode_image(self.pixels, "PNG", self.record), {"width": times * width, "height": times * height}
