"""What one stored sample is: ordered text and image parts, as msgpack.

Schema, version 1. A sample is a msgpack map; every key is always present:

    {"v": 1,                                    schema version
     "key": str,                                names the sample in reports; unique within a dataset by convention
     "kind": "text"|"pair"|"edit"|"interleaved"|"preference",
     "parts": [                                 in the order the model sees them
        {"text": str, "loss": bool},            loss: does the part count as a target?
        {"image": bytes, "format": str,         "png"|"jpeg"|"webp": the file's own bytes, never re-encoded;
         "height": int, "width": int,           "float16"|"bfloat16"|"float32": latents, little-endian, C order
         "grid": [h, w, c] | nil,               shape of the latents, nil for an encoded image
         "loss": bool}, ...],
     "variants": {name: str},                   other captions; <image_0>, <image_1>, ... stand for the sample's images
     "meta": {str: any JSON value}}

`height` and `width` are the image's pixels as seen (after EXIF orientation); for latents, the pixels that were encoded.
Latents are what `patchify` takes: the image tokenizer's normalization, shift and scale already applied.

Nothing here imports the readers, Grain or an accelerator library. Shards and their index: nextstep_jax/data/shards.py.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from jaxtyping import Float, UInt8

from nextstep_jax.data import image_output, images
from nextstep_jax.errors import DamagedDataError, InputError

VERSION = 1
KINDS = ("text", "pair", "edit", "interleaved", "preference")
LATENT_DTYPES = {"float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype("<f4")}

# Bounds on what is read back, so that a damaged or hostile record cannot exhaust memory.
MAX_PARTS = 1024
MAX_TEXT = 1 << 20  # characters
MAX_IMAGE_BYTES = 64 << 20
MAX_RECORD_BYTES = 256 << 20
MAX_META_DEPTH = 8
MAX_ITEMS = 4096  # entries of one list or map
MAX_SIDE = 1 << 16  # pixels

_PLACEHOLDER = re.compile(r"<image_([0-9]{1,4})>")


class CaptionError(InputError):
    """A sample without a usable caption."""


@dataclasses.dataclass(frozen=True)
class TextPart:
    """A stretch of text, not empty.

    Attributes:
      loss: whether its tokens are targets.
    """

    text: str
    loss: bool = True

    def __post_init__(self):
        _require_text("text", self.text)
        _require_bool(self.loss)


@dataclasses.dataclass(frozen=True)
class ImagePart:
    """An image: the bytes of a PNG, JPEG or WebP file, or the latents an image tokenizer made of it.

    Build one with `from_bytes`, `from_pixels` or `from_latents`.

    Attributes:
      data: the file's bytes, or the latents' numbers.
      format: "png", "jpeg", "webp", or the latents' dtype ("float16", "bfloat16", "float32").
      height, width: pixels.
      grid: (h, w, c) of latents; None for an encoded image.
      loss: whether its tokens are targets (False for the source images of an edit).
    """

    data: bytes
    format: str
    height: int
    width: int
    grid: tuple[int, int, int] | None = None
    loss: bool = True

    def __post_init__(self):
        _require_bool(self.loss)
        if not isinstance(self.data, bytes) or not 0 < len(self.data) <= MAX_IMAGE_BYTES:
            found = len(self.data) if isinstance(self.data, bytes) else type(self.data).__name__
            raise InputError(f"an image must be 1 to {MAX_IMAGE_BYTES} bytes, found {found}")
        for name, value in (("height", self.height), ("width", self.width)):
            if not _is_int(value) or not 0 < value <= MAX_SIDE:
                raise InputError(f"an image's {name} must be 1 to {MAX_SIDE} pixels, found {value!r}")
        if self.format in images.FORMATS and self.grid is None:
            return
        if self.format not in LATENT_DTYPES:
            raise InputError(
                f"an image's format must be one of {', '.join((*images.FORMATS, *LATENT_DTYPES))}, found {self.format!r}"
            )
        if not (
            isinstance(self.grid, tuple) and len(self.grid) == 3 and all(_is_int(n) and 0 < n <= MAX_SIDE for n in self.grid)
        ):
            raise InputError(f"latents need a grid of three positive sizes, found {self.grid!r}")
        expected = math.prod(self.grid) * LATENT_DTYPES[self.format].itemsize
        if len(self.data) != expected:
            raise InputError(f"latents {self.grid} of {self.format} take {expected} bytes, found {len(self.data)}")

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "image", loss: bool = True) -> "ImagePart":
        """An image file's bytes; only its header is read here. Other formats are stored as PNG. ImageError names `name`."""
        header = images.probe(data, name)
        if header.format not in images.FORMATS:
            return cls.from_pixels(np.asarray(images.load(data, name)), loss)
        return cls(data, header.format, header.height, header.width, loss=loss)

    @classmethod
    def from_pixels(cls, pixels: np.ndarray, loss: bool = True) -> "ImagePart":
        """[height, width, 3] uint8, stored as PNG."""
        return cls(image_output.encode_image(pixels), "png", pixels.shape[0], pixels.shape[1], loss=loss)

    @classmethod
    def from_latents(cls, latents: np.ndarray, height: int, width: int, loss: bool = True) -> "ImagePart":
        """[h, w, c] float16, bfloat16 or float32, made from an image of height x width pixels."""
        name = np.asarray(latents).dtype.name
        if name not in LATENT_DTYPES or np.ndim(latents) != 3:
            raise InputError(f"latents must be [h, w, c] of {', '.join(LATENT_DTYPES)}, found {np.shape(latents)} of {name}")
        data = np.ascontiguousarray(latents, LATENT_DTYPES[name]).tobytes()
        rows, columns, channels = map(int, latents.shape)
        return cls(data, name, int(height), int(width), (rows, columns, channels), loss)

    @property
    def is_latents(self) -> bool:
        return self.grid is not None

    def latents(self) -> Float[np.ndarray, "h w c"]:
        """[h, w, c] in the stored dtype (read-only). Only for latents."""
        if self.grid is None:
            raise InputError(f"an image stored as {self.format} has no latents; run `nextstep-jax data encode` first")
        return np.frombuffer(self.data, LATENT_DTYPES[self.format]).reshape(self.grid)

    def pixels(self, name: str = "image") -> UInt8[np.ndarray, "height width 3"]:
        """[height, width, 3] uint8, decoded. Only for encoded images; InputError names `name`."""
        if self.grid is not None:
            raise InputError(f"{name}: stored as latents, not as pixels")
        return np.asarray(images.load(self.data, name))


