"""What image files say beside their pixels: orientation, color profile, transparent color, text.

PNG chunks are read here, not by Pillow, which gives up a whole image for one text or profile chunk. Of all metadata at most
`MAX_METADATA` bytes are decompressed at a time.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image

MAX_METADATA = 4 << 20  # bytes of a color profile, or of all text of a file, after decompression
_MAX_CHUNKS = 200_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")

# The transposition that EXIF orientation asks for.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")


def orientation(info: Mapping[Any, Any]) -> int:
    """EXIF orientation 1..8 of a Pillow image's `info`: of its EXIF block or else of its XMP; 1 if absent or unreadable."""
    with contextlib.suppress(Exception):  # a broken EXIF block does not make the image unusable
        exif = Image.Exif()
        raw = info.get("Raw profile type exif") or info.get("Raw profile type APP1") or ""
        exif.load(info.get("exif") or _raw_profile(raw))
        value = exif.get(ExifTags.Base.Orientation)
        if value is not None:
            return value if value in TURNS else 1
    return xmp_orientation(info)


def xmp_orientation(info: Mapping[Any, Any]) -> int:
    """As `orientation`, of XMP alone."""
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    found = isinstance(xmp, bytes) and _XMP_ORIENTATION.search(xmp[:MAX_METADATA])
    return int(found[1]) if found else 1


def _raw_profile(text: str) -> bytes:
    """The bytes of a block that ImageMagick writes as text: a name, a length, and hexadecimal digits."""
    return bytes.fromhex("".join(text.split()[2:]))


# --- PNG chunks -------------------------------------------------------------------------------------------------------


def split_png(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The PNG file of the pixels alone (of an animation the default image), and the rest in Pillow's `info` form.

    The result's info holds what was found of: exif, xmp, icc_profile and Raw profile type exif/APP1; and of gray and RGB images
    the `transparency` (in the levels that Pillow decodes to), of which the file then says nothing.
    """
    pixels: list[bytes] = [_SIGNATURE]
    info: dict[str, Any] = {}
    transparency, started = None, False
    for kind, start, end in png_chunks(data):
        body = data[start:end]
        if kind in _PIXEL_CHUNKS or (kind == b"tRNS" and data[25:26] == b"\3"):
            pixels.append(data[start - 8 : end + 4])
            started |= kind == b"IDAT"
        elif kind == b"tRNS" and not started:
            transparency = body
        elif kind == b"eXIf":
            info.setdefault("exif", body)
        elif kind == b"iCCP":
            info.setdefault("icc_profile", _inflate(body.partition(b"\0")[2][1:]))
        elif kind in (b"iTXt", b"zTXt", b"tEXt") and body.partition(b"\0")[0].decode("latin-1") in _METADATA_KEYS:
            key, text = _text(kind, body, MAX_METADATA)
            info.setdefault(_METADATA_KEYS[key], text)
        if kind == b"IEND":
            break
    if transparency is not None:
        info["transparency"] = _transparent_level(data, transparency)
    return b"".join(pixels), {key: value for key, value in info.items() if value not in (None, b"", "")}


_METADATA_KEYS = {
    "XML:com.adobe.xmp": "xmp",
    "Raw profile type exif": "Raw profile type exif",
    "Raw profile type APP1": "Raw profile type APP1",
}


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the whole chunks of a PNG file, start and end of the chunk's data. ValueError for too many."""
    place = len(_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if place + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, place)
        start, place = place + 8, place + 12 + length
        if kind == b"IDAT" and place > len(data):  # cut: the decoder says whether the pixels suffice
            yield kind, start, len(data)
            return
        if place > len(data) + 4:  # the last checksum may be missing
            return
        yield kind, start, start + length
    raise ValueError(f"more than {_MAX_CHUNKS} chunks")


def png_texts(data: bytes) -> dict[str, str]:
    """All text of a PNG file by keyword, up to `MAX_METADATA` bytes in all."""
    texts: dict[str, str] = {}
    left = MAX_METADATA
    for kind, start, end in png_chunks(data):
        if kind in (b"iTXt", b"zTXt", b"tEXt") and left > 0:
            key, value = _text(kind, data[start:end], left)
            if value is not None:
                texts[key] = value
                left -= len(value)
    return texts


def _text(kind: bytes, body: bytes, limit: int) -> tuple[str, str | None]:
    """Keyword and text of a chunk; None for text that cannot be read or is longer than `limit` bytes."""
    key, _, rest = body.partition(b"\0")
    value: bytes | None = rest
    encoding = "latin-1"
    if kind == b"zTXt":
        value = _inflate(rest[1:], limit)
    elif kind == b"iTXt":
        encoding, text = "utf-8", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        value = _inflate(text, limit) if rest[:1] == b"\1" else text
    if value is None or len(value) > limit:
        return key.decode("latin-1"), None
    return key.decode("latin-1"), value.decode(encoding, "replace")


def _inflate(data: bytes, limit: int = MAX_METADATA) -> bytes | None:
    """Decompressed data; None if it is damaged or longer than `limit` bytes."""
    try:
        decompressor = zlib.decompressobj()
        value = decompressor.decompress(data, limit)
        return value if decompressor.eof else None
    except zlib.error:
        return None


def _transparent_level(data: bytes, transparency: bytes) -> int | tuple[int, ...] | None:
    """What tRNS of a gray or RGB image calls transparent, in the levels Pillow decodes to: 16-bit gray, else 8 bits."""
    depth, kind = data[24], data[25]
    if kind == 0 and len(transparency) >= 2:
        level = struct.unpack_from(">H", transparency)[0]
        return level if depth == 16 else (level & (2**depth - 1)) * 255 // (2**depth - 1)
    if kind == 2 and len(transparency) >= 6:
        levels = struct.unpack_from(">3H", transparency)
        return tuple(level >> 8 if depth == 16 else level & 255 for level in levels)
    return None
