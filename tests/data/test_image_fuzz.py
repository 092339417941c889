"""Untrusted image files: whatever their bytes, an image or one line that names the file, in bounded time and memory.

The environment variable NEXTSTEP_FUZZ_EXAMPLES says how many to try of each format.
"""

import datetime
import functools
import os
import resource
import struct
import zlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nextstep_jax.data import images
from nextstep_jax.data.image_output import encode_image, read_record
from nextstep_jax.errors import DamagedDataError, InputError
from tests.data.damaged_images import FORMS, PIXELS, changed, corpus, damaged, png_join, riff_join

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of corrupt EXIF and truncated TIFF

EXAMPLES = int(os.environ.get("NEXTSTEP_FUZZ_EXAMPLES", 150))
MAX_GROWTH = 300 << 20  # bytes that trying all examples may add to the process
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=datetime.timedelta(seconds=5),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


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
