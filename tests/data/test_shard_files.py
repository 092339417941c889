"""Datasets in a bucket: built, read and checked as on a disk, from local copies of their shards."""

import concurrent.futures
import json
import os
import pickle
import random
import shutil

import pytest

from nextstep_jax import storage
from nextstep_jax.data import files, records, shard_files, shards
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
    monkeypatch.setattr(shard_files, "_LISTED", 1)
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


@pytest.fixture
def singly(monkeypatch):
    """No shard is small; after four records in order the next ones are expected."""
    monkeypatch.setattr(shard_files, "_SMALL_BYTES", 0)
    monkeypatch.setattr(shard_files, "_SERIES", 4)
    monkeypatch.setattr(shard_files, "_RANGE_BYTES", 200_000)


def _large(out):
    """25 records in three shards, of sizes around the format's blocks."""
    draw = random.Random(0)

    def record(number):
        data = draw.randbytes((10, 65_000, 140_000, 65_536)[number % 4])
        return records.pack(records.Sample((records.ImagePart(data, "png", 8, 8),), "pair", f"key-{number}"))

    place = storage.as_given(out)
    place.mkdir(parents=True, exist_ok=True)
    parts = [(number, range(10 * number, min(10 * number + 10, 25))) for number in range(3)]
    written = [shards.write_shard(place / shards.shard_name(number), map(record, part)) for number, part in parts]
    shards.write_index(place, "large", written, images=25, kinds={"pair": 25})


def _whole(copies, source):
    return [(copies / shard.sha256).exists() for shard in source.index["shards"]]


def test_records_read_at_random_are_fetched_singly_and_once(bucket, tmp_path, copies, singly, monkeypatch):
    _large(bucket)
    _large(tmp_path / "local")
    source, local, order = open_source(bucket), open_source(tmp_path / "local"), [13, 2, 24, 7, 18, 0, 21, 9, 4]
    fetched = []
    fetch = shard_files.BucketShards._fetch

    def counted(self, number, start, stop):
        fetched.append((number, start, stop))
        return fetch(self, number, start, stop)

    monkeypatch.setattr(shard_files.BucketShards, "_fetch", counted)
    assert [source[index] for index in order] == [local[index] for index in order]
    assert len(fetched) == len(set(fetched)) <= len(order) + 3 and not any(_whole(copies, source))  # the ends of shards, too
    assert max(stop - start for _, start, stop in fetched) <= 3 * 2**16
    fetched.clear()
    again = pickle.loads(pickle.dumps(open_source(bucket)))  # another process on this machine
    assert [again[index] for index in order] == [local[index] for index in order] and not fetched
    again[11]
    assert len(fetched) == 1
    again.verify()


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_a_record_half_written_to_a_partial_copy_is_fetched_again(bucket, copies, singly):
    _large(bucket)
    source = open_source(bucket)
    expected = source[14]
    (part,) = copies.glob("*.part")
    content = bytearray(part.read_bytes())
    start = int(source._files._parts.get(1, None)._offsets[4])
    content[start + 200 : start + 300] = bytes(100)
    part.write_bytes(content)
    again = open_source(bucket)
    assert again[14] == expected
    part.write_bytes(content[:1000])  # not even as long as the shard
    assert open_source(bucket)[14] == expected
    part.unlink()
    assert again[14] == expected and again[15].key  # whoever has it open keeps it


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_threads_fetch_records_side_by_side(bucket, tmp_path, copies, singly, monkeypatch):
    """All of them begin with the same shard, and readers come and go."""
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 1)
    monkeypatch.setattr(shard_files, "_SERIES", 1000)
    _large(bucket)
    _large(tmp_path / "local")
    source, local = open_source(bucket), open_source(tmp_path / "local")
    order = [*range(8), *random.Random(0).choices(range(25), k=60)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, order)) == [local[index] for index in order]


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_shard_of_another_layout_is_copied_whole(bucket, tmp_path, copies, singly):
    from array_record.python import array_record_module

    _build(tmp_path / "local", 10)
    local = open_source(tmp_path / "local")
    (shard,) = local.index["shards"]
    for number, options in enumerate(("group_size:1,zstd:1", "group_size:4,uncompressed")):
        reader = array_record_module.ArrayRecordReader(str(tmp_path / "local" / shard.file))
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / "other"), options)
        for record in reader.read_all():
            writer.write(record)
        writer.close()
        place = storage.at(f"{bucket}/{number}")
        (place / shard.file).write_bytes((tmp_path / "other").read_bytes())
        size, digest = (tmp_path / "other").stat().st_size, files.sha256(tmp_path / "other")
        shards.write_index(place, "other", [shards.Shard(shard.file, 10, size, digest)], images=10, kinds={"pair": 10})
        source = open_source(place)
        assert source[7] == local[7] and _whole(copies, source) == [True] and not list(copies.glob("*.part"))


