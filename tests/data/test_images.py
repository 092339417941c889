"""Images: what loads, what is refused and how, buckets, resizing, float levels, PNG files."""

import io
import math
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nextstep_jax.data import images
from nextstep_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def encoded(image, format="PNG", **options):
    data = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(data, format, **options)
    return data.getvalue()


FILES = {kind: encoded(PIXELS, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")}


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_a_whole_file_loads_as_rgb(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(FILES[kind])
    image = images.load(path)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert images.probe(FILES[kind]) == (kind.lower(), 24, 40)
    if kind in ("PNG", "BMP"):
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
    else:
        assert np.abs(np.asarray(image, int) - PIXELS).mean() < 60


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
    bombs["JPEG"][(i := bombs["JPEG"].index(b"\xff\xc0") + 5) : i + 4] = struct.pack(">HH", 65500, 65500)
    bombs["BMP"][18:26] = struct.pack("<ii", 65535, 65535)
    bombs["GIF"][(i := bombs["GIF"].index(b",", 13 + 768) + 5) : i + 4] = struct.pack("<HH", 65535, 65535)
    frames = [Image.new("RGBA", (8, 8), color) for color in ("red", "blue")]
    bombs["WEBP"] = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    bombs["WEBP"][(i := bombs["WEBP"].index(b"VP8X") + 12) : i + 6] = 2 * (16382).to_bytes(3, "little")
    for kind, data in bombs.items():
        with pytest.raises(images.ImageError, match=f"^{kind}: .*pixels"):
            images.load(bytes(data), kind)


def test_a_bomb_of_text_is_refused():
    text = b"k\0\0" + zlib.compress(bytes(64 << 20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    with pytest.raises(images.ImageError, match="^bomb: "):
        images.load(png_claiming(8, 8, chunk), "bomb")


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    (tmp_path / "large.png").write_bytes(FILES["PNG"])
    with pytest.raises(InputError, match="large.png.*more than the 100"):
        images.load(tmp_path / "large.png")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(data):
    kind = data.draw(st.sampled_from(sorted(FILES)))
    damaged = bytearray(FILES[kind])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        damaged[place] = value
    try:
        assert images.load(bytes(damaged)).mode == "RGB"
    except images.ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
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


def test_transparency_is_put_on_white():
    rgba = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    rgba[:, :20, 3] = 0
    expected = np.where(rgba[..., 3:] == 0, 255, PIXELS)
    np.testing.assert_array_equal(images.load(encoded(rgba)), expected)
    gray = Image.fromarray(np.dstack([PIXELS[..., 0], rgba[..., 3]]), "LA")
    np.testing.assert_array_equal(
        images.load(encoded(gray)), np.repeat(np.where(rgba[..., 3] == 0, 255, PIXELS[..., 0])[..., None], 3, 2)
    )
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(images.load(encoded(palette, transparency=0)), [[[255] * 3, [40, 50, 60]]])


def test_sixteen_bit_grey_keeps_its_range():
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    np.testing.assert_array_equal(np.asarray(images.load(encoded(levels)))[..., 1], levels >> 8)


def test_other_modes():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.asarray(images.load(encoded(cmyk, "JPEG")), int) - [255, 0, 0]).max() <= 3
    np.testing.assert_array_equal(images.load(encoded(Image.new("1", (4, 4), 1))), np.full((4, 4, 3), 255))
    np.testing.assert_array_equal(images.load(encoded(Image.new("L", (4, 4), 7))), np.full((4, 4, 3), 7))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert np.asarray(images.load(data))[8, 8].tolist() == [255, 0, 0]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", images.AREAS)
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


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(images.AREAS))
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


def test_area_for():
    assert [images.area_for(width=s, height=s) for s in (10, 256, 511, 512, 800, 5000)] == [256, 256, 256, 512, 768, 1024]


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_valid_sizes(width, height):
    for found, side in zip(images.valid_size(width=width, height=height), (height, width), strict=True):
        assert found % 16 == 0 and (abs(found - side) <= 8 or (found == 16 and side < 16))
    h, w = images.valid_size(width=width, height=height, max_pixels=512 * 512)
    assert h % 16 == w % 16 == 0
    if width * height > 512 * 512:
        assert h * w <= 512 * 512 or 16 in (h, w)
    else:
        assert (h, w) == images.valid_size(width=width, height=height)


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


# --- arrays and files -------------------------------------------------------------------------------------------------


def test_levels_survive_floats():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = images.to_float(levels)
    assert (values.dtype, values.min(), values.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(images.to_uint8(values), levels)
    assert images.to_uint8(np.array([-5, 0.0, 5], np.float32)).tolist() == [0, 128, 255]
    with pytest.raises(InputError, match="2 values that are not finite"):
        images.to_uint8(np.array([0, np.nan, np.inf]))


def test_png_with_metadata(tmp_path):
    path = tmp_path / "out.png"
    metadata = {"prompt": "红色 circle <&> ☃", "seed": "7"}
    images.save_png(path, PIXELS, metadata)
    with Image.open(path) as image:
        assert image.text == metadata
        np.testing.assert_array_equal(image, PIXELS)
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_png_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    images.save_png(path, PIXELS)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"out\.png: cannot be written \(No space left"):
        images.save_png(path, 255 - PIXELS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.png"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "no" / "out.png", tmp_path / "file" / "out.png", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            images.save_png(bad, PIXELS)


@pytest.mark.parametrize("bad", [PIXELS[..., 0], PIXELS.astype(np.float32), PIXELS[:0], PIXELS[..., :2]])
def test_only_rgb_levels_become_a_png(bad):
    with pytest.raises(InputError, match=r"\[height, width, 3\] of uint8"):
        images.encode_png(bad)
