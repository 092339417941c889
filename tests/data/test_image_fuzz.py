"""Untrusted image files: whatever their bytes, an image or one line that names the file, in bounded time and memory.

Files are taken apart into the pieces of their format, and put together again with pieces changed, left out, repeated or
exchanged. Checksums and lengths are made to fit, so that a change is read and not refused at once. The environment variable
NEXTSTEP_FUZZ_EXAMPLES says how many to try of each format.
"""

import datetime
import functools
import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from nextstep_jax.data import images
from nextstep_jax.data.image_output import encode_image, read_record
from nextstep_jax.errors import DamagedDataError, InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of corrupt EXIF and truncated TIFF

EXAMPLES = int(os.environ.get("NEXTSTEP_FUZZ_EXAMPLES", 150))
MAX_GROWTH = 300 << 20  # bytes that trying all examples may add to the process
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=datetime.timedelta(seconds=5),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

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


# --- seeds ------------------------------------------------------------------------------------------------------------


def put(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def ihdr(width=13, height=9, depth=8, kind=2, interlace=0, body=b"\0" * 400, *more):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)
    return png_join([(b"IHDR", header), *more, (b"IDAT", zlib.compress(body)), (b"IEND", b"")])


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A directory of (tag, type, count, value) and eight bytes of pixels."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 8) + bytes(8)


SIZE = ((256, 4, 1, 4), (257, 4, 1, 2), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (278, 4, 1, 2), (279, 4, 1, 8))
JPEG = corpus("JPEG")[0]
FRAME = JPEG.index(b"\xff\xc0")
SEEDS = {
    "PNG": (
        ihdr(0, 9),
        ihdr(2**31 - 1, 2**31 - 1),
        ihdr(1 << 20, 1),
        ihdr(depth=3),
        ihdr(depth=16, kind=3),
        ihdr(kind=3),  # no palette
        ihdr(8, 8, 8, 3, 0, bytes([0] + [255] * 8) * 8, (b"PLTE", b"\1\2\3")),  # levels beyond the palette
        ihdr(8, 8, 1, 0, 1),
        put(ihdr(), 8, struct.pack(">I", 2**32 - 1)),
        ihdr(13, 9, 8, 2, 0, bytes(400), (b"iCCP", b""), (b"iCCP", b"x\0\0" + zlib.compress(bytes(8 << 20)))),
        ihdr(13, 9, 8, 2, 0, bytes(400), (b"eXIf", b"II*\0\xff\xff\xff\xff"), (b"tRNS", b"\0")),
        ihdr(13, 9, 8, 2, 0, bytes(400), (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\nzz"))),
        ihdr(13, 9, 8, 2, 0, bytes(400), (b"acTL", bytes(8)), (b"fcTL", b"\xff" * 26)),
    ),
    "JPEG": (
        put(JPEG, FRAME + 5, struct.pack(">HH", 65500, 65500)),
        put(JPEG, FRAME + 5, bytes(4)),
        put(JPEG, FRAME + 9, b"\xff"),
        put(JPEG, FRAME + 2, b"\0\0"),
        JPEG[:2] + b"\xff\xe1\0\2" * 1000 + JPEG[2:],
        JPEG[:2] + b"\xff\xe2\xff\xff" + b"ICC_PROFILE\0\1\2" + bytes(65519) + JPEG[2:],
        JPEG[:2] + b"\xff\xe1\0\x10Exif\0\0II*\0\0\0\0\0" + JPEG[2:],
    ),
    "TIFF": (
        tiff(*SIZE),
        tiff(*SIZE[:-1], (279, 4, 2**31, 8)),
        tiff((256, 4, 1, 2**31 - 1), *SIZE[1:]),
        tiff(*SIZE[:4], (273, 4, 1, 2**32 - 1), *SIZE[5:]),
        tiff(*SIZE[:5], (278, 4, 1, 0), SIZE[6]),
        tiff(*SIZE[:2], (258, 3, 1, 64), *SIZE[3:]),
        tiff(*SIZE[:2], (258, 3, 1, 8), (259, 3, 1, 5), *SIZE[3:]),
        tiff(*SIZE, (330, 4, 1, 8)),  # a directory within itself
        tiff(),
    ),
    "WEBP": (
        riff_join([(b"VP8X", b"\x10\0\0\0" + b"\xff" * 6)]),
        riff_join([(b"VP8 ", b"")]),
        put(corpus("WEBP")[0], 4, b"\xff\xff\xff\xff"),
    ),
    "GIF": (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0),
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x0c\0;",
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"!\xfe" + (b"\xff" + b"c" * 255) * 4000,
    ),
    "BMP": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, -4, 4, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(48),
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 4, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0) + bytes(48),
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 4, 4, 1, 8, 1, 0, 0, 0, 2**31 - 1, 0) + bytes(48),
    ),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0avif", put(corpus("AVIF")[0], 0, b"\xff" * 4)),
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """A megapixel at most, so that what a header claims is soon too much; and memory is watched."""
    monkeypatch.setattr(images, "MAX_PIXELS", 1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH


def check(data: bytes) -> None:
    found = {}
    for name, read in (
        ("load", images.load),
        ("probe", images.probe),
        ("reduced", functools.partial(images.load, cover=(2, 2))),
    ):
        try:
            found[name] = read(data, "fuzzed")
        except (InputError, DamagedDataError) as error:
            assert str(error).startswith("fuzzed: ") and "\n" not in str(error)
    if "load" in found:
        assert found["load"].mode == "RGB"
        assert found["probe"][1:] == (found["load"].height, found["load"].width)


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds(kind):
    for data in SEEDS[kind]:
        check(data)


@fuzz
@given(damaged("PNG"))
def test_png(data):
    check(data)


@fuzz
@given(damaged("JPEG"))
def test_jpeg(data):
    check(data)


@fuzz
@given(damaged("WEBP"))
def test_webp(data):
    check(data)


@fuzz
@given(damaged("GIF"))
def test_gif(data):
    check(data)


@fuzz
@given(damaged("TIFF"))
def test_tiff(data):
    check(data)


@fuzz
@given(st.one_of(damaged("BMP"), damaged("AVIF")))
def test_bmp_and_avif(data):
    check(data)


@fuzz
@given(st.sampled_from(tuple(FORMS)), st.binary(max_size=200))
@example("PNG", b"")
@example("GIF", bytes(7))
def test_a_signature_and_anything(kind, data):
    check(corpus(kind)[0][:12] + data)


@fuzz
@given(st.sampled_from(("PNG", "JPEG", "WEBP")), st.data())
def test_records(tmp_path, kind, data):
    """What another program, or a fault, left in place of a record is no record, or a dict."""
    take_apart, join = FORMS[kind]
    pieces = take_apart(encode_image(PIXELS, kind, {"prompt": "a cat", "seed": 3, "settings": {"cfg": [1.5]}}))
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(pieces) - 1))
        pieces[i] = (pieces[i][0], changed(data.draw, pieces[i][1]))
    (tmp_path / "image").write_bytes(join(pieces))
    try:
        assert isinstance(read_record(tmp_path / "image"), dict)
    except InputError as error:
        assert "image: " in str(error) and "\n" not in str(error)