def test_copies_are_made_ahead_of_records_read_in_order_and_once(bucket, copies, singly, monkeypatch):
    _large(bucket)
    source = open_source(bucket)
    for index in (0, 2, 1, 4, 3):  # threads overtake each other
        source[index]
    assert not source._files._copying
    for index in (5, 6, 7):
        source[index]
    source._files._pool.shutdown()
    assert all(_whole(copies, source)) and not list(copies.glob("*.part"))
    monkeypatch.setattr(shard_files.BucketShards, "_copy", lambda *_: pytest.fail("it is there"))
    assert len([open_source(bucket)[index] for index in range(25)]) == 25


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_shard_is_named_when_it_is_read(bucket, damage, small, copies, monkeypatch):
    if small:
        _build(bucket)
    else:
        _large(bucket)
        monkeypatch.setattr(shard_files, "_SMALL_BYTES", 0)
        monkeypatch.setattr(shard_files, "_RANGE_BYTES", 200_000)
    source = open_source(bucket)
    shard = storage.at(bucket) / shards.shard_name(1)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 if small else data.find(b"key-12")] ^= 1
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


@pytest.mark.parametrize(
    ("others", "needed", "kept"),
    [
        (60, 0, "012"),  # a tenth of the disk is free
        (60, 1, "12"),  # and a tenth of that more is made free
        (60, 15, "2"),
        (94, 0, "2"),  # of the six blocks that others leave, copies take half
        (94, 1, ""),
    ],
)
def test_the_copies_used_least_recently_make_room(copies, monkeypatch, others, needed, kept):
    """On a disk of 100 blocks, of which other things fill some and three copies ten each, or as many as there is room for."""
    block = 4096
    copies.mkdir()
    for number in range(3):
        (copies / f"{number}").write_bytes(b"x" * min(10, (100 - others) // 3) * block)
        os.utime(copies / f"{number}", (number, number))

    def disk_usage(folder):
        used = sum(512 * path.stat().st_blocks for path in folder.iterdir())
        return shutil._ntuple_diskusage(100 * block, others * block + used, (100 - others) * block - used)

    monkeypatch.setattr(shard_files.shutil, "disk_usage", disk_usage)
    shard_files.make_room(copies, needed * block)
    assert sorted(path.name for path in copies.iterdir()) == list(kept)


def test_copies_stay_where_no_sizes_are_reported(copies, monkeypatch):
    copies.mkdir()
    (copies / "0").write_bytes(b"x")
    monkeypatch.setattr(shard_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    shard_files.make_room(copies, 15)
    assert (copies / "0").exists()


def test_copies_last_on_a_disk_full_of_other_things(bucket, copies, singly, monkeypatch):
    monkeypatch.setattr(shard_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - 2**30, 2**30))
    _large(bucket)
    expected = open_source(bucket)[13]
    open_source(bucket)[2]  # another process's look at the room
    monkeypatch.setattr(shard_files.BucketShards, "_fetch", lambda *_: pytest.fail("it is there"))
    assert open_source(bucket)[13] == expected


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
