"""Folders of images: captions beside them and in tables, and an account of everything else."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import shutil
import socket
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextstep_jax.data import images, records
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.data.records import TextPart
from nextstep_jax.errors import InputError


def png(level):
    return encode_image(np.full((4, 6, 3), level, np.uint8))


def encoded(format):
    data = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(data, format)
    return data.getvalue()


def level(sample):
    return int(sample.images[0].pixels()[0, 0, 0])


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "photos"
    (directory / "sub").mkdir(parents=True)
    (directory / "b.png").write_bytes(png(2))
    (directory / "b.txt").write_text(" a cat \n")
    (directory / "a.PNG").write_bytes(png(1))
    (directory / "a.json").write_text(json.dumps({"caption": "a dog", "caption_short": "dog", "licence": "CC0"}))
    (directory / "sub" / "c.png").write_bytes(png(3))
    (directory / "sub" / "c.txt").write_bytes("\ufeffein Käfer".encode())
    (directory / "notes.md").write_text("no image")
    (directory / ".hidden.png").write_bytes(b"junk")
    return directory


def test_captions_beside_the_images(folder):
    source = pickle.loads(pickle.dumps(FolderSource(folder)))
    assert (source.name, len(source)) == ("photos", 3)
    found = [source[i] for i in range(3)]
    assert [(s.key, s.kind, s.parts[0], level(s)) for s in found] == [
        ("a.PNG", "pair", TextPart("a dog"), 1),
        ("b.png", "pair", TextPart("a cat"), 2),
        ("sub/c.png", "pair", TextPart("ein Käfer"), 3),
    ]
    assert (found[0].caption_variants, found[0].metadata) == ({"caption_short": "dog"}, {"licence": "CC0"})


def test_captions_in_a_table(folder):
    (folder / "captions.csv").write_text(
        'file,caption,caption_zh,author\nb.png,"from, the ""table""",猫,me\nb.png,second,,\nb.png,third,,\n'
        "sub/../a.PNG,odd,,\n./sub/c.png,dotted,,x\n"
    )
    source = FolderSource(folder)
    samples = {source.names[i]: source[i] for i in range(len(source)) if source.names[i] != "sub/../a.PNG"}
    assert samples["b.png"].parts[0] == TextPart('from, the "table"')
    assert samples["b.png"].caption_variants == {"caption_zh": "猫", "caption.2": "second", "caption.3": "third"}
    assert samples["b.png"].metadata == {"author": "me"}
    assert samples["sub/c.png"].parts[0] == TextPart("dotted")
    assert samples["a.PNG"].parts[0] == TextPart("a dog")  # no row of its own: the file beside it


def test_the_columns_of_an_image_folder_are_understood(folder):
    (folder / "captions.csv").write_text("file_name,text\nb.png,from text\n")
    assert FolderSource(folder)[1].parts[0] == TextPart("from text")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "columns file and caption, found nothing"),
        ("a,b\n1,2\n", "columns file and caption, found a, b"),
        ("file,caption\nb.png\n", "line 2 does not have the 2 columns"),
        ("file,caption\nb.png,x,y\n", "line 2 does not have the 2 columns"),
        ('file,caption\nb.png,"open', "after line 1: unexpected end"),
        ("file,caption\nb.png,\udcff\n", "not UTF-8"),
        ("file,caption\nb.png," + "x" * 200_000 + "\n", "after line 1: field larger"),
    ],
)
def test_a_broken_table_is_named_with_its_line(folder, table, message):
    (folder / "captions.csv").write_bytes(table.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"captions.csv: .*{message}"):
        FolderSource(folder)


