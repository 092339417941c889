"""Images in: one reader for files, bytes, Pillow images and arrays; aspect-ratio buckets, resize and crop, floats in [-1, 1].

Sizes are (height, width) in pixels; arrays are [height, width, 3], uint8 or float32 in [-1, 1]. `image_output.py` writes.
"""

import io
import math
import os
import re
from collections.abc import Callable
from typing import IO, NamedTuple

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from nextstep_jax.data import files
from nextstep_jax.data.image_color import to_rgb
from nextstep_jax.data.image_metadata import TURNS, orientation, split_png, xmp_orientation
from nextstep_jax.errors import InputError, one_line

# The formats samples are stored in, as the files' own bytes.
FORMATS = ("png", "jpeg", "webp")

# Opened by their own classes: Pillow's generic opener would try dozens of formats on untrusted bytes.
_OPENERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "png": PngImagePlugin.PngImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
_SIGNATURES = {
    "png": rb"\x89PNG\r\n\x1a\n",
    "jpeg": rb"\xff\xd8\xff",
    "webp": rb"RIFF.{4}WEBP",
    "avif": rb".{4}ftyp(?:avi[fs]|.{8}(?:.{4}){0,8}?avi[fs])",
    "tiff": rb"II[*+]\0|MM\0[*+]",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM",
}
_HEIF = rb".{4}ftyp(?:hei|hev|mif1|msf1)"

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 1 << 26  # 64 Mpx: 192 MiB of RGB

REDUCING_GAP = 2  # sides of an image decoded at reduced size over those it is then resized to (LANCZOS needs some margin)

# The 17 grids (rows, columns) in 16-pixel tokens of a 256-pixel image (February 2026 training release). Other areas scale them.
BUCKETS = (
    *((8, 32), (9, 28), (10, 25), (11, 23), (12, 21), (13, 19), (14, 18), (15, 17), (16, 16)),
    *((17, 15), (18, 14), (19, 13), (21, 12), (23, 11), (25, 10), (28, 9), (32, 8)),
)
TOKEN = 16  # pixels along one side of an image token of the released models


class ImageError(InputError):
    """An image that cannot be read."""


class SizeError(ImageError):
    """An image of a size that cannot be used."""


class Header(NamedTuple):
    """What a file says of itself. height and width are those seen, after it is turned."""

    format: str
    height: int
    width: int


# --- loading ----------------------------------------------------------------------------------------------------------

# A path, a file's bytes or an open file of them, a Pillow image, or an array as `load` takes it.
Source = str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray


def is_source(value: object) -> bool:
    """Whether a value is one image for `load`, not a sequence of several."""
    single = isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    return single or hasattr(value, "read") or hasattr(value, "__array__")


def probe(data: bytes, name: str = "image") -> Header:
    """Read an image file's header only. Raises ImageError, naming `name`, as `load` does."""
    image, kind = _open(data, name)
    turn = orientation(image.info)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow has taken its own tag into account, but not XMP
        turn = xmp_orientation(image.info) if 274 not in image.tag_v2 else 1
    height, width = image.height, image.width
    return Header(kind, width, height) if turn >= 5 else Header(kind, height, width)


