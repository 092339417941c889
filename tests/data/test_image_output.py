"""Image files that are written: the format of their name, the record they carry, whole or not at all."""

import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextstep_jax.data.image_output import encode_image, output_format, output_path, read_record, save_image
from nextstep_jax.errors import InputError

Y, X = np.mgrid[:24, :40]
PIXELS = np.stack([5 * X + 20, 9 * Y + 20, 230 - 3 * X - 2 * Y], -1).astype(np.uint8)
RECORD = {
    "prompt": "红色 circle <&> ☃",
    "seed": 7,
    "index": 0,
    "settings": {"cfg": 7.5, "sampler": "sde", "negative": ""},
    "ids": [1, 2, 3],
    "nothing": None,
    "digits": "123",
    "quoted": '"x"',
    "lines": "a\nb\0c",
    "surrogate": "\udcff",
    "empty": "",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "PNG"), ("a.PNG", "PNG"), ("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")],
)
def test_the_name_decides_the_format_and_the_record_comes_back(name, kind, tmp_path):
    path = tmp_path / name
    save_image(path, PIXELS, RECORD)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == (kind, "RGB", (40, 24))
        assert np.abs(np.asarray(image, int) - PIXELS).max() <= (0 if kind == "PNG" else 12)
    assert read_record(path) == RECORD
    assert os.listdir(tmp_path) == [name]


def test_a_png_keeps_plain_text_for_other_programs(tmp_path):
    save_image(tmp_path / "a.png", PIXELS, {"prompt": "a cat ☃", "seed": 7})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"prompt": "a cat ☃", "seed": "7"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), json_values, max_size=5))
def test_any_record_comes_back_from_any_format(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("record")
    for name in ("a.png", "a.jpg", "a.webp"):
        save_image(path / name, PIXELS[:4, :4], record)
        assert read_record(path / name) == record


def test_what_does_not_fit_a_jpeg_is_left_out_longest_first(tmp_path):
    record = {"prompt": "é" * 60_000, "seed": 3, "model": "m"}
    save_image(tmp_path / "a.jpg", PIXELS, record)
    assert read_record(tmp_path / "a.jpg") == {"seed": 3, "model": "m"}
    save_image(tmp_path / "a.png", PIXELS, record)
    assert read_record(tmp_path / "a.png") == record


def test_files_of_other_programs_have_no_record(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        Image.fromarray(PIXELS).save(tmp_path / "other", kind)
        assert read_record(tmp_path / "other") == {}
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0[1, 2]"
    for comment in (b"ASCII\0\0\0[1, 2]", b"ASCII\0\0\0{", b"UNICODE\0x", b"", b"ASCII\0\0\0\xff"):
        exif.get_ifd(0x8769)[0x9286] = comment
        Image.fromarray(PIXELS).save(tmp_path / "other", "JPEG", exif=exif)
        assert read_record(tmp_path / "other") == {}
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="text: not a PNG"):
        read_record(tmp_path / "text")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("run", "run.png"),
        ("run1.5", "run1.5.png"),
        ("v2.0-7b", "v2.0-7b.png"),
        ("a b/cat.jpg", "a b/cat.jpg"),
        ("CAT.JPEG", "CAT.JPEG"),
        (".hidden", ".hidden.png"),
        ("x.y.webp", "x.y.webp"),
    ],
)
def test_names_without_a_type_become_png(given, path):
    assert str(output_path(given)) == path
    assert output_format(output_path(given)) in ("PNG", "JPEG", "WEBP")


@pytest.mark.parametrize("name", ["cat.gif", "cat.tiff", "cat.jp2", "x/cat.txt", "run.final", "cat.png.bak"])
def test_other_types_are_refused(name, tmp_path):
    for refuse in (output_path, output_format, lambda name: save_image(tmp_path / name, PIXELS)):
        with pytest.raises(InputError, match=rf"{name}: an image's name must end in .png, .jpg, .jpeg, .webp, found \."):
            refuse(name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_an_image_is_written_whole_or_not_at_all(kind, tmp_path, monkeypatch):
    path = tmp_path / f"out.{kind}"
    save_image(path, PIXELS)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=rf"out\.{kind}: cannot be written \(No space left"):
        save_image(path, 255 - PIXELS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [f"out.{kind}"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for bad in (tmp_path / "no" / "out.png", tmp_path / "file" / "out.png", tmp_path / "folder.png"):
        with pytest.raises(InputError, match="cannot be written"):
            save_image(bad, PIXELS)


@pytest.mark.parametrize("bad", [PIXELS[..., 0], PIXELS.astype(np.float32), PIXELS[:0], PIXELS[..., :2]])
def test_only_rgb_levels_become_a_file(bad):
    with pytest.raises(InputError, match=r"\[height, width, 3\] of uint8"):
        encode_image(bad)


def test_lossy_files_keep_colors_at_full_resolution():
    """Small red things on white keep their color: chroma is not halved."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[::2, ::2] = (255, 0, 0)
    made = np.asarray(Image.open(io.BytesIO(encode_image(pixels, "JPEG"))), int)
    assert np.abs(made - pixels).mean() < 6
    assert json.loads(Image.open(io.BytesIO(encode_image(pixels, "PNG", {"a": [1]}))).text["a"]) == [1]
