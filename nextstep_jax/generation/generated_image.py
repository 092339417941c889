"""What the pipeline returns for an image."""

import dataclasses
import os

import numpy as np

from nextstep_jax.data.image_output import save_image

Pixels = np.ndarray  # [height, width, 3] uint8


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
