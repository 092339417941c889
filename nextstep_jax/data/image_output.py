"""Images out: PNG, JPEG and WebP files that carry a record of what made them.

A record is a dict of JSON values. A PNG keeps each of its entries as text under its name; JPEG and WebP keep all as JSON in
EXIF's UserComment, which holds some 64 KB: the longest entries are left out where all do not fit.
"""

import base64
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from nextstep_jax.data import files, images
from nextstep_jax.data.image_metadata import png_texts
from nextstep_jax.errors import InputError

OUTPUT_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95  # of JPEG and WebP, from 0 to 100

_EXIF, _USER_COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
_MAX_COMMENT = 65_000  # bytes; a JPEG's segment holds 65,533
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def output_format(path: str | os.PathLike) -> str:
    """The format that a file's name asks for. InputError if it is none that images are written in."""
    suffix = pathlib.PurePath(path).suffix
    if suffix.lower() not in OUTPUT_FORMATS:
        found = suffix or "a name without a suffix"
        raise InputError(f"{path}: an image's name must end in {', '.join(OUTPUT_FORMATS)}, found {found}")
    return OUTPUT_FORMATS[suffix.lower()]


def output_path(path: str | os.PathLike) -> pathlib.Path:
    """The file that an output's name means: as it is, or with .png after it if it names no type (`run`, `run1.5`).

    A suffix that starts with a letter names a type. InputError if images are not written in it.
    """
    path = pathlib.Path(path)
    if not re.fullmatch(r"\.[A-Za-z].*", path.suffix):
        return path.with_name(f"{path.name}.png")
    output_format(path)
    return path


def save_image(path: str | os.PathLike, pixels: np.ndarray | Image.Image, record: Mapping[str, Any] = {}) -> None:
    """Write an image of [height, width, 3] uint8, whole or not at all, in the format of the path's suffix, with its record.

    Raises:
      InputError: a suffix that is not of `OUTPUT_FORMATS`, pixels of another shape or dtype, or a path that cannot be written.
    """
    files.write_bytes(path, encode_image(pixels, output_format(path), record))


def encode_image(
    pixels: np.ndarray | Image.Image,
    format: str = "PNG",
    record: Mapping[str, Any] = {},
    lossless: bool = False,
    quality: int = QUALITY,
) -> bytes:
    """[height, width, 3] uint8 as the bytes of a file: "PNG", "JPEG" or "WEBP", the last with every pixel if `lossless`."""
    if isinstance(pixels, np.ndarray):
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise InputError(f"an image must be [height, width, 3] of uint8, found {list(pixels.shape)} of {pixels.dtype}")
        pixels = Image.fromarray(pixels)
    data = io.BytesIO()
    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        for key, value in record.items():
            text.add_itxt(key, _as_text(value))
        pixels.save(data, "PNG", pnginfo=text)
    else:
        options = {"subsampling": 0} if format == "JPEG" else {"method": 4, "lossless": lossless}
        pixels.save(data, format, quality=quality, exif=_exif(record), **options)
    return data.getvalue()


def jpeg_url(image: Image.Image) -> str:
    """The address that carries an RGB image in an HTML page, as a JPEG without a record."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def png_url(pixels: np.ndarray) -> str:
    """The address that carries an image of [height, width, 3] uint8 in an HTML page, pixel for pixel, without a record."""
    return f"data:image/png;base64,{base64.b64encode(encode_image(pixels)).decode()}"


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """The record that `save_image` wrote into a file; empty if there is none. InputError if it is not such an image."""
    data, name = files.read_bytes(path, images.MAX_FILE_BYTES), os.fspath(path)
    kind = images.probe(data, name).format
    try:
        if kind == "png":
            return {key: _from_text(value) for key, value in png_texts(data).items()}
        opener = {"jpeg": JpegImagePlugin.JpegImageFile, "webp": WebPImagePlugin.WebPImageFile}.get(kind)
        comment = opener(io.BytesIO(data)).getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"") if opener else b""
        record = json.loads(comment.removeprefix(_ASCII)) if comment.startswith(_ASCII) else {}
    except Exception:  # another program's metadata
        return {}
    return record if isinstance(record, dict) else {}


def _exif(record: Mapping[str, Any]) -> bytes:
    if not record:
        return b""
    kept = dict(record)
    while len(comment := json.dumps(kept).encode("ascii")) > _MAX_COMMENT:
        del kept[max(kept, key=lambda name: len(json.dumps(kept[name])))]
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + comment
    return exif.tobytes()


def _as_text(value: Any) -> str:
    """Text as it is; as JSON anything else, text with control characters or lone surrogates, and text that looks like JSON."""
    plain = isinstance(value, str) and _from_text(value) == value and not _UNPRINTABLE.search(value)
    return value if plain else json.dumps(value)


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
