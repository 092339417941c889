"""The stand-in for many objects: what a client sees of it is what it sees of fake-gcs-server."""

import json
import os
import socket
import time

import pytest

from benchmarks import stand_in_buckets
from benchmarks.pod_data import restart_in_bucket
from nextstep_jax import storage
from nextstep_jax.data.shards import INDEX, Shard, shard_name, write_index

pytest_plugins = ["tests.buckets"]

OBJECTS = {f"many/{name}": bytes(range(n)) for n, name in enumerate(("a", "b c", "d/e", "f%2F", "g+h", "0"), 5)}


def seen(address: str) -> list:
    """What can be asked of a folder with `OBJECTS`."""
    folder = storage.as_given(f"{address}/many")
    names = list(folder.below())
    parts = [(folder / name).read(2, 4) for name in names]
    wholes = [(folder / name).open().read() for name in names]
    there = [(folder / name).is_file() for name in ("a", "z", "d")]
    return [names, list(folder.below(["b", "d/e"])), parts, wholes, there, list(folder.iterdir()), (folder / "z").is_dir()]


def test_it_is_like_another_store(stand_ins, monkeypatch):
    monkeypatch.setattr(stand_in_buckets, "PAGE", 2)
    for name, data in OBJECTS.items():
        (storage.as_given(stand_ins["gs"]) / name).write_bytes(data)
    found = seen(stand_ins["gs"])
    storage.as_given(f"{stand_ins['gs']}/many").remove_below()
    with stand_in_buckets.read_only_bucket(OBJECTS | {"another": b""}) as address:
        assert seen(address) == found
        assert found[0] == sorted(name.removeprefix("many/") for name in OBJECTS)
        with pytest.raises(OSError, match="Method Not Allowed"):
            (storage.as_given(address) / "new").write_bytes(b"")


def test_opening_a_dataset_lists_it_once_and_reads_no_more_of_the_index_for_its_format(tmp_path, monkeypatch):
    answers, ask = [], stand_in_buckets._Reader.ask

    def recorded(self, method, path, *rest):
        status, headers, data = ask(self, method, path, *rest)
        answers.append((path.partition("?")[0], data))
        return status, headers, data

    monkeypatch.setattr(stand_in_buckets._Reader, "ask", recorded)
    count = 2_500
    shards = [Shard(shard_name(number), 10, 100, f"{number:064x}") for number in range(count)]
    write_index(tmp_path, "many", shards, images=0, kinds={"pair": 10 * count})
    figures = restart_in_bucket(tmp_path, count)
    assert figures["shards"] == count and figures["opening"]["seconds"] > 0
    pages = [json.loads(data)["items"] for path, data in answers if path.endswith("/o")]
    assert sorted(len(page) for page in pages if len(page) > 1) == [501, 1000, 1000]
    read = sum(len(data) for path, data in answers if path.endswith(INDEX))
    # The client learns where an object ends by asking for more than there is, and then reads it again.
    assert read < 2.1 * (tmp_path / INDEX).stat().st_size


def test_a_client_killed_in_an_upload_keeps_nobody_waiting(stand_ins):
    """Nor does what it was about to write come to be."""
    host, port = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /upload/storage/v1/b/runs/o?uploadType=media&name=half HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc"
        )
    began = time.monotonic()
    (storage.as_given(stand_ins["gs"]) / "whole").write_bytes(b"abc")
    assert time.monotonic() - began < 10
    assert not (storage.as_given(stand_ins["gs"]) / "half").exists()
