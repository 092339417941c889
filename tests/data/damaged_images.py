"""Image files taken apart into the pieces of their format, and put together again with pieces changed, left out, repeated or
exchanged. Checksums and lengths are made to fit, so that a change is read and not refused at once."""

import functools
import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6
XMP = b'<rdf:Description tiff:Orientation="8"/>'


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@functools.cache
def corpus(kind: str) -> tuple[bytes, ...]:
    """Files of one format in several modes, with and without metadata."""
    rgb = Image.fromarray(PIXELS)
    frames = {"save_all": True, "append_images": [rgb.rotate(90, expand=False)]}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
        text.add_text("prompt", "a cat", zip=True)
        modes = [rgb.convert(mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "1")]
        modes.append(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257))
        plain = [encoded(image, kind) for image in modes]
        rich = [encoded(image, kind, exif=EXIF, icc_profile=bytes(200), pnginfo=text) for image in modes[:4]]
        return (*plain, *rich, encoded(rgb.convert("P"), kind, transparency=3), encoded(rgb, kind, **frames))
    if kind == "JPEG":
        modes = [rgb.convert(mode) for mode in ("RGB", "L", "CMYK")]
        rich = encoded(rgb, kind, exif=EXIF, icc_profile=bytes(300), xmp=XMP, progressive=True)
        return (*(encoded(image, kind) for image in modes), rich, encoded(rgb, "MPO", **frames))
    if kind in ("WEBP", "AVIF"):
        rich = {"exif": EXIF, "icc_profile": bytes(200), "xmp": XMP}
        files = [encoded(rgb, kind, **rich), encoded(rgb.convert("RGBA"), kind), encoded(rgb, kind, **frames)]
        return (*files, encoded(rgb, kind, lossless=True)) if kind == "WEBP" else tuple(files)
    if kind == "GIF":
        return (encoded(rgb, kind), encoded(rgb.convert("P"), kind, transparency=2, comment=b"c"), encoded(rgb, kind, **frames))
    if kind == "TIFF":
        modes = [rgb.convert(mode) for mode in ("RGB", "L", "CMYK", "RGBA", "1", "YCbCr", "F", "I")]
        plain = [encoded(image, kind) for image in modes]
        packed = [encoded(rgb, kind, compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
        return (*plain, *packed, encoded(rgb, kind, exif=EXIF, icc_profile=bytes(100)), encoded(rgb, kind, **frames))
    return (encoded(rgb, "BMP"), encoded(rgb.convert("P"), "BMP"), encoded(rgb.convert("1"), "BMP"))


# --- taking apart and putting together --------------------------------------------------------------------------------


def png_pieces(data):
    place, pieces = 8, []
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        pieces.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return pieces


def png_join(pieces):
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in pieces)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_pieces(data):
    """(marker, payload) of each segment; everything from the first scan on is one piece."""
    place, pieces = 2, []
    while data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        pieces.append((data[place : place + 2], data[place + 4 : place + 2 + length]))
        place += 2 + length
    return [*pieces, (b"", data[place:])]


def jpeg_join(pieces):
    return b"\xff\xd8" + b"".join(k + struct.pack(">H", min(len(b) + 2, 65535)) + b if k else b for k, b in pieces)


def riff_pieces(data):
    place, pieces = 12, []
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        pieces.append((kind, data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return pieces


def riff_join(pieces):
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(b)) + b + b"\0" * (len(b) % 2) for k, b in pieces)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_pieces(data):
    """The directory's entries of 12 bytes; what comes before and after goes along as pieces without a name."""
    order = "<" if data[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, offset)
    first = offset + 2
    entries = [(b"entry", data[first + 12 * i : first + 12 * i + 12]) for i in range(count)]
    return [(b"", data[:first]), *entries, (b"", data[first + 12 * count :])]


def plain_pieces(data):
    """Pieces of 16 bytes, for formats that are read as they come."""
    return [(b"", data[i : i + 16]) for i in range(0, len(data), 16)]


def plain_join(pieces):
    return b"".join(body for _, body in pieces)


FORMS = {
    "PNG": (png_pieces, png_join),
    "JPEG": (jpeg_pieces, jpeg_join),
    "WEBP": (riff_pieces, riff_join),
    "TIFF": (tiff_pieces, plain_join),
    "GIF": (plain_pieces, plain_join),
    "BMP": (plain_pieces, plain_join),
    "AVIF": (plain_pieces, plain_join),
}
EXTREMES = (0, 1, 2, 3, 4, 8, 16, 255, 256, 4095, 16383, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def changed(draw, body: bytes) -> bytes:
    """A piece with a number put in, bytes put in, cut or repeated."""
    place = draw(st.integers(0, len(body)))
    what = draw(st.sampled_from(("number", "number", "bytes", "cut", "repeat", "zlib")))
    if what == "number":
        width = draw(st.sampled_from((1, 2, 4)))
        value = draw(st.sampled_from(EXTREMES)) % 256**width
        return body[:place] + value.to_bytes(width, draw(st.sampled_from(("big", "little")))) + body[place + width :]
    if what == "bytes":
        put = draw(st.binary(max_size=8))
        return body[:place] + put + body[place + (len(put) if draw(st.booleans()) else 0) :]
    if what == "cut":
        return body[:place]
    if what == "zlib":
        return body[:place] + zlib.compress(bytes(draw(st.sampled_from((0, 100, 1 << 20, 8 << 20)))), 9)
    return body[:place] + body[place:] * draw(st.integers(0, 40))


@st.composite
def damaged(draw, kind: str) -> bytes:
    take_apart, join = FORMS[kind]
    data = draw(st.sampled_from(corpus(kind)))
    pieces = take_apart(data)
    for _ in range(draw(st.integers(1, 4))):
        if not pieces:
            break
        i = draw(st.integers(0, len(pieces) - 1))
        name, body = pieces[i]
        what = draw(st.sampled_from(("change", "change", "change", "leave out", "repeat", "exchange", "from another file")))
        if what == "change":
            pieces[i] = (name, changed(draw, body))
        elif what == "leave out":
            del pieces[i]
        elif what == "repeat":
            pieces[i:i] = [pieces[i]] * draw(st.integers(1, 3))
        elif what == "exchange":
            j = draw(st.integers(0, len(pieces) - 1))
            pieces[i], pieces[j] = pieces[j], pieces[i]
        else:
            pieces[i] = draw(st.sampled_from(take_apart(draw(st.sampled_from(corpus(kind))))))
    whole = join(pieces)
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 4)) == 0 else whole
