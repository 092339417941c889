"""What a file system and a bucket promise alike: whole files, whole folders, whole steps."""

import pytest

from nextstep_jax import storage
from nextstep_jax.errors import InputError
from nextstep_jax.storage import buckets

pytest_plugins = ["tests.buckets"]


@pytest.fixture(params=["local", "gs", "s3"])
def folder(request, tmp_path):
    """A place on a file system and one in each kind of bucket; the folder itself is not there yet."""
    if request.param == "local":
        return tmp_path / "runs"
    address = request.getfixturevalue("stand_ins")[request.param]
    return storage.at(f"{address}/{tmp_path.name}-{abs(hash(str(tmp_path)))}")


def _fill(place, **files):
    for name, data in files.items():
        place.mkdir(parents=True, exist_ok=True)
        storage.of(place).write(place / name, data)


def test_a_new_folder_is_there_with_its_last_file(folder):
    store = storage.of(folder)
    with store.new_folder(folder, "marker") as partial:
        _fill(partial, a=b"1")
        assert store.list_files(partial) == ["a"] and not (folder / "marker").exists()
        _fill(partial, marker=b"")
    assert store.list_files(folder) == ["a", "marker"]
    with pytest.raises(InputError, match="already exists"):
        store.require_new(folder, "marker")
    with pytest.raises(InputError, match="already exists"), store.new_folder(folder, "marker"):
        raise AssertionError
    assert (folder / "a").read_bytes() == b"1"


def test_a_new_folder_that_fails_leaves_nothing(folder):
    store = storage.of(folder)
    with pytest.raises(ZeroDivisionError), store.new_folder(folder, "marker") as partial:
        _fill(partial, a=b"1", marker=b"")
        1 / 0  # noqa: B018
    assert not folder.exists()


def test_a_folder_of_other_things_is_never_filled(folder):
    _fill(folder, notes=b"mine")
    with pytest.raises(InputError, match="already exists"), storage.of(folder).new_folder(folder, "marker"):
        raise AssertionError
    assert (folder / "notes").read_bytes() == b"mine"


def test_a_folder_made_from_local_files(folder):
    store = storage.of(folder)
    with store.new_local_folder(folder, "marker") as local:
        (local / "inner").mkdir()
        (local / "inner" / "a").write_bytes(b"1")
        (local / "marker").write_bytes(b"2")
    assert store.list_files(folder) == ["inner/a", "marker"] and (folder / "inner" / "a").read_bytes() == b"1"


def test_a_folder_takes_the_place_of_an_earlier_one(folder):
    store = storage.of(folder)
    _fill(folder, old=b"1", marker=b"")
    with store.replacing_folder(folder, "marker") as fresh:
        assert not (fresh / "marker").exists()
        _fill(fresh, new=b"2", marker=b"")
    assert store.list_files(folder) == ["marker", "new"]


def test_a_local_file_is_in_place_when_it_is_whole(folder):
    folder.mkdir(parents=True)
    store, path = storage.of(folder), folder / "table.bin"
    with pytest.raises(ZeroDivisionError), store.local_file(path) as file:
        file.write_bytes(b"half")
        1 / 0  # noqa: B018
    assert not path.exists()
    with store.local_file(path) as file:
        file.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and store.list_files(folder) == ["table.bin"]


def test_files_of_a_library_are_kept_even_if_the_block_fails(folder):
    folder.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), storage.of(folder).local_folder(folder / "profile") as local:
        (local / "sub").mkdir(parents=True)
        (local / "sub" / "trace").write_bytes(b"1")
        1 / 0  # noqa: B018
    assert (folder / "profile" / "sub" / "trace").read_bytes() == b"1"


def test_a_file_grows(folder, monkeypatch):
    folder.mkdir(parents=True)
    path = folder / "metrics.jsonl"
    file = storage.of(folder).append(path, "kept\n")
    file.write("first\n")
    file.sync()
    assert path.read_text() == "kept\nfirst\n"
    file.write("second\n")
    monkeypatch.setattr(buckets, "_UPLOAD_EVERY_S", 0.0)
    file.flush()
    assert path.read_text() == "kept\nfirst\nsecond\n"
    file.write("third\n")
    file.close()
    assert path.read_text() == "kept\nfirst\nsecond\nthird\n"


def _write_step(steps, number, complete=True):
    step = steps / str(number)
    storage.of(step).begin_step(step)
    _fill(storage.of(step).step_in_progress(step), a=b"%d" % number)
    if complete:
        storage.of(step).complete_step(step)
    return step


def test_a_step_counts_once_it_is_complete(folder):
    store = storage.of(folder)
    _write_step(folder, 9)
    half = _write_step(folder, 10, complete=False)
    assert store.list_steps(folder) == [9] and not store.is_complete(half) and store.is_complete(folder / "9")
    store.complete_step(half)
    assert store.list_steps(folder) == [9, 10] and (half / "a").read_bytes() == b"10"
    store.remove_step(folder / "9")
    assert store.list_steps(folder) == [10] and not (folder / "9").exists()


def test_a_damaged_step_is_kept_and_counts_no_more(folder):
    store, step = storage.of(folder), _write_step(folder, 3)
    _write_step(folder, 4)
    store.set_aside(step)
    assert store.list_steps(folder) == [4] and store.clear_leftovers(folder) == []
    assert [name for name in store.list_files(folder) if name.endswith("/a") and name != "4/a"]


def test_leftovers_of_a_killed_run_go(folder):
    store = storage.of(folder)
    _write_step(folder, 1)
    _write_step(folder, 2, complete=False)
    assert store.clear_leftovers(folder) == ["2"]
    assert store.list_steps(folder) == [1] and store.clear_leftovers(folder) == []
    store.drop_step(folder / "7")  # which is not there


def test_a_step_half_removed_is_gone_without_a_word(bucket):
    folder = storage.at(bucket)
    step, store = _write_step(folder, 1), storage.of(folder)
    (step / buckets.DELETING).write_bytes(b"")  # and then it was killed
    _write_step(folder, 2)
    assert store.clear_leftovers(folder) == [] and store.list_steps(folder) == [2] and not step.exists()


def test_a_listing_that_lacks_the_newest_loses_no_step(bucket, monkeypatch):
    folder = storage.at(bucket)
    store = storage.of(folder)
    for number in (1, 2):
        _write_step(folder, number)
    listed = storage.objects.ObjectPath.below
    monkeypatch.setattr(
        storage.objects.ObjectPath, "below", lambda self: (n for n in listed(self) if not n.endswith(f"2/{buckets.COMPLETE}"))
    )
    assert store.list_steps(folder) == [1, 2]
    assert store.clear_leftovers(folder) == [] and store.is_complete(folder / "2")


def test_a_new_folder_clears_what_a_killed_writer_left(bucket):
    folder = storage.at(bucket)
    filling = storage.of(folder).new_folder(folder, "marker")
    _fill(filling.__enter__(), stale=b"1")  # and then it was killed
    with storage.of(folder).new_folder(folder, "marker") as partial:
        _fill(partial, a=b"1", marker=b"")
    assert list(folder.below()) == ["a", "marker"]
    with pytest.raises(InputError, match="name a folder in the bucket"):
        storage.of(folder).require_new(storage.at(bucket.rpartition("/")[0]), "marker")
