"""From a size in pixels, or an aspect ratio, to the grid of an image's tokens, and the sizes a checkpoint was trained for.

Letters: h, w sides of an image in tokens.
"""

from collections.abc import Mapping
from typing import Any

from nextstep_jax.data import images
from nextstep_jax.errors import InputError
from nextstep_jax.generation.arguments import require_int, require_str
from nextstep_jax.generation.config import GenerationConfig


def image_grid(
    settings: GenerationConfig,
    token_pixels: int,
    height: int | None = None,
    width: int | None = None,
    aspect: str | None = None,
) -> tuple[int, int]:
    """(h, w) of a size in pixels, or of the aspect-ratio bucket nearest to e.g. "16:9", or of the settings' size.

    With one side given, the other is the settings' size.

    Raises:
      InputError: a side that is not a positive multiple of `token_pixels`, or both a side and an aspect.
    """
    if aspect is not None:
        if height is not None or width is not None:
            raise InputError("give either a height and width or an aspect, not both")
        bucket = images.bucket_for_aspect(require_str("aspect", aspect), bucket_area(settings, token_pixels))
        height, width = bucket_pixels(bucket, token_pixels)
    height = settings.image_size if height is None else require_int("height", height, 1)
    width = settings.image_size if width is None else require_int("width", width, 1)
    for name, side in (("height", height), ("width", width)):
        if side % token_pixels:
            raise InputError(f"{name} must be a multiple of {token_pixels} pixels, found {side}")
    return height // token_pixels, width // token_pixels


def bucket_area(settings: GenerationConfig, token_pixels: int) -> int:
    """Side of the square that `data.images` makes buckets of: they are for 16-pixel tokens, other tokenizers scale them."""
    if settings.image_size < token_pixels:
        raise InputError(f"image_size must be at least {token_pixels} pixels, found {settings.image_size}")
    return settings.image_size // token_pixels * images.TOKEN


def bucket_pixels(size: tuple[int, int], token_pixels: int) -> tuple[int, int]:
    """The (height, width) in pixels of a bucket of `data.images`."""
    height, width = size
    return height // images.TOKEN * token_pixels, width // images.TOKEN * token_pixels


def trained_sizes(overrides: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(height, width) of each size that the `generation` entry of a checkpoint's config says it was trained at; empty where
    it does not say.

    Raises:
      InputError: `trained_sizes` is not a list of pairs of whole numbers.
    """
    sizes = overrides.get("trained_sizes") or []
    if not isinstance(sizes, list | tuple) or any(not isinstance(size, list | tuple) or len(size) != 2 for size in sizes):
        raise InputError(f"config.json: trained_sizes must be a list of [height, width] in pixels, found {sizes!r}")
    pairs = ([require_int("config.json: a side in trained_sizes", side, 1) for side in size] for size in sizes)
    return [(height, width) for height, width in pairs]
