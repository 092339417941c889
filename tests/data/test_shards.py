"""Shards and their index: random access, damage, hostile indexes."""

import json
import pathlib
import pickle
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.data import records, shard_files, shards
from nextstep_jax.data.shards import ArrayRecordSource, Shard
from nextstep_jax.errors import DamagedDataError, InputError

COUNTS = (3, 1, 4)


def sample(number):
    return records.Sample((records.TextPart(f"text {number} " * 200),), "text", f"k{number}")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A dataset of 8 texts in three shards."""
    directory = tmp_path_factory.mktemp("dataset")
    entries, start = [], 0
    for number, count in enumerate(COUNTS):
        packed = (records.pack(sample(i)) for i in range(start, start + count))
        entries.append(shards.write_shard(directory / shards.shard_name(number), packed))
        start += count
    shards.write_index(directory, "texts", entries, images=0, kinds={"text": 8})
    return directory


@pytest.fixture
def dataset(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def test_every_sample_is_found_in_any_order(written):
    source = ArrayRecordSource(written)
    assert (len(source), source.name) == (8, "texts")
    assert [source[i].key for i in (7, 0, 3, 2, 4, 1, 6, 5)] == [f"k{i}" for i in (7, 0, 3, 2, 4, 1, 6, 5)]
    assert source[5] == sample(5)
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            source[outside]


def test_threads_and_processes_can_share_it(written, monkeypatch):
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 1)  # readers come and go under the threads
    source = pickle.loads(pickle.dumps(ArrayRecordSource(written)))
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda i: source[i % 8].key, range(200)))
    assert keys == [f"k{i % 8}" for i in range(200)]


def test_the_same_samples_give_the_same_bytes(written, tmp_path):
    again = shards.write_shard(tmp_path / shards.shard_name(0), (records.pack(sample(i)) for i in range(3)))
    assert again == ArrayRecordSource(written).index["shards"][0]


def test_the_fingerprint_follows_the_shards_behind_a_range(dataset):
    before = [ArrayRecordSource(dataset).fingerprint(*r) for r in ((0, 3), (2, 4), (3, 8), (1, 3))]
    assert len(set(before)) == 4
    other = shards.write_shard(dataset / shards.shard_name(2), (records.pack(sample(i)) for i in range(10, 14)))
    shards.write_index(dataset, "texts", [*shards.read_index(dataset)["shards"][:2], other], images=0, kinds={"text": 8})
    after = [ArrayRecordSource(dataset).fingerprint(*r) for r in ((0, 3), (2, 4), (3, 8), (1, 3))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_shard_is_written_whole_or_not_at_all(tmp_path):
    def failing():
        yield records.pack(sample(0))
        raise InputError("the source fails")

    with pytest.raises(InputError, match="the source fails"):
        shards.write_shard(tmp_path / "shard", failing())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"no/shard: cannot be written"):
        shards.write_shard(tmp_path / "no" / "shard", [b"x"])


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1000, -1])
def test_a_truncated_shard_is_noticed_when_the_dataset_is_opened(dataset, length):
    path = dataset / shards.shard_name(1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedDataError, match=r"shard-00001\.array_record: \d+ bytes, expected"):
        ArrayRecordSource(dataset)


def test_a_missing_shard_is_noticed_when_the_dataset_is_opened(dataset):
    (dataset / shards.shard_name(2)).unlink()
    with pytest.raises(DamagedDataError, match=r"shard-00002\.array_record: missing"):
        ArrayRecordSource(dataset)


def test_every_flipped_bit_is_noticed_by_verify_and_none_gives_a_wrong_sample(dataset):
    path = dataset / shards.shard_name(0)
    whole = path.read_bytes()
    used = [place for place, byte in enumerate(whole) if byte]  # most of a small shard is padding
    for place in used[:: len(used) // 40]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DamagedDataError, match="shard-00000.*the file changed after it was built"):
            ArrayRecordSource(dataset).verify()
        for index in range(3):
            try:
                assert ArrayRecordSource(dataset)[index] == sample(index)
            except DamagedDataError as error:
                assert "shard-00000" in str(error) and "\n" not in str(error)


def test_a_record_that_is_no_sample_is_named(tmp_path):
    entry = shards.write_shard(tmp_path / "shard-0", [b"junk"])
    shards.write_index(tmp_path, "junk", [entry], images=0, kinds={})
    with pytest.raises(DamagedDataError, match="shard-0: record 0: not a stored sample"):
        ArrayRecordSource(tmp_path)[0]


# --- the index --------------------------------------------------------------------------------------------------------


def test_a_folder_without_an_index_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match="not a dataset"):
        ArrayRecordSource(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', "\udcff"])
def test_a_file_that_is_no_index(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"index\.json"):
        ArrayRecordSource(tmp_path)


def test_another_version_of_the_index(dataset):
    rewrite(dataset, version=2)
    with pytest.raises(InputError, match="index version 2, this library reads 1"):
        ArrayRecordSource(dataset)


def rewrite(directory, **changes):
    path = directory / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


ENTRY = {"file": "shard-00000.array_record", "samples": 3, "bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 9},
        {"name": 3},
        {"shards": {}},
        {"shards": [ENTRY, ENTRY], "samples": 6},
        {"shards": ["shard"], "samples": 0},
        {"shards": [ENTRY | {"samples": -3}], "samples": -3},
        {"shards": [ENTRY | {"samples": True}], "samples": 1},
        {"shards": [ENTRY | {"extra": 1}], "samples": 3},
        {"shards": [ENTRY | {"file": "../outside"}], "samples": 3},
        {"shards": [ENTRY | {"file": "/etc/passwd"}], "samples": 3},
        {"shards": [ENTRY | {"file": "a/b"}], "samples": 3},
        {"shards": [ENTRY | {"file": ".hidden"}], "samples": 3},
        {"shards": [ENTRY | {"file": "nul\0"}], "samples": 3},
        {"latents": 5},
    ],
)
def test_an_index_that_does_not_add_up_is_damaged(dataset, changes):
    rewrite(dataset, **changes)
    with pytest.raises(DamagedDataError, match=r"index\.json"):
        ArrayRecordSource(dataset)


def test_an_index_that_counts_wrong_is_noticed_on_reading(dataset):
    index = shards.read_index(dataset)
    entries = [Shard(e.file, e.samples + (e.file == "shard-00001.array_record"), e.bytes, e.sha256) for e in index["shards"]]
    shards.write_index(dataset, "texts", entries, images=0, kinds={"text": 9})
    source = ArrayRecordSource(dataset)
    assert source[0].key == "k0"
    with pytest.raises(DamagedDataError, match="1 records, expected 2"):
        source[3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_index_is_an_error_or_whole(written, data):
    """Values exchanged, removed or of another type anywhere in index.json."""
    value = json.loads((written / shards.INDEX).read_text())
    holder = value if data.draw(st.booleans()) else value["shards"][data.draw(st.integers(0, 2))]
    name = data.draw(st.sampled_from([*holder]))
    if data.draw(st.booleans()):
        del holder[name]
    else:
        holder[name] = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder:
        for file in written.iterdir():
            (pathlib.Path(folder) / file.name).hardlink_to(file)
        (pathlib.Path(folder) / shards.INDEX).unlink()
        (pathlib.Path(folder) / shards.INDEX).write_text(json.dumps(value))
        try:
            source = ArrayRecordSource(folder)
        except (InputError, DamagedDataError) as error:
            assert "\n" not in str(error)
            return
        assert len(source) == 8 and source[3].key == "k3" and source.unused.to_json() == {}
