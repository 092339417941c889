"""From any of Pillow's modes to 8-bit sRGB on white."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from nextstep_jax.data.image_metadata import MAX_METADATA

_PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}  # by the color space that a profile is of


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image as RGB: an embedded color profile applied, transparency put on white, 16 bits and floats made 8.

    Raises:
      ValueError: 32-bit levels whose range says nothing about what white is.
    """
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    alpha, profile = _alpha(image), image.info.get("icc_profile")
    color = _with_profile(_without_alpha(image), profile)
    if alpha is None:
        return color
    color.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", color.size, "white"), color).convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Opacity, mode L; None where all is opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("LA", "RGBA"):
        return image.getchannel("A")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").getchannel("A")
    level = image.info["transparency"]
    if image.mode not in ("1", "L", "RGB") and not image.mode.startswith("I"):
        return None
    if isinstance(level, tuple) != (image.mode == "RGB"):
        return None
    if isinstance(level, tuple) and max(level) > 255:  # of 16 bits, of which Pillow kept the upper 8
        level = tuple(value >> 8 for value in level)
    shown = np.asarray(image.convert("L") if image.mode == "1" else image) != np.asarray(level)
    return Image.fromarray(np.where(shown.any(-1) if image.mode == "RGB" else shown, np.uint8(255), np.uint8(0)))


def _without_alpha(image: Image.Image) -> Image.Image:
    """Mode L, RGB, CMYK or LAB."""
    mode = image.mode
    if mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_eight_bits(image))
    if mode == "1":
        return image.convert("L")
    if mode == "LA":
        return image.getchannel("L")
    if mode in ("P", "PA") and image.has_transparency_data:  # Pillow warns of any other way
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Gray levels of 16 bits, or of 32 bits or floats that stay within 0..255, 0..65535 or (floats) 0..1, as uint8."""
    levels = np.asarray(image)
    if image.mode.startswith("I;16"):
        levels = levels.astype(np.uint16)
        photometric = getattr(image, "tag_v2", {}).get(262)
        return ((levels if photometric != 0 else ~levels) >> 8).astype(np.uint8)  # TIFF's 0: low levels are white
    low, high = levels.min(), levels.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        return np.round(255 * levels).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.round(levels).astype(np.uint8)
    if low >= 0 and high <= 65535:
        return (levels / 256).astype(np.uint8)
    raise ValueError(f"gray levels from {low:g} to {high:g}, expected within 0 to 1, 255 or 65535")


# --- color profiles ---------------------------------------------------------------------------------------------------


def _with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB: of sRGB, if the image has a profile that can be applied; converted by Pillow otherwise. A new image."""
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_METADATA:
        space = _PROFILE_MODES.get(profile[16:20].decode("latin-1").strip())
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        transform = _to_srgb(profile, space) if space == image.mode else None
        if transform is not None:
            return _transformed(image, transform)
    if image.mode == "LAB" and (transform := _to_srgb(None, "LAB")):
        return _transformed(image, transform)
    return image.convert("RGB")


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    made = ImageCms.applyTransform(image, transform)
    assert made is not None  # None only where it works in place
    return made


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile (None: Lab's own) to sRGB; None if the profile is broken, or means sRGB itself."""
    try:
        source = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "RGB":
            return transform
        cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(1, -1, 3)
        changed = np.asarray(_transformed(Image.fromarray(cube), transform)).astype(int) - cube
        return transform if np.abs(changed).max() > 1 else None  # an exact and fast way for most photographs
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
