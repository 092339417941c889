"""Images: what loads, what is refused and how, buckets, resizing, float levels."""

import io
import math
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nextstep_jax.data import images
from nextstep_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
Y, X = np.mgrid[:24, :40]
SMOOTH = np.stack([5 * X + 20, 9 * Y + 20, 230 - 3 * X - 2 * Y], -1).astype(np.uint8)  # what lossy formats keep


def encoded(image, format="PNG", **options):
    data = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(data, format, **options)
    return data.getvalue()


LOSSLESS = ("PNG", "TIFF", "BMP")
FILES = {kind: encoded(PIXELS, kind) for kind in LOSSLESS} | {
    kind: encoded(SMOOTH, kind, **({} if kind == "GIF" else {"quality": 90})) for kind in ("JPEG", "WEBP", "AVIF", "GIF")
}


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_a_whole_file_loads_as_rgb(kind, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(FILES[kind])
    image = images.load(path)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert images.probe(FILES[kind]) == (kind.lower(), 24, 40)
    if kind in LOSSLESS:
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
    else:
        assert np.abs(np.asarray(image, int) - SMOOTH).mean() < (6 if kind == "GIF" else 3)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_one_line_naming_it(kind, fraction, tmp_path):
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(FILES[kind][: int(len(FILES[kind]) * fraction)])
    with pytest.raises(InputError, match=f"cut.{kind}") as caught:
        images.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n", b"RIFF0000WAVE", bytes(1000)])
def test_what_is_not_an_image_is_refused(data):
    with pytest.raises(images.ImageError, match="^thing: "):
        images.load(data, "thing")
    with pytest.raises(images.ImageError, match="^thing: "):
        images.probe(data, "thing")


def test_a_path_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.png", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match=path.name):
            images.load(path)


def png_claiming(width, height, extra=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + end


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (images.MAX_PIXELS + 1, 1)])
def test_a_decompression_bomb_is_refused_by_its_header_and_without_a_warning(width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (images.load, images.probe):
            with pytest.raises(images.SizeError, match=rf"bomb: {width}x{height}"):
                read(png_claiming(width, height), "bomb")


def test_a_bomb_in_any_other_format_is_refused():
    """Their headers claim sizes their files cannot back; in a GIF the frame may claim more than the canvas."""
    bombs = {kind: bytearray(data) for kind, data in FILES.items() if kind != "PNG"}
    bombs["AVIF"][(i := bombs["AVIF"].index(b"ispe") + 8) : i + 8] = struct.pack(">II", 16000, 16000)
    for tag in (256, 257):  # width and height
        place = bombs["TIFF"].index(struct.pack("<HHI", tag, 4, 1))
        bombs["TIFF"][place + 8 : place + 12] = struct.pack("<I", 65535)
    bombs["JPEG"][(i := bombs["JPEG"].index(b"\xff\xc0") + 5) : i + 4] = struct.pack(">HH", 65500, 65500)
    bombs["BMP"][18:26] = struct.pack("<ii", 65535, 65535)
    table = 3 << (FILES["GIF"][10] % 8 + 1)
    bombs["GIF"][(i := bombs["GIF"].index(b",", 13 + table) + 5) : i + 4] = struct.pack("<HH", 65535, 65535)
    frames = [Image.new("RGBA", (8, 8), color) for color in ("red", "blue")]
    bombs["WEBP"] = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    bombs["WEBP"][(i := bombs["WEBP"].index(b"VP8X") + 12) : i + 6] = 2 * (16382).to_bytes(3, "little")
    for kind, data in bombs.items():
        with pytest.raises(images.ImageError, match=f"^{kind}: .*pixels"):
            images.load(bytes(data), kind)


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    (tmp_path / "large.png").write_bytes(FILES["PNG"])
    with pytest.raises(InputError, match="large.png.*more than the 100"):
        images.load(tmp_path / "large.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied_and_the_header_agrees(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIXELS, kind, exif=exif)
    image = images.load(data)
    np.testing.assert_array_equal(image, ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert images.probe(data)[1:] == (image.height, image.width) == ((40, 24) if orientation >= 5 else (24, 40))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("cover", "reduction"),
    [((30, 30), 4), ((31, 30), 2), ((60, 20), 2), ((20, 80), 2), ((61, 20), 1), ((240, 320), 1), ((500, 9), 1)],
)
def test_a_jpeg_is_decoded_no_larger_than_needed_and_looks_the_same(cover, reduction, orientation):
    y, x = np.mgrid[:240, :320] / 40
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(y * x / 4)], -1)
    pixels = (127 + 120 * waves).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels, "JPEG", quality=95, exif=exif)
    cover = cover if orientation == 1 else cover[::-1]
    whole, reduced = images.load(data), images.load(data, cover=cover)
    assert [side * reduction for side in reduced.size] == list(whole.size)
    first, second = (np.asarray(images.resize_crop(image, *cover)).astype(int) for image in (whole, reduced))
    assert abs(first - second).mean() < 1
    np.testing.assert_array_equal(images.load(encoded(pixels), cover=cover), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored():
    data = encoded(PIXELS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert images.load(data).size == (40, 24)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert np.asarray(images.load(data))[8, 8].tolist() == [255, 0, 0]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", (256, 512, 768, 1024))
def test_the_seventeen_buckets(area):
    sizes = images.buckets(area)
    assert len(set(sizes)) == 17
    assert {(w, h) for h, w in sizes} == set(sizes)  # mirrors
    assert all(h % 16 == w % 16 == 0 and 0.96 * area**2 <= h * w <= area**2 for h, w in sizes)
    assert sizes[0] == (area // 2, area * 2)
    assert sizes[8] == (area, area)


def test_small_areas_are_multiples_of_sixteen():
    assert images.buckets(64)[8] == (64, 64)
    assert set(images.buckets(16)) == {(16, 16), (16, 32), (32, 16)}
    for area in (0, 8, -16, 100):
        with pytest.raises(InputError, match="multiple of 16"):
            images.buckets(area)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from((256, 512, 768, 1024)))
def test_the_bucket_is_the_nearest_in_ratio_and_mirrors(width, height, area):
    h, w = images.bucket_for(width=width, height=height, area=area)
    nearest = min(abs(math.log((bh / bw) / (height / width))) for bh, bw in images.BUCKETS)
    assert abs(math.log((h / w) / (height / width))) == pytest.approx(nearest, abs=1e-9)
    assert images.bucket_for(width=height, height=width, area=area) == (w, h)
    assert images.bucket_for(width=w, height=h, area=area) == (h, w)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("1:1", (16, 16)), ("16:9", (12, 21)), ("9:16", (21, 12)), ("4:3", (14, 18)), ("4:1", (8, 32)), ("2.39:1", (10, 25))],
)
def test_aspect_names(name, grid):
    assert images.bucket_for_aspect(name, 512) == (32 * grid[0], 32 * grid[1])