def test_nothing_outside_the_folder_is_read(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "secret.txt").write_text("password")
    rows = ["../secret.png", str(tmp_path / "secret.png"), "sub/../../secret.png"]
    (folder / "captions.csv").write_text("file,caption\n" + "".join(f"{row},x\n" for row in rows))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "caption.png").write_bytes(png(5))
    (folder / "caption.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "door").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    (folder / "link.txt").write_text("x")
    source = FolderSource(folder)
    keys = {name: i for i, name in enumerate(source.names)}
    for row in rows:
        with pytest.raises(images.ImageError, match="listed in captions.csv, but not there"):
            source[keys[row]]
    for name, message in (
        ("link.png", "link.png: a link out of the folder"),
        ("caption.png", "caption.txt: a link out of the folder"),
    ):
        with pytest.raises(InputError, match=message):
            source[keys[name]]
    assert not any(name.startswith(("door", "loop")) for name in keys)


def test_a_link_within_the_folder_is_followed(folder):
    (folder / "again.png").symlink_to(folder / "b.png")
    (folder / "again.txt").write_text("again")
    assert level(FolderSource(folder)[1]) == 2


def test_unusable_files_are_named(folder):
    (folder / "b.txt").write_text(" \n")
    (folder / "sub" / "c.txt").unlink()
    (folder / "a.PNG").write_bytes(b"")
    source = FolderSource(folder)
    for index, error, message in (
        (0, images.ImageError, r"a\.PNG: empty file"),
        (1, records.CaptionError, r"b\.txt: empty caption"),
        (2, records.CaptionError, r"c\.png: no caption \(no .json or .txt"),
    ):
        with pytest.raises(error, match=message):
            source[index]
    (folder / "captions.csv").write_text("file,caption\nb.png,\n")
    with pytest.raises(records.CaptionError, match="b.png: empty caption in captions.csv"):
        FolderSource(folder)[1]
    with pytest.raises(records.CaptionError, match="no row in a table"):
        FolderSource(folder)[2]


def test_the_fingerprint_follows_the_files(folder):
    source = FolderSource(folder)
    before = [source.fingerprint(i, i + 1) for i in range(3)]
    os.utime(folder / "b.png", (1, 1))
    (folder / "sub" / "c.txt").write_text("changed")
    assert [source.fingerprint(i, i + 1) == before[i] for i in range(3)] == [True, False, False]


# --- tables -----------------------------------------------------------------------------------------------------------

CSV = 'file_name,text,source\r\nb.png,"a cat, b",me\r\na.PNG,a dog,you\r\n'
JSONL = '{"file_name": "b.png", "text": "a cat, b", "source": "me"}\n{"file_name": "a.PNG", "text": "a dog", "source": "you"}\n'
SPELLINGS = {
    "csv": ("metadata.csv", CSV.encode()),
    "csv with a byte-order mark": ("metadata.csv", b"\xef\xbb\xbf" + CSV.encode()),
    "csv with line feeds": ("captions.csv", CSV.replace("\r", "").encode()),
    "jsonl": ("metadata.jsonl", JSONL.encode()),
    "jsonl with a byte-order mark and carriage returns": (
        "metadata.jsonl",
        b"\xef\xbb\xbf" + JSONL.replace("\n", "\r\n").encode(),
    ),
    "jsonl with blank lines": ("metadata.jsonl", ("\n" + JSONL.replace("\n", "\n\n")).encode()),
}


@pytest.mark.parametrize("name, content", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("nested", ["", "train", "a/b"])
def test_tables_of_the_hub(tmp_path, name, content, nested):
    place = tmp_path / "set" / nested
    place.mkdir(parents=True)
    for image, number in (("a.PNG", 1), ("b.png", 2)):
        (place / image).write_bytes(png(number))
    (place / name).write_bytes(content)
    source = FolderSource(tmp_path / "set")
    found = [source[i] for i in range(2)]
    assert [(s.key, s.texts[0].text, level(s), s.metadata) for s in found] == [
        (os.path.join(nested, "a.PNG"), "a dog", 1, {"source": "you"}),
        (os.path.join(nested, "b.png"), "a cat, b", 2, {"source": "me"}),
    ]
    assert source.unused.to_json() == {}


def test_a_jsonl_table_holds_what_a_json_file_does(folder):
    row = {"file_name": "sub/c.png", "caption": ["one", "two"], "caption_zh": "三", "caption_score": 0.5, "n": {"m": [1]}}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"file_name": "sub/c.png", "text": "four"}))
    sample = FolderSource(folder)[2]
    assert sample.texts[0].text == "one"
    assert sample.caption_variants == {"caption.1": "two", "caption_zh": "三", "caption.3": "four"}
    assert sample.metadata == {"caption_score": 0.5, "n": {"m": [1]}}


def test_the_nearest_table_comes_first(folder):
    (folder / "captions.csv").write_text("file,caption\nsub/c.png,far\nb.png,top\n")
    (folder / "sub" / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "near"}')
    source = FolderSource(folder)
    assert [source[i].texts[0].text for i in (1, 2)] == ["top", "near"]
    unused = source.unused.to_json()
    assert unused["row for an image that has a row elsewhere"]["names"] == ["captions.csv: sub/c.png"]
    assert unused["caption of an image that has a row in a table"]["names"] == ["b.txt", "sub/c.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1: expected an object with a file_name"),
        ('{"text": "x"}', "line 1: expected an object with a file_name"),
        ('{"file_name": 3, "text": "x"}', "line 1: expected an object with a file_name"),
        ('{"file_name": "b.png", "text": 3}', "line 1: text must be a string, found a number"),
        ('{"file_name": "b.png", "caption": {"a": false}}', "line 1: caption.a must be a string, found true or false"),
        ('{"file_name": "b.png", "text": "x"', "line 1: not valid JSON"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_a_broken_line_is_named(folder, line, message):
    (folder / "metadata.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"metadata.jsonl: {message}") as caught:
        FolderSource(folder)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["metadata.jsonl", "captions.csv"]), st.data())
