"""Images in and out: safe loading, aspect-ratio buckets, resize and crop, floats in [-1, 1], PNG files with metadata.

Sizes are (height, width) in pixels; arrays are [height, width, 3], uint8 or float32 in [-1, 1].
"""

import io
import math
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import BmpImagePlugin, ExifTags, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from nextstep_jax.data import files
from nextstep_jax.errors import InputError

# The formats samples are stored in, as the files' own bytes.
FORMATS = ("png", "jpeg", "webp")

# Opened by their own classes: Pillow's generic opener would try dozens of formats on untrusted bytes.
_OPENERS = {
    "png": PngImagePlugin.PngImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
_SIGNATURES = {
    "png": rb"\x89PNG\r\n\x1a\n",
    "jpeg": rb"\xff\xd8\xff",
    "webp": rb"RIFF.{4}WEBP",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM",
}

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 1 << 26  # 64 Mpx: 192 MiB of RGB

REDUCING_GAP = 2  # sides of an image decoded at reduced size over those it is then resized to (LANCZOS needs some margin)

# The 17 grids (rows, columns) in 16-pixel tokens of a 256-pixel image (February 2026 training release). Other areas scale them.
BUCKETS = (
    *((8, 32), (9, 28), (10, 25), (11, 23), (12, 21), (13, 19), (14, 18), (15, 17), (16, 16)),
    *((17, 15), (18, 14), (19, 13), (21, 12), (23, 11), (25, 10), (28, 9), (32, 8)),
)
AREAS = (256, 512, 768, 1024)  # sides of the squares whose area a bucket has
TOKEN = 16  # pixels along one side of an image token of the released models


class ImageError(InputError):
    """An image that cannot be read."""


class SizeError(ImageError):
    """An image of a size that cannot be used."""


class Header(NamedTuple):
    """What a file says of itself. height and width are those seen, after EXIF orientation."""

    format: str
    height: int
    width: int


# --- loading ----------------------------------------------------------------------------------------------------------


def probe(data: bytes, name: str = "image") -> Header:
    """Read an image file's header only. Raises ImageError, naming `name`, as `load` does."""
    image, kind = _open(data, name)
    height, width = image.height, image.width
    return Header(kind, width, height) if _orientation(image) >= 5 else Header(kind, height, width)


def load(source: bytes | str | os.PathLike, name: str | None = None, *, cover: tuple[int, int] | None = None) -> Image.Image:
    """An RGB image from a file or its bytes: PNG, JPEG, WebP, GIF or BMP.

    Turned as its EXIF orientation says; transparency is put on white; 16-bit gray becomes 8-bit; of an animation the first
    frame is taken.

    Args:
      cover: the (height, width) that `resize_crop` will make of it. A JPEG with at least four times the pixels a side is then
        decoded at a half, a quarter or an eighth of its size, and at least `REDUCING_GAP` times what is needed: faster, and
        about one level away from the whole image after the resizing.

    Raises:
      InputError: one line naming the file (or `name`): an ImageError if it is empty, not an image, truncated or damaged, a
        SizeError if it is over `MAX_PIXELS`; else the file is missing or unreadable.
    """
    if isinstance(source, bytes):
        data, name = source, name or "image"
    else:
        data, name = files.read_bytes(source, MAX_FILE_BYTES), name or os.fspath(source)
    image, kind = _open(data, name)
    orientation = _orientation(image)
    try:
        if cover is not None and kind == "jpeg":
            height, width = cover if orientation < 5 else cover[::-1]
            scale = REDUCING_GAP * max(height / image.height, width / image.width)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        image = _to_rgb(image)
    except Exception as error:  # decoders raise anything at all on damaged bytes
        raise ImageError(f"{name}: damaged or truncated {kind.upper()} ({_one_line(error)})") from error
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _open(data: bytes, name: str) -> tuple[Image.Image, str]:
    """The file with its header read and its size checked, and its format."""
    if not data:
        raise ImageError(f"{name}: empty file (0 bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {len(data)} bytes, more than the {MAX_FILE_BYTES} allowed")
    kind = next((kind for kind, signature in _SIGNATURES.items() if re.match(signature, data, re.DOTALL)), None)
    if kind is None:
        raise ImageError(f"{name}: not a PNG, JPEG, WebP, GIF or BMP image")
    try:
        image = _OPENERS[kind](io.BytesIO(data))
    except Exception as error:
        raise ImageError(f"{name}: damaged or truncated {kind.upper()} ({_one_line(error)})") from error
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise SizeError(f"{name}: {image.width}x{image.height} pixels, expected 1 to {MAX_PIXELS}")
    return image, kind


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8, from the header alone, so that `probe` and `load` agree; 1 if absent or unreadable."""
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not make the image unusable
        return 1
    return value if value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip it at 255
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


# --- sizes ------------------------------------------------------------------------------------------------------------


def buckets(area: int = 256) -> tuple[tuple[int, int], ...]:
    """The 17 sizes (height, width) in pixels around a square of side `area`, a multiple of 16; widest first.

    At small areas several grids may round to the same size.
    """
    if area < TOKEN or area % TOKEN:
        raise InputError(f"area must be the side of a square in pixels, a positive multiple of {TOKEN}, found {area}")
    scale = area // TOKEN / 16
    return tuple((TOKEN * max(1, round(h * scale)), TOKEN * max(1, round(w * scale))) for h, w in BUCKETS)


def bucket_for(*, width: int, height: int, area: int = 256) -> tuple[int, int]:
    """The bucket (height, width) whose aspect ratio is nearest to the image's (as a factor, so that mirroring commutes)."""
    if width < 1 or height < 1:
        raise InputError(f"an image has positive sides, found {width}x{height}")
    distances = [abs(math.log(h / w * width / height)) for h, w in BUCKETS]
    return buckets(area)[distances.index(min(distances))]


def bucket_for_aspect(aspect: str, area: int = 256) -> tuple[int, int]:
    """The bucket (height, width) nearest to a ratio written width:height, such as "16:9". InputError outside 1:4 to 4:1."""
    match = re.fullmatch(r"\s*([0-9]{1,5}(?:\.[0-9]{1,5})?)\s*:\s*([0-9]{1,5}(?:\.[0-9]{1,5})?)\s*", aspect)
    width, height = map(float, match.groups()) if match else (0.0, 0.0)
    if not (width > 0 and height > 0 and 0.25 <= width / height <= 4):
        raise InputError(f"aspect must be width:height between 1:4 and 4:1, such as 16:9, found {aspect!r}")
    distances = [abs(math.log(h / w * width / height)) for h, w in BUCKETS]
    return buckets(area)[distances.index(min(distances))]


def area_for(*, width: int, height: int, areas: tuple[int, ...] = AREAS) -> int:
    """The largest of `areas` whose square does not have more pixels than the image; the smallest if none fits."""
    return max((area for area in areas if area * area <= width * height), default=min(areas))


def valid_size(*, width: int, height: int, multiple: int = TOKEN, max_pixels: int | None = None) -> tuple[int, int]:
    """The size (height, width) nearest to an image's with sides multiples of `multiple`, within `max_pixels` if given."""
    if max_pixels is None or width * height <= max_pixels:
        return tuple(multiple * max(1, round(side / multiple)) for side in (height, width))
    scale = math.sqrt(max_pixels / (width * height))
    return tuple(multiple * max(1, math.floor(side * scale / multiple)) for side in (height, width))


def resize_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale (LANCZOS) until the image covers height x width, and keep the center."""
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


# --- arrays -----------------------------------------------------------------------------------------------------------


def to_float(pixels):
    """uint8 levels, a NumPy or JAX array of any shape, to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] (clamped) to uint8 levels, rounded to the nearest. InputError if any is not finite."""
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"cannot make an image of {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    return np.round(255 * np.clip(values / 2 + 0.5, 0, 1)).astype(np.uint8)


# --- PNG files --------------------------------------------------------------------------------------------------------


def encode_png(pixels: np.ndarray | Image.Image, metadata: Mapping[str, str] = {}) -> bytes:
    """[height, width, 3] uint8 as a PNG file, with international text chunks for `metadata`."""
    if isinstance(pixels, np.ndarray):
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise InputError(f"an image must be [height, width, 3] of uint8, found {list(pixels.shape)} of {pixels.dtype}")
        pixels = Image.fromarray(pixels)
    text = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        text.add_itxt(key, value)
    data = io.BytesIO()
    pixels.save(data, "PNG", pnginfo=text)
    return data.getvalue()


def save_png(path: str | os.PathLike, pixels: np.ndarray | Image.Image, metadata: Mapping[str, str] = {}) -> None:
    """Write a PNG, whole or not at all, with `metadata` (prompt, seed, settings) as its text. InputError names the path."""
    files.write_bytes(path, encode_png(pixels, metadata))