@pytest.mark.parametrize(
    "name", ["", "16", "16:", "0:1", "1:0", "-1:1", "a:b", "5:1", "1:5", "1e3:1", "nan:1", "1:1:1", "16/9"]
)
def test_bad_aspect_names(name):
    with pytest.raises(InputError, match="aspect must be width:height"):
        images.bucket_for_aspect(name)


def test_resize_keeps_the_center_and_does_not_distort():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste(Image.new("RGB", (100, 100), "lime"), (100, 0))
    square = np.asarray(images.resize_crop(wide, 64, 64))
    assert square.shape == (64, 64, 3)
    np.testing.assert_array_equal(square[:, 4:-4], np.broadcast_to(np.array([0, 255, 0], np.uint8), (64, 56, 3)))
    tall = np.asarray(images.resize_crop(wide.rotate(90, expand=True), 64, 64))
    np.testing.assert_array_equal(tall[4:-4], np.broadcast_to(np.array([0, 255, 0], np.uint8), (56, 64, 3)))
    disc = Image.fromarray(np.where(np.hypot(*np.mgrid[-100:100, -200:200]) < 60, 255, 0).astype(np.uint8)).convert("RGB")
    mask = np.asarray(images.resize_crop(disc, 96, 160))[..., 0] > 127
    assert abs(int(mask.any(0).sum()) - int(mask.any(1).sum())) <= 1


def test_resizing_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(images.resize_crop(Image.fromarray(PIXELS), 24, 40), PIXELS)


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_levels_survive_floats():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = images.to_float(levels)
    assert (values.dtype, values.min(), values.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(images.to_uint8(values), levels)
    assert images.to_uint8(np.array([-5, 0.0, 5], np.float32)).tolist() == [0, 128, 255]
    with pytest.raises(InputError, match="2 values that are not finite"):
        images.to_uint8(np.array([0, np.nan, np.inf]))