@dataclasses.dataclass(frozen=True)
class Sample:
    """One training sample: parts in the order the model sees them.

    Attributes:
      parts: text and image parts, at least one.
      kind: "text" (no image), "pair" (one image), "edit" (sources, an instruction, a target), "interleaved", or "preference"
        (a prompt, then several images made of it, each perhaps after a text of its own, see `augment.split_preference`;
        `metadata["scores"]` has a number for each).
      key: names the sample in reports.
      caption_variants: other captions for the same images, by name (e.g. "short", "zh"). A variant places every image once, as
        `<image_0>`, `<image_1>`, ... (numbered as in `images`); with one image it may leave the place to the original. See
        `with_caption`.
      metadata: JSON-like values by name (strings, numbers, booleans, None, lists, maps).
      unused: (reason, name) of what its reader found beside the parts and left out, for reports; not stored.
    """

    parts: tuple[TextPart | ImagePart, ...]
    kind: str
    key: str
    caption_variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        if not isinstance(self.parts, tuple) or not 0 < len(self.parts) <= MAX_PARTS:
            raise InputError(
                f"a sample has a tuple of 1 to {MAX_PARTS} parts, found {type(self.parts).__name__} of {len(self.parts)}"
            )
        for part in self.parts:
            if not isinstance(part, TextPart | ImagePart):
                raise InputError(f"a part is a TextPart or an ImagePart, found {type(part).__name__}")
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, found {self.kind!r}")
        count = len(self.images)
        fewest, most = {"text": (0, 0), "pair": (1, 1), "edit": (2, count), "preference": (2, count)}.get(self.kind, (0, count))
        if not fewest <= count <= max(fewest, most):
            raise InputError(f"a sample of kind {self.kind!r} cannot have {count} images")
        _require_text("key", self.key)
        if not isinstance(self.caption_variants, Mapping) or len(self.caption_variants) > MAX_ITEMS:
            raise InputError(f"caption_variants must be a mapping of at most {MAX_ITEMS} names to captions")
        for name, caption in self.caption_variants.items():
            _require_text("a variant's name", name)
            _require_text(f"variant {name!r}", caption)
            placed = sorted(piece for piece in split_caption(caption) if isinstance(piece, int))
            if placed != list(range(count)) and not (count == 1 and not placed):
                raise InputError(f"variant {name!r} places the images {placed}, the sample has {count}")
        if not isinstance(self.metadata, Mapping):
            raise InputError(f"metadata must be a mapping, found {type(self.metadata).__name__}")
        _require_json(self.metadata, "metadata", MAX_META_DEPTH)

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    @property
    def texts(self) -> tuple[TextPart, ...]:
        return tuple(part for part in self.parts if isinstance(part, TextPart))

    def with_images(self, new_images: Sequence[ImagePart]) -> "Sample":
        """The sample with these in place of its images, in order."""
        remaining = iter(new_images)
        return dataclasses.replace(
            self, parts=tuple(next(remaining) if isinstance(part, ImagePart) else part for part in self.parts)
        )

    def with_caption(self, name: str) -> "Sample":
        """The sample with variant `name` as its caption. Images keep their loss flags; the text counts if any text did."""
        pieces = split_caption(self.caption_variants[name])
        if self.images and not any(isinstance(piece, int) for piece in pieces):
            pieces = [*pieces, 0] if isinstance(self.parts[0], TextPart) else [0, *pieces]
        loss = not self.texts or any(part.loss for part in self.texts)
        parts = tuple(self.images[piece] if isinstance(piece, int) else TextPart(piece, loss) for piece in pieces)
        return dataclasses.replace(self, parts=parts, caption_variants={})