def test_a_damaged_table_is_an_error_or_read(name, data):
    content = bytearray((CSV if name.endswith("csv") else JSONL).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))]) + data.draw(st.binary(max_size=40))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / name).write_bytes(content)
        (path / "b.png").write_bytes(png(1))
        try:
            source = FolderSource(path)
        except InputError as error:
            assert "\n" not in str(error)
            return
        for index in range(len(source)):
            with contextlib.suppress(InputError):
                assert isinstance(source[index].texts[0].text, str)


# --- what is left over ------------------------------------------------------------------------------------------------


def test_pictures_of_every_extension_are_read_or_counted(tmp_path):
    jpeg, tiff, avif = (encoded(format) for format in ("JPEG", "TIFF", "AVIF"))
    contents = {"a.jfif": jpeg, "b.jpe": jpeg, "c.JPG": jpeg, "d.tif": tiff, "e.TIFF": tiff, "f.avif": avif}
    contents |= {"g.heic": b"\0\0\0\x18ftypheic" + bytes(40), "h.jif": jpeg}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text("an image")
    source = FolderSource(tmp_path)
    unread = []
    for index, name in enumerate(source.names):
        try:
            assert source[index].images[0].height == 16
        except images.ImageError:
            unread.append(name)
    assert source.names == sorted(contents) and unread == ["g.heic"] and source.unused.to_json() == {}


def test_whatever_lies_in_a_folder_is_used_or_named(folder, tmp_path, monkeypatch):
    for name in ("lost.txt", "lost.json", "b.json", "x.tar.gz", "y.zip", "z.parquet", "README"):
        (folder / name).write_text('{"caption": "c"}')
    (folder / ".cache").mkdir()
    (folder / ".cache" / "b.png").write_bytes(png(1))
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "gone.png").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.png")
    monkeypatch.chdir(folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("door.jpg")
    source = FolderSource(folder)
    assert source.names == ["a.PNG", "b.png", "sub/c.png"]
    assert {reason: things["names"] for reason, things in source.unused.to_json().items()} == {
        "caption without an image": ["lost.json", "lost.txt"],
        "caption beside a .json": ["b.txt"],
        "archive that is not read": ["x.tar.gz", "y.zip", "z.parquet"],
        "other file": ["README", "notes.md"],
        "hidden": [".cache", ".hidden.png"],
        "linked folder": ["elsewhere"],
        "broken link": ["gone.png"],
        "not a regular file": ["door.jpg", "pipe.png"],
    }


PARTS = st.sampled_from(["a", "b", ".c", "d.e", "f g", "-1", "x.y.z"])
ENDINGS = st.sampled_from([".png", ".TXT", ".json", ".gif", ".md", ".tar", ""])
FILES = st.builds("{}{}".format, st.lists(PARTS, min_size=1, max_size=3).map("/".join), ENDINGS)


@settings(max_examples=100, deadline=None)
@given(st.lists(FILES, min_size=1, max_size=10, unique_by=str.lower))
def test_every_file_is_used_or_named(names):
    """The images, the captions that are taken, and the unused add up to the files, hidden folders counting once."""
    with tempfile.TemporaryDirectory() as folder:
        written = set()
        for name in names:
            path = pathlib.Path(folder, name)
            with contextlib.suppress(OSError):  # a file where a folder should be
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
                written.add(name)
        try:
            source = FolderSource(folder)
        except InputError:
            return
        left = {name for things in source.unused.to_json().values() for name in things["names"]}
        folders = [place for place in left if place.rpartition("/")[2].startswith(".")]
        hidden = {name for name in written for place in folders if f"{name}/".startswith(f"{place}/")}
        taken = {name for image in source.names for name in source._sidecars(image)}
        assert set(source.names) | taken | (left - hidden) | hidden >= written
        assert not set(source.names) & left
        for name in taken & left:
            assert source.unused.to_json()["caption beside a .json"]["names"].count(name) == 1


def test_a_copy_elsewhere_is_the_same_data(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = FolderSource(folder).identity()
    assert FolderSource(copy).identity() == before
    (copy / "b.png").write_bytes(png(2) + b"longer")
    assert FolderSource(copy).identity() != before