def load(source: Source, name: str | None = None, *, cover: tuple[int, int] | None = None) -> Image.Image:
    """An 8-bit sRGB image from a PNG, JPEG, WebP, AVIF, TIFF, GIF or BMP file, a Pillow image or an array.

    What a viewer would show: turned as its orientation (EXIF, else XMP) says; an embedded color profile applied, ignored if
    broken; transparency put on white; 16-bit and float gray made 8-bit; of an animation the first frame. The same holds for an
    opened Pillow image.

    Args:
      source: arrays are uint8 [height, width], [height, width, 3] or [height, width, 4] (with opacity).
      cover: the (height, width) that `resize_crop` will make of it. A JPEG with at least four times the pixels a side is then
        decoded at a half, a quarter or an eighth of its size, and at least `REDUCING_GAP` times what is needed: faster, and
        about one level away from the whole image after the resizing.

    Raises:
      InputError: one line naming the file (or `name`): an ImageError if it is empty, not an image, truncated or damaged, a
        SizeError if it is over `MAX_PIXELS`; else the file is missing or unreadable, or the array of another shape or dtype.
    """
    name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "image")
    if isinstance(source, Image.Image):
        image, kind = source, source.format or "Pillow image"
        _check_size(image, name)
    elif hasattr(source, "__array__"):
        image, kind = _from_array(np.asarray(source), name), "array"
        _check_size(image, name)
    else:
        image, kind = _open(_read(source, name), name)
    try:
        if cover is not None and kind == "jpeg":
            height, width = cover if orientation(image.info) < 5 else cover[::-1]
            scale = REDUCING_GAP * max(height / image.height, width / image.width)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        # Pillow has turned a TIFF when it was loaded.
        turn = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else orientation(image.info)
        image = to_rgb(image)
    except Exception as error:  # decoders raise anything at all on damaged bytes
        raise ImageError(f"{name}: damaged or truncated {kind.upper()} ({_one_line(error)})") from error
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _read(source: str | os.PathLike | bytes | IO[bytes], name: str) -> bytes:
    if isinstance(source, str | os.PathLike):
        return files.read_bytes(source, MAX_FILE_BYTES)
    if hasattr(source, "read"):
        try:
            source = source.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: cannot be read ({_one_line(error)})") from error
    if not isinstance(source, bytes | bytearray | memoryview):
        expected = "a path, bytes, a binary file, a Pillow image or an array"
        raise InputError(f"{name}: expected {expected}, found {type(source).__name__}")
    return bytes(source)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        expected = "uint8 [height, width], [height, width, 3] or [height, width, 4]"
        raise InputError(f"{name}: an array must be {expected}, found {array.dtype} {list(array.shape)}")
    if 0 in array.shape:
        raise SizeError(f"{name}: {array.shape[1]}x{array.shape[0]} pixels, expected 1 to {MAX_PIXELS}")
    return Image.fromarray(np.ascontiguousarray(array))


def _open(data: bytes, name: str) -> tuple[Image.Image, str]:
    """The file with its header read and its size checked, and its format."""
    if not data:
        raise ImageError(f"{name}: empty file (0 bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {len(data)} bytes, more than the {MAX_FILE_BYTES} allowed")
    kind = next((kind for kind, signature in _SIGNATURES.items() if re.match(signature, data, re.DOTALL)), None)
    if kind is None:
        hint = "; HEIC must be converted first" if re.match(_HEIF, data, re.DOTALL) else ""
        raise ImageError(f"{name}: not a PNG, JPEG, WebP, AVIF, TIFF, GIF or BMP image{hint}")
    try:
        data, info = split_png(data) if kind == "png" else (data, {})
        image = _OPENERS[kind](io.BytesIO(data))
        image.info.update(info)
    except Exception as error:
        raise ImageError(f"{name}: damaged or truncated {kind.upper()} ({_one_line(error)})") from error
    _check_size(image, name)
    return image, kind


def _check_size(image: Image.Image, name: str) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise SizeError(f"{name}: {image.width}x{image.height} pixels, expected 1 to {MAX_PIXELS}")


def _one_line(error: Exception) -> str:
    return one_line(error, 120) or type(error).__name__


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


def resize_crop(image: Image.Image, height: int, width: int, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Scale (LANCZOS) until the image covers height x width, and keep a part of that size.

    Args:
      at: where the part lies, from (0, 0), at the top and left, to (1, 1); the center by default.
    """
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    down, across = image.height - height / scale, image.width - width / scale  # what is cut off
    top, left = down * at[0], across * at[1]
    right, bottom = image.width - (across - left), image.height - (down - top)
    box = (max(0.0, left), max(0.0, top), min(image.width, right), min(image.height, bottom))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def adm_center_crop(image: Image.Image, side: int) -> Image.Image:
    """The center square of `side` pixels as ADM, and after it LlamaGen and others, cut ImageNet: halved by averaging while the
    shorter side is twice as long or more, then scaled (BICUBIC) until it is `side`.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


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