def split_caption(caption: str) -> list[str | int]:
    """`"a <image_1> b"` -> `["a ", 1, " b"]`: text and image numbers in order. Blank text between images is dropped."""
    pieces = [int(piece) if i % 2 else piece for i, piece in enumerate(_PLACEHOLDER.split(caption))]
    return [piece for piece in pieces if isinstance(piece, int) or piece.strip()]


# --- msgpack ----------------------------------------------------------------------------------------------------------


def pack(sample: Sample) -> bytes:
    """The stored form. Equal samples give equal bytes (maps keep their order)."""
    parts = []
    for part in sample.parts:
        if isinstance(part, TextPart):
            parts.append({"text": part.text, "loss": part.loss})
        else:
            grid = None if part.grid is None else list(part.grid)
            size: dict[str, Any] = {"height": part.height, "width": part.width, "grid": grid, "loss": part.loss}
            parts.append({"image": part.data, "format": part.format} | size)
    value = {"v": VERSION, "key": sample.key, "kind": sample.kind, "parts": parts}
    value |= {"variants": dict(sample.caption_variants), "meta": dict(sample.metadata)}
    data = msgpack.packb(value, use_bin_type=True)
    if len(data) > MAX_RECORD_BYTES:
        raise InputError(f"sample {sample.key!r} takes {len(data)} bytes, more than {MAX_RECORD_BYTES}")
    return data


def unpack(data: bytes, name: str = "record") -> Sample:
    """Read a stored sample. Only the schema's types are admitted; `name` names the record in errors.

    Raises:
      DamagedDataError: not a version-1 sample (wrong bytes, keys, types or sizes).
      InputError: a sample of another schema version.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise DamagedDataError(f"{name}: {len(data)} bytes, more than a sample's {MAX_RECORD_BYTES}")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise DamagedDataError(f"{name}: not a stored sample ({str(error) or type(error).__name__})") from error
    if isinstance(value, dict) and _is_int(value.get("v")) and value["v"] != VERSION:
        raise InputError(f"{name}: sample schema version {value['v']}, this library reads {VERSION}")
    try:
        _require_keys(value, {"v", "key", "kind", "parts", "variants", "meta"})
        if not _is_int(value["v"]) or not isinstance(value["parts"], list):
            raise InputError("its version is not a number, or its parts are not a list")
        return Sample(tuple(map(_unpack_part, value["parts"])), value["kind"], value["key"], value["variants"], value["meta"])
    except (InputError, TypeError) as error:
        raise DamagedDataError(f"{name}: not a stored sample ({error})") from error


def _unpack_part(value: Any) -> TextPart | ImagePart:
    if isinstance(value, dict) and "text" in value:
        _require_keys(value, {"text", "loss"})
        return TextPart(value["text"], value["loss"])
    _require_keys(value, {"image", "format", "height", "width", "grid", "loss"})
    grid = tuple(value["grid"]) if isinstance(value["grid"], list) else value["grid"]
    return ImagePart(value["image"], value["format"], value["height"], value["width"], grid, value["loss"])


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"msgpack extension type {code}")


def _require_keys(value: Any, keys: set[str]) -> None:
    if not isinstance(value, dict) or set(value) != keys:
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise InputError(f"expected the keys {', '.join(sorted(keys))}, found {found[:200]}")


def _require_text(what: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"{what} must be a non-empty string, found {value!r}"[:200])
    if len(value) > MAX_TEXT:
        raise InputError(f"{what} has {len(value)} characters, more than {MAX_TEXT}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not valid Unicode (lone surrogate at {error.start})") from error


def _require_bool(value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(f"loss must be true or false, found {value!r}"[:200])


def _require_json(value: Any, where: str, depth: int) -> None:
    if depth < 0:
        raise InputError(f"metadata is nested deeper than {MAX_META_DEPTH}")
    if isinstance(value, Mapping | list):
        if len(value) > MAX_ITEMS:
            raise InputError(f"{where[:100]} has {len(value)} entries, more than {MAX_ITEMS}")
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(value, Mapping):
                _require_text(f"a name in {where[:100]}", name)
            _require_json(item, f"{where}.{name}", depth - 1)
    elif isinstance(value, str):
        if value:
            _require_text(where[:100], value)
    elif _is_int(value):
        if not -(1 << 63) <= value < 1 << 64:
            raise InputError(f"{where[:100]} does not fit into 64 bits")
    elif not (value is None or isinstance(value, bool | float)):
        raise InputError(f"{where[:100]} is not a JSON value: {type(value).__name__}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
