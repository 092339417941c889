"""Objects as both clouds keep them: names, reading, versions."""

import concurrent.futures
import pickle

import numpy as np
import pytest

from nextstep_jax import storage
from nextstep_jax.errors import InputError
from nextstep_jax.storage import objects
from nextstep_jax.storage.objects import ABSENT, ChangedError, ObjectPath

pytest_plugins = ["tests.buckets"]


def test_an_address_is_taken_apart_and_put_together():
    path = storage.at("gs://runs/stage1") / "samples" / "step_01.png"
    assert str(path) == "gs://runs/stage1/samples/step_01.png" and (path.name, path.stem, path.suffix) == (
        "step_01.png",
        "step_01",
        ".png",
    )
    assert path.parent.parent == ObjectPath("gs://runs/stage1/") and path.relative_to(path.parent) == "step_01.png"
    assert pickle.loads(pickle.dumps(path)) == path and len({path, ObjectPath(str(path))}) == 1
    assert path.with_name("a") < path and ObjectPath("s3://runs").name == "runs"


@pytest.mark.parametrize(
    "address", ["http://host/a", "gs://", "gs:///a", "gs://runs/../a", "gs://runs/a//b", "s3://runs/a*", "az://runs/a"]
)
def test_anything_else_is_refused_in_one_line(address):
    with pytest.raises(InputError, match=r"expected gs://BUCKET/NAME or s3://BUCKET/NAME"):
        storage.at(address)


def test_objects_are_read_listed_and_deleted(bucket):
    folder = storage.at(bucket)
    assert not folder.exists() and list(folder.iterdir()) == []
    for name, data in {"b/c": b"2", "a": b"1" * 100, "b/d/e": b""}.items():
        (folder / name).write_bytes(data)
    folder.with_name(f"{folder.name}0").write_bytes(b"a neighbor whose name begins alike")
    assert list(folder.below()) == list(folder.below(["a0", "b/c", "b/d"])) == ["a", "b/c", "b/d/e"]
    assert list(folder.iterdir()) == [folder / "a", folder / "b"] and list(folder.glob("[b]*")) == [folder / "b"]
    assert folder.is_dir() and not folder.is_file() and (folder / "a").is_file() and not (folder / "a").is_dir()
    assert (folder / "a").stat().st_size == 100 and (folder / "b/d/e").read_bytes() == b"" == (folder / "b/d/e").open().read()
    (folder / "a").unlink()
    (folder / "a").unlink()
    (folder / "b").remove_below()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match="no such object"):
        (folder / "a").read_bytes()
    with pytest.raises(FileNotFoundError, match="no such object"):
        (folder / "a").open()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2500, 3000])
def test_a_large_object_is_read_in_ranges(bucket, monkeypatch, size):
    monkeypatch.setattr(objects, "_READ_BYTES", 1000)
    data = np.random.default_rng(size).bytes(size)
    path = storage.at(bucket) / "large"
    path.write_bytes(data)
    with path.open() as file:
        assert file.read(10) + file.read() == data


def test_a_version_is_created_once_and_replaced_by_who_knows_it(bucket):
    path = storage.at(bucket) / "lock"
    assert path.read_versioned() == (b"", ABSENT)
    first = path.replace_version(b"mine", ABSENT)
    assert path.read_versioned() == (b"mine", first)
    with pytest.raises(ChangedError):
        path.replace_version(b"yours", ABSENT)
    second = path.replace_version(b"mine again", first)
    with pytest.raises(ChangedError):
        path.replace_version(b"yours", first)
    assert path.read_versioned() == (b"mine again", second)
    # A write whose answer was lost, tried again, finds its own bytes.
    assert path.replace_version(b"mine again", first) == second
    path.unlink()
    with pytest.raises(ChangedError):
        path.replace_version(b"too late", second)


def test_of_many_who_create_at_once_one_succeeds(bucket):
    path = storage.at(bucket) / "lock"

    def create(number: int) -> bool:
        try:
            path.replace_version(b"%d" % number, ABSENT)
        except ChangedError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1 and path.read_bytes() == b"%d" % created.index(True)


def test_a_bucket_that_is_not_there_is_one_line(stand_ins):
    with pytest.raises(InputError, match="^s3://nowhere: no such bucket$"):
        storage.of(storage.at("s3://nowhere/a")).require(storage.at("s3://nowhere/a"))
    with pytest.raises(OSError, match="no such bucket"):
        storage.at("gs://nowhere/a").write_bytes(b"")


@pytest.mark.parametrize(("scheme", "variable"), [("gs", "STORAGE_EMULATOR_HOST"), ("s3", "AWS_ENDPOINT_URL")])
def test_a_store_that_does_not_answer_is_one_line(stand_ins, monkeypatch, scheme, variable):
    monkeypatch.setattr(storage, "_RETRIES", {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"})
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=f"^{scheme}://unreachable: cannot be reached: [^\n]*$"):
        storage.at(f"{scheme}://unreachable/a").require_bucket()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("PERMISSION_DENIED: nobody may [http_response_code='403']", "access denied; credentials are taken from"),
        ("UNAUTHENTICATED: who are you", "gcloud auth application-default login"),
        ("NOT_FOUND: The specified bucket does not exist. [x]", "no such bucket"),
        ("ABORTED: All 3 retry attempts failed: CURL error Could not resolve hostname [x]", "cannot be reached"),
        ("DATA_LOSS: odd\nsecond line [more]", "DATA_LOSS: odd second line"),
    ],
)
def test_what_the_client_says_becomes_one_line(said, told):
    line = objects.explain(ValueError(said), "gs")
    assert told in line and "\n" not in line and "[" not in line


def test_waiting_is_said(caplog):
    class Slow:
        asked = 0

        def result(self, timeout):
            self.asked += 1
            if self.asked < 3:
                raise TimeoutError
            return "done"

    assert ObjectPath("gs://runs/a")._wait(Slow()) == "done"
    assert caplog.text.count("gs://runs/a: still waiting for the bucket") == 2
