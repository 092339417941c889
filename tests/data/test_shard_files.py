"""Datasets in a bucket: built, read and checked as on a disk, from local copies of their shards."""

import json
import os
import pickle

import pytest

from nextstep_jax import storage
from nextstep_jax.data import shard_files, shards
from nextstep_jax.data.build import build
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage.files import identity

pytest_plugins = ["tests.buckets"]


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    """The folder of the local copies."""
    monkeypatch.setenv(shard_files.FOLDER_VARIABLE, str(tmp_path / "copies"))
    monkeypatch.setattr(shard_files, "_RANGE_BYTES", 1000)
    return tmp_path / "copies"


def _build(out, samples=25):
    return build(open_source(f"shapes:pair:train:{samples}"), out, shard_samples=10)


def test_a_dataset_is_built_and_read_as_on_a_disk(bucket, tmp_path, copies):
    for out in (bucket, tmp_path / "local"):
        assert _build(out)["written"] == 25
    source, local = open_source(bucket), open_source(tmp_path / "local")
    assert source.index == local.index and source.identity() == local.identity() and source.unused.counts == local.unused.counts
    for index in (24, 0, 11, 3):
        assert source[index] == local[index]
    assert {path.name for path in copies.iterdir()} >= {shard.sha256 for shard in source.index["shards"][:1]}
    assert pickle.loads(pickle.dumps(source))[5] == local[5]
    source.verify()
    before = source.index
    assert _build(bucket)["written"] == 25 and open_source(bucket).index == before  # finished shards are kept


def test_copies_are_made_ahead_and_once(bucket, copies, monkeypatch):
    _build(bucket)
    source = open_source(bucket)
    source[0]
    source._files._pool.shutdown()
    assert len(list(copies.iterdir())) == 3
    monkeypatch.setattr(shard_files.BucketShards, "_copy", lambda *_: pytest.fail("it is there"))
    assert len([open_source(bucket)[index] for index in range(25)]) == 25


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_shard_is_named_when_it_is_read(bucket, damage, copies):
    _build(bucket)
    source = open_source(bucket)
    shard = storage.at(bucket) / shards.shard_name(1)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:-1]))
    assert source[0].key
    with pytest.raises(DamagedDataError, match=str(shard)):
        source[12]
    with pytest.raises(DamagedDataError, match=str(shard)):
        source.verify()
    assert not (copies / source.index["shards"][1].sha256).exists()
    if damage == "missing":
        with pytest.raises(DamagedDataError, match="missing, but listed in the index"):
            open_source(bucket)


def test_a_copy_that_was_cut_is_made_again(bucket, copies):
    _build(bucket)
    source = open_source(bucket)
    expected = source[0]
    copy = copies / source.index["shards"][0].sha256
    copy.write_bytes(b"short")
    assert open_source(bucket)[0] == expected and copy.stat().st_size == source.index["shards"][0].bytes


def test_the_copies_used_least_recently_make_room(copies, monkeypatch):
    copies.mkdir()
    for number in range(3):
        (copies / f"{number}").write_bytes(b"x" * 10)
        os.utime(copies / f"{number}", (number, number))
    usage = type("usage", (), {"total": 100})

    def disk_usage(folder):
        usage.free = 40 - sum(path.stat().st_size for path in folder.iterdir())
        return usage

    monkeypatch.setattr(shard_files.shutil, "disk_usage", disk_usage)
    shard_files.make_room(copies, 15)
    assert sorted(path.name for path in copies.iterdir()) == ["2"]


def test_two_builds_at_once_are_refused_and_a_dead_one_is_continued(bucket):
    lock = storage.at(bucket) / "progress" / "lock"
    lock.write_bytes(json.dumps(identity() | {"machine": "elsewhere"}).encode())
    (storage.at(bucket) / "progress" / "plan.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=f"process {os.getpid()} on .*; if it is gone, delete {lock}"):
        _build(bucket)
    storage.at(bucket).remove_below()
    lock.write_bytes(json.dumps(identity() | {"pid": 2**22 + 1}).encode())
    with pytest.raises(InputError, match="already there and not an unfinished dataset"):
        _build(bucket)


def test_what_is_no_dataset_is_one_line(bucket):
    (storage.at(bucket) / "a.tar").write_bytes(b"")
    with pytest.raises(InputError, match="not a dataset of `data build`"):
        open_source(bucket)
