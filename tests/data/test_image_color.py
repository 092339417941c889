"""What a viewer shows: modes, profiles, transparency and orientation of all formats, against Pillow and ImageCms."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from nextstep_jax.data import images
from nextstep_jax.errors import InputError

HEIGHT, WIDTH = 12, 20
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([12 * X + 5, 20 * Y + 10, 240 - 6 * X - 8 * Y], -1).astype(np.uint8)
GRAY = (12 * X + Y).astype(np.uint8)
ALPHA = np.where(X < 6, 0, np.where(X < 12, 100, 255)).astype(np.uint8)
CMYK = np.dstack([RGB // 2, GRAY // 4])


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(data, kind, **options)
    return data.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(levels, depth, kind, *, before=b"", after=b""):
    """A PNG written by hand; levels [height, width] or [height, width, channels] of `depth` bits."""
    levels = levels.reshape(levels.shape[0], -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in levels]
    else:
        bits = (levels[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", levels.shape[1] // channels, len(levels), depth, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + after + chunk(b"IEND", b"")


def on_white(color, alpha):
    rgba = Image.fromarray(np.dstack([color, alpha]), "RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def grays(levels):
    return np.repeat(levels[..., None], 3, 2)


def loaded(source):
    image = images.load(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def check(data, expected, tolerance=0):
    """The file's bytes, and what Pillow opens of them, load as expected; the header agrees."""
    for source in (data, Image.open(io.BytesIO(data)), io.BytesIO(data)):
        found = loaded(source)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance
    assert images.probe(data)[1:] == expected.shape[:2]


# --- profiles ---------------------------------------------------------------------------------------------------------


def profile(primaries, gamma, space=b"RGB "):
    """A small ICC profile: primaries in XYZ (D50) and one gamma; for gray only the curve."""

    def number(value):
        return struct.pack(">i", round(value * 65536))

    white = b"".join(map(number, (0.9642, 1, 0.8249)))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(78), b"wtpt": b"XYZ \0\0\0\0" + white}
    tags |= {b"cprt": b"text\0\0\0\0none\0"}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {
            name: b"XYZ \0\0\0\0" + b"".join(map(number, p))
            for name, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
        }
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    data = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I4sI4s4s4s", 128 + len(data), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + data


