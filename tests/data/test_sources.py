"""Readers: folders with captions, TFDS, the built-in dataset, and telling sources apart."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from nextstep_jax.data import records, shapes, shards, sources
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.data.records import TextPart
from nextstep_jax.data.sources import ShapesSource, open_source
from nextstep_jax.errors import InputError


def png(level):
    return encode_image(np.full((4, 6, 3), level, np.uint8))


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


# --- the built-in dataset ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_shapes_are_a_source(kind):
    source = pickle.loads(pickle.dumps(ShapesSource(kind, "train", 3)))
    assert len(source) == 3
    assert source[2] == shapes.sample(kind, 2)
    kinds = {"caption": "pair", "letters": "pair", "thinking": "edit", "table": "text", "story": "interleaved"}
    of_square = kind.partition("_")[0]  # "pair_80x48"
    assert source[0].kind == kinds.get(of_square, of_square)
    assert source.fingerprint(0, 2) != ShapesSource(kind, "heldout", 3).fingerprint(0, 2)


# --- telling them apart -----------------------------------------------------------------------------------------------


def test_a_source_is_opened_by_what_it_looks_like(folder, tmp_path):
    assert isinstance(open_source(folder), FolderSource)
    text = records.Sample((TextPart("x"),), "text", "k")
    entry = shards.write_shard(tmp_path / "shard-0", [records.pack(text)])
    shards.write_index(tmp_path, "texts", [entry], images=0, kinds={"text": 1})
    assert open_source(str(tmp_path))[0] == text
    (tmp_path / "tars" / "deep").mkdir(parents=True)
    (folder / "k.json").write_text('{"text": "in a tar"}')
    with tarfile.open(tmp_path / "tars" / "deep" / "idx_0000_0000.tar", "w") as tar:
        tar.add(folder / "k.json", "k.json")
    for spec in (tmp_path / "tars", tmp_path / "tars" / "deep" / "idx_0000_0000.tar"):
        assert open_source(spec)[0].parts == (TextPart("in a tar"),)
    assert open_source("shapes:text:heldout:4").name == "shapes-text-heldout"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/no/such/place", "no such file or folder"),
        ("shapes:pair:train", "expected shapes:KIND:SPLIT:N"),
        ("shapes:poem:train:4", "kind of shapes must be one of"),
        ("shapes:plan:train:4", r"found 'plan' \(called 'thinking' now\)"),
        ("shapes:pair:test:4", "split of shapes must be one of"),
        ("shapes:pair:train:0", "at least one sample"),
        (__file__, "not a source"),
    ],
)
def test_what_is_no_source(spec, message):
    with pytest.raises(InputError, match=message):
        open_source(spec)


def test_an_empty_folder_is_no_source(tmp_path):
    with pytest.raises(InputError, match="no images"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="can only be given for a tfds: source"):
        open_source(tmp_path, data_dir="x")


def test_readers_import_no_training_stack():
    """Grain, TFDS, TensorFlow and ArrayRecord are imported by what needs them only."""
    code = "import sys; from nextstep_jax.data import build, encode, inspection, sources; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"grain", "tensorflow_datasets", "tensorflow", "array_record", "torch", "optax"} & set(loaded)
    assert sources.__name__ in loaded


# --- links and pipes --------------------------------------------------------------------------------------------------


def text_tar(path):
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("k.json")
        info.size = len(data := b'{"text": "in a tar"}')
        tar.addfile(info, io.BytesIO(data))
    return path


def test_no_reader_follows_a_link_out_of_its_folder(folder, tmp_path):
    """A tar, a shard, a table and an image that are links to elsewhere, each refused in the same words."""
    text_tar(tmp_path / "elsewhere.tar")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "x.tar").symlink_to(tmp_path / "elsewhere.tar")
    (tmp_path / "built").mkdir()
    entry = shards.write_shard(tmp_path / "shard-0", [records.pack(records.Sample((TextPart("x"),), "text", "k"))])
    (tmp_path / "built" / "shard-0").symlink_to(tmp_path / "shard-0")
    shards.write_index(tmp_path / "built", "texts", [entry], images=0, kinds={"text": 1})
    (tmp_path / "table.csv").write_text("file,caption\nb.png,x\n")
    (folder / "captions.csv").symlink_to(tmp_path / "table.csv")
    for spec, name in (("tars", "x.tar"), ("built", "shard-0"), (folder.name, "captions.csv")):
        with pytest.raises(InputError, match=f"{spec}/{name}: a link out of the folder"):
            open_source(tmp_path / spec)
    (tmp_path / "tars" / "y.tar").hardlink_to(tmp_path / "elsewhere.tar")
    (tmp_path / "tars" / "x.tar").unlink()
    (tmp_path / "tars" / "x.tar").symlink_to("y.tar")
    assert len(open_source(tmp_path / "tars")) == 2


def test_pipes_in_a_data_folder_are_counted_and_not_waited_for(tmp_path):
    text_tar(tmp_path / "a.tar")
    for name in ("b.tar", "index.json", "captions.csv", "c.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "old.tar.gz").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(png(1))
    source = open_source(tmp_path)
    assert [source[i].parts[0].text for i in range(len(source))] == ["in a tar"]
    assert {reason: things["names"] for reason, things in source.unused.to_json().items()} == {
        "not a regular file": ["b.tar", "c.png", "captions.csv", "index.json"],
        "archive that is not read": ["old.tar.gz"],
        "file beside tars": ["a.png"],
    }


def test_an_image_may_be_called_index(folder):
    """index.json beside index.png is its caption, not a dataset's index."""
    (folder / "index.png").write_bytes(png(7))
    (folder / "index.json").write_text('{"caption": "the seventh"}')
    source = open_source(folder)
    assert source[source.names.index("index.png")].texts[0].text == "the seventh"
