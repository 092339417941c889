"""Where links may lead, for every reader of folders that came from elsewhere."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from nextstep_jax import checkpoints
from nextstep_jax.conversion import text_tokenizer, torch_files
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.untrusted import open_inside
from tests.conversion import torch_writer
from tests.conversion.folders import write_tokenizer

ARRAY = {"a": np.arange(3, dtype=np.float32)}
LINKED = "link out of the folder"


def write_checkpoint(folder):
    checkpoints.save_params(folder / "ck", {"model": ARRAY}, {"model": {}}, {"tokenizer.json": b"{}"})


def write_images(folder):
    PIL.Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("x")


def read_image(path):
    source = open_source(path.parent)
    return source[0].parts[1].data


# reader: (what writes the file, its name, what reads it)
READERS = {
    "JSON": (lambda f: (f / "config.json").write_text('{"a": 1}'), "config.json", torch_files.read_json),
    "safetensors": (lambda f: save_file(ARRAY, f / "x.safetensors"), "x.safetensors", torch_files.open_file),
    "torch checkpoint": (lambda f: torch_writer.save(f / "x.pt", ARRAY), "x.pt", torch_files.open_file),
    "text tokenizer": (write_tokenizer, "tokenizer.json", lambda path: text_tokenizer.read(path.parent)),
    "manifest": (write_checkpoint, "ck/manifest.json", lambda path: checkpoints.abstract_params(path.parent)),
    "checkpoint's file": (write_checkpoint, "ck/tokenizer.json", lambda path: checkpoints.load_file(path.parent, path.name)),
    "image folder": (write_images, "a.png", read_image),
}


@pytest.mark.parametrize("reader", READERS)
def test_links(tmp_path, reader):
    write, name, read = READERS[reader]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder")
    path = tmp_path / "folder" / name
    read(path)
    blobs = tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    cached = blobs / ("0a" * 32)
    shutil.move(path, cached)
    path.symlink_to(os.path.relpath(cached, path.parent))  # as in a snapshot of a hub's cache
    read(path)
    path.unlink()
    shutil.move(cached, path.with_name("other"))
    path.symlink_to("other")  # within its folder
    if reader != "text tokenizer":
        read(path)
    path.unlink()
    shutil.move(path.with_name("other"), tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises((InputError, DamagedDataError), match=LINKED) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_is_not_waited_for(tmp_path, reader):
    write, name, read = READERS[reader]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder")
    path = tmp_path / "folder" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((InputError, DamagedDataError)):
        read(path)


def test_a_folder_that_is_a_link_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with open_inside(tmp_path / "link/a") as file:
        assert file.read() == b"x"
    for name in ("blobs", "blobs/" + "g" * 64):  # neither a hash nor its folder
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if name != "blobs":
            target.write_text("x")
        (tmp_path / "real/b").unlink(missing_ok=True)
        (tmp_path / "real/b").symlink_to(target)
        with pytest.raises(InputError, match=LINKED):
            open_inside(tmp_path / "real/b")
        shutil.rmtree(tmp_path / "blobs", ignore_errors=True)