P3 = profile([(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)], 2.2)
ADOBE = profile([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], 2.2)
LINEAR_GRAY = profile(None, 1.0, b"GRAY")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def through(icc, image):
    """What ImageCms makes of an image with a profile."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return np.asarray(ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"))


@pytest.mark.parametrize("icc", [P3, ADOBE], ids=["P3", "Adobe"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_applied_in_every_format(kind, icc):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = encoded(RGB, kind, icc_profile=icc, **options)
    expected = through(icc, Image.open(io.BytesIO(data)))
    assert np.abs(expected.astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() > 15
    check(data, expected)


def test_a_profile_is_applied_in_every_mode():
    rgba = np.dstack([RGB, ALPHA])
    check(encoded(rgba, icc_profile=P3), on_white(through(P3, Image.fromarray(RGB)), ALPHA))
    palette = Image.fromarray(RGB).quantize(16)
    check(encoded(palette, icc_profile=P3), through(P3, palette.convert("RGB")))
    check(encoded(GRAY, icc_profile=LINEAR_GRAY), through(LINEAR_GRAY, Image.fromarray(GRAY)))
    check(encoded(GRAY, icc_profile=P3), through(P3, Image.fromarray(GRAY).convert("RGB")))
    la = Image.fromarray(np.dstack([GRAY, ALPHA]), "LA")
    check(encoded(la, icc_profile=LINEAR_GRAY), on_white(through(LINEAR_GRAY, Image.fromarray(GRAY)), ALPHA))
    levels = GRAY.astype(np.uint16) * 257
    check(encoded(levels, icc_profile=LINEAR_GRAY), through(LINEAR_GRAY, Image.fromarray(GRAY)))


def test_the_reduced_way_applies_the_profile_too():
    big = np.repeat(np.repeat(RGB, 32, 0), 32, 1)
    data = encoded(big, "JPEG", quality=95, icc_profile=P3)
    reduced = images.load(data, cover=(24, 40))
    assert reduced.size == (80, 48)
    whole = np.asarray(images.resize_crop(images.load(data), 24, 40)).astype(int)
    assert np.abs(np.asarray(images.resize_crop(reduced, 24, 40)) - whole).mean() < 1


@pytest.mark.parametrize(
    "icc", [SRGB, b"", b"garbage", P3[:200], P3[:128] + bytes(60), bytes(5000), LINEAR_GRAY, P3[:16] + b"CMYK" + P3[20:]]
)
def test_a_profile_of_srgb_or_a_broken_or_unfitting_one_changes_nothing(icc):
    check(encoded(RGB, icc_profile=icc), RGB)


def test_profiles_do_not_get_mixed_up():
    for icc in (P3, ADOBE, P3, SRGB, ADOBE):
        expected = RGB if icc is SRGB else through(icc, Image.fromarray(RGB))
        np.testing.assert_array_equal(loaded(encoded(RGB, icc_profile=icc)), expected)


# --- modes ------------------------------------------------------------------------------------------------------------


def test_color_modes():
    cmyk = Image.fromarray(CMYK, "CMYK")
    for kind, tolerance in (("JPEG", 0), ("TIFF", 0)):
        data = encoded(cmyk, kind, **({"quality": 95} if kind == "JPEG" else {}))
        check(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), tolerance)
    assert np.abs(loaded(encoded(cmyk, "JPEG", quality=95)) - np.asarray(cmyk.convert("RGB"))).max() <= 12
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(RGB // 2 + 64), to_lab)
    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    expected = np.asarray(ImageCms.applyTransform(lab, to_srgb))
    check(encoded(lab, "TIFF"), expected, 1)  # with the profile that ImageCms left in it
    lab.info.clear()
    check(encoded(lab, "TIFF"), expected)
    ycc = Image.fromarray(RGB).convert("YCbCr")
    check(encoded(ycc, "TIFF"), np.asarray(ycc.convert("RGB")))
    for image in (ycc, Image.fromarray(RGB).convert("HSV"), lab):
        assert np.abs(loaded(image) - (RGB // 2 + 64 if image is lab else RGB)).max() <= 9


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [None, 0, 1])
def test_gray_png_of_every_depth(bits, transparent):
    levels = (X + Y) % 2**bits
    color = grays((levels * 255 // (2**bits - 1)).astype(np.uint8))
    before = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    alpha = np.where(levels == transparent, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(loaded(png(levels, bits, 0, before=before)), on_white(color, alpha))


def test_sixteen_bits():
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = grays((levels >> 8).astype(np.uint8))
    check(encoded(levels), expected)
    check(encoded(levels, "TIFF"), expected)
    check(encoded(Image.fromarray(levels.astype(">u2")), "TIFF"), expected)
    clear = chunk(b"tRNS", struct.pack(">H", levels[3, 4]))
    holed = expected.copy()
    holed[3, 4] = 255
    check(png(levels, 16, 0, before=clear), holed)
    color = np.stack([levels, levels[::-1], levels[:, ::-1]], -1)
    expected = (color >> 8).astype(np.uint8)
    check(png(color, 16, 2), expected)
    holed = np.where((expected == expected[3, 4]).all(-1, keepdims=True), 255, expected)
    check(png(color, 16, 2, before=chunk(b"tRNS", struct.pack(">3H", *color[3, 4]))), holed)
    alpha = ALPHA.astype(np.uint16) * 257
    check(png(np.dstack([levels, alpha]), 16, 4), on_white(grays((levels >> 8).astype(np.uint8)), ALPHA))
    check(png(np.dstack([color, alpha]), 16, 6), on_white(expected, ALPHA))
    inverted = bytearray(encoded(levels, "TIFF"))
    place = inverted.index(struct.pack("<HH", 262, 3))
    inverted[place + 8 : place + 10] = struct.pack("<H", 0)  # the lowest level is white
    check(bytes(inverted), grays((~levels >> 8).astype(np.uint8)))


def test_32_bits_and_floats_by_their_range():
    unit = np.linspace(0, 1, HEIGHT * WIDTH).astype(np.float32).reshape(HEIGHT, WIDTH)
    check(encoded(unit, "TIFF"), grays(np.round(255 * unit).astype(np.uint8)))
    check(encoded(255 * unit, "TIFF"), grays(np.round(255 * unit).astype(np.uint8)))
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.int32).reshape(HEIGHT, WIDTH)
    check(encoded(levels, "TIFF"), grays((levels >> 8).astype(np.uint8)))
    check(encoded(GRAY.astype(np.int32), "TIFF"), grays(GRAY))
    for bad in (unit * 1e6, unit - 0.5, unit * np.nan, levels - 70000):
        with pytest.raises(InputError, match="^scan: .*gray levels from .* expected within 0 to 1, 255 or 65535"):
            images.load(encoded(bad, "TIFF"), "scan")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_opacity(kind):
    data = encoded(np.dstack([RGB, ALPHA]), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    if kind == "AVIF":
        check(data, on_white(*np.split(np.asarray(Image.open(io.BytesIO(data))), [3], 2)))
        assert np.abs(loaded(data) - on_white(RGB, ALPHA)).max() < 40
    else:
        check(data, on_white(RGB, ALPHA))
    if kind in ("PNG", "TIFF"):
        check(encoded(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"), kind), on_white(grays(GRAY), ALPHA))


def test_transparent_colors():
    check(encoded(RGB, transparency=tuple(map(int, RGB[2, 3]))), np.where((RGB[2, 3] == RGB).all(-1, keepdims=True), 255, RGB))
    palette = Image.fromarray((X // 4).astype(np.uint8), "P")
    palette.putpalette(list(range(10, 25)))
    colors = np.arange(10, 25, dtype=np.uint8).reshape(5, 3)[X // 4]
    check(encoded(palette), colors)
    check(encoded(palette, transparency=2), np.where((X // 4 == 2)[..., None], 255, colors))
    some = bytes([255, 0, 100, 255, 30])
    check(encoded(palette, transparency=some), on_white(colors, np.frombuffer(some, np.uint8)[X // 4]))
    check(encoded(palette, "GIF", transparency=1), np.where((X // 4 == 1)[..., None], 255, colors))
    pa = palette.convert("PA")
    pa.putalpha(Image.fromarray(ALPHA))
    np.testing.assert_array_equal(loaded(pa), on_white(colors, ALPHA))
    assert loaded(Image.fromarray(np.dstack([RGB, ALPHA]), "RGBA").convert("RGBa")).shape == (HEIGHT, WIDTH, 3)
    # Too short to name a color, and after the pixels: neither makes anything transparent.
    np.testing.assert_array_equal(loaded(png(GRAY, 8, 0, before=chunk(b"tRNS", b"\0"))), grays(GRAY))
    np.testing.assert_array_equal(loaded(png(GRAY, 8, 0, after=chunk(b"tRNS", b"\0\0"))), grays(GRAY))


# --- orientation ------------------------------------------------------------------------------------------------------

TURNED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: RGB[::-1].transpose(1, 0, 2),
    7: RGB[::-1, ::-1].transpose(1, 0, 2),
    8: RGB[:, ::-1].transpose(1, 0, 2),
}


def exif(value):
    block = Image.Exif()
    block[0x0112] = value
    return block


def xmp(value, form='tiff:Orientation="{}"'):
    form = form.format(value)
    attribute, element = (form, "") if "=" in form else ("", form)
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {attribute}>{element}</rdf:Description></x:xmpmeta>'


XMP_KEY = "XML:com.adobe.xmp"


def png_with_xmp(value, **options):
    text = PngImagePlugin.PngInfo()
    text.add_itxt(XMP_KEY, xmp(value), **options)
    return encoded(RGB, pnginfo=text)


def png_with_raw_profile(value):
    block = exif(value).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    return encoded(RGB, pnginfo=text)


CARRIERS = {
    "PNG, eXIf before the pixels": lambda value: encoded(RGB, exif=exif(value)),
    "PNG, eXIf after the pixels": lambda value: png(RGB, 8, 2, after=chunk(b"eXIf", exif(value).tobytes()[6:])),
    "PNG, XMP": png_with_xmp,
    "PNG, compressed XMP": lambda value: png_with_xmp(value, zip=True),
    "PNG, ImageMagick's raw profile": png_with_raw_profile,
    "WebP": lambda value: encoded(RGB, "WEBP", lossless=True, exif=exif(value)),
    "WebP, XMP": lambda value: encoded(RGB, "WEBP", lossless=True, xmp=xmp(value).encode()),
    "TIFF": lambda value: encoded(RGB, "TIFF", exif=exif(value)),
    "TIFF, XMP": lambda value: encoded(RGB, "TIFF", tiffinfo={700: xmp(value).encode()}),
}


@pytest.mark.parametrize("value", TURNED)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_orientation_wherever_it_stands(carrier, value):
    data = CARRIERS[carrier](value)
    np.testing.assert_array_equal(loaded(data), TURNED[value])
    assert images.probe(data)[1:] == TURNED[value].shape[:2]
    if "raw profile" not in carrier:
        np.testing.assert_array_equal(loaded(Image.open(io.BytesIO(data))), TURNED[value])


@pytest.mark.parametrize("carrier", ["exif", "xmp"])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "AVIF"])
def test_orientation_of_lossy_formats(kind, carrier):
    options = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if kind == "MPO" else {}
    for value in TURNED:
        options[carrier] = exif(value) if carrier == "exif" else xmp(value).encode()
        data = encoded(RGB, kind, quality=95, **options)
        check(data, TURNED[value], 30)


def test_exif_comes_before_xmp_and_nonsense_is_upright():
    text = PngImagePlugin.PngInfo()
    text.add_itxt(XMP_KEY, xmp(6))
    np.testing.assert_array_equal(loaded(encoded(RGB, pnginfo=text, exif=exif(3))), TURNED[3])
    np.testing.assert_array_equal(loaded(encoded(RGB, pnginfo=text, exif=exif(1))), RGB)
    for value in (0, 9, 77):
        np.testing.assert_array_equal(loaded(encoded(RGB, exif=exif(value))), RGB)
    for form in ("<tiff:Orientation>{}</tiff:Orientation>", "tiff:Orientation = '{}'"):
        text = PngImagePlugin.PngInfo()
        text.add_itxt(XMP_KEY, xmp(8, form))
        np.testing.assert_array_equal(loaded(encoded(RGB, pnginfo=text)), TURNED[8])


# --- metadata does not condemn pixels ---------------------------------------------------------------------------------


def with_chunk(*chunks):
    raw = encoded(RGB)
    return raw[:33] + b"".join(chunks) + raw[33:]


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20))),
        chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(64 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(64 << 20))),
        chunk(b"iTXt", b"k\0\1"),
        chunk(b"tEXt", b"\xff" * 3),
        chunk(b"tEXt", b"a\0" + b"b" * (3 << 20)),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(np.random.default_rng(0).bytes(1000) + bytes(2 << 20))),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(64 << 20))),
        chunk(b"iCCP", b"p\0\0broken"),
        chunk(b"iCCP", b""),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0\0"),
        chunk(b"eXIf", b"nonsense"),
        chunk(b"acTL", struct.pack(">II", 3, 0)) + chunk(b"fcTL", bytes(26)),
        chunk(b"tIME", b"")[:-4] + b"crc?",
    ],
    ids=range(15),
)
def test_odd_chunks_leave_the_pixels(extra):
    np.testing.assert_array_equal(loaded(with_chunk(extra)), RGB)


def test_compressed_metadata_takes_bounded_memory():
    """Bombs of a gigabyte in all, in 1 MB of file."""
    import tracemalloc

    bomb = zlib.compress(bytes(64 << 20))
    kinds = itertools.cycle([(b"zTXt", b"XML:com.adobe.xmp\0\0"), (b"iCCP", b"p\0\0"), (b"zTXt", b"k\0\0")])
    data = with_chunk(*[chunk(kind, head + bomb) for (kind, head), _ in zip(kinds, range(16), strict=False)])
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(loaded(data), RGB)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_countless_chunks_are_refused():
    with pytest.raises(images.ImageError, match="^many: .*chunks"):
        images.load(with_chunk(chunk(b"tEXt", b"") * 250_000), "many")


# --- arrays and files -------------------------------------------------------------------------------------------------


def test_arrays_and_open_files_are_read_alike(tmp_path):
    np.testing.assert_array_equal(loaded(RGB), RGB)
    np.testing.assert_array_equal(loaded(np.asfortranarray(RGB)), RGB)
    np.testing.assert_array_equal(loaded(GRAY), grays(GRAY))
    np.testing.assert_array_equal(loaded(np.dstack([RGB, ALPHA])), on_white(RGB, ALPHA))
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(loaded(file), RGB)
    for data in (bytearray(encoded(RGB)), memoryview(encoded(RGB)), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(loaded(data), RGB)
    before = Image.fromarray(np.dstack([RGB, ALPHA]))
    loaded(before)
    assert before.mode == "RGBA"  # what was given is not changed


@pytest.mark.parametrize(
    "array",
    [
        RGB / 255,
        RGB.astype(np.float32),
        RGB.astype(np.int64),
        RGB.astype(np.uint16),
        RGB > 100,
        RGB[None],
        RGB[..., :2],
        RGB[..., :1],
        RGB[0, 0],
        np.dstack([RGB, RGB]),
        np.uint8(7),
    ],
    ids=range(11),
)
def test_other_arrays_are_refused_by_shape_and_dtype(array):
    array = np.asarray(array)
    with pytest.raises(InputError) as caught:
        images.load(array, "x")
    assert str(caught.value).startswith("x: an array must be uint8 [height, width], ") and "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"found {array.dtype} {list(array.shape)}")


def test_empty_arrays_images_and_files_and_other_types_are_refused():
    for empty in (RGB[:0], RGB[:, :0], GRAY[:0], Image.new("RGB", (0, 4)), io.BytesIO()):
        with pytest.raises(images.ImageError, match="^x: "):
            images.load(empty, "x")
    for bad in (7, None, [1, 2], io.StringIO("text"), object()):
        with pytest.raises(InputError, match="^x: expected a path, bytes, .*, found"):
            images.load(bad, "x")


def test_limits_hold_for_images_in_memory(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    for source in (RGB, Image.fromarray(RGB), Image.open(io.BytesIO(encoded(RGB)))):
        with pytest.raises(images.SizeError, match="^x: 20x12 pixels"):
            images.load(source, "x")
    data = encoded(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    with pytest.raises(images.ImageError, match="truncated"):
        images.load(Image.open(io.BytesIO(data[:-60])))


def test_heic_says_so():
    with pytest.raises(images.ImageError, match="^photo.heic: not a PNG.*HEIC must be converted"):
        images.load(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "photo.heic")
