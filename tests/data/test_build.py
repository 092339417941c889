"""Building datasets: checks and their report, the threshold, workers, interruption and resumption."""

import collections
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from click.testing import CliRunner

from nextstep_jax.cli import cli
from nextstep_jax.data import build, captions, images, records, shard_job, shards
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.sources import ShapesSource
from nextstep_jax.errors import DamagedDataError, InputError, NextStepError

SHAPES = ShapesSource("pair", "train", 10)


def png(height=20, width=24, level=100):
    return encode_image(np.full((height, width, 3), level, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """40 pictures with captions; tests spoil some."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for i in range(40):
        (directory / f"{i:02d}.png").write_bytes(png(level=i))
        (directory / f"{i:02d}.txt").write_text(f"picture {i}")
    return directory


def contents(directory):
    """Everything a dataset is read from."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.suffix == ".array_record" or path.name == "index.json"
    }


def test_what_is_built_is_what_was_read(tmp_path):
    report = build.build(SHAPES, tmp_path / "out", shard_samples=4, name="mine")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["samples"], report["written"], report["skipped"], report["finished"]) == (10, 10, 0, True)
    source = ArrayRecordSource(tmp_path / "out")
    assert [source[i] for i in range(10)] == [SHAPES[i] for i in range(10)]
    assert (source.name, source.index["images"], source.index["kinds"]) == ("mine", 10, {"pair": 10})
    assert [shard.samples for shard in source.index["shards"]] == [4, 4, 2]
    source.verify()


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        build.build(SHAPES, tmp_path / f"by {workers}", shard_samples=3, workers=workers)
    assert contents(tmp_path / "by 1") == contents(tmp_path / "by 2")


# --- checks and the report --------------------------------------------------------------------------------------------


def test_unusable_samples_are_skipped_counted_and_named(folder, tmp_path):
    (folder / "03.png").write_bytes(png()[:-30])
    (folder / "07.txt").write_text("  ")
    (folder / "11.txt").unlink()
    (folder / "12.png").write_bytes(png(width=8))
    (folder / "13.png").write_bytes(png(height=16, width=16 * 9))
    (folder / "14.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0" + b"\0" * 4)
    (folder / "15.txt").rename(folder / "15.json")
    report = build.build(FolderSource(folder), tmp_path / "out", max_skipped=0.5, shard_samples=10)
    assert report["reasons"] == {"caption": 2, "damaged image": 2, "malformed sample": 1, "size": 2}
    named = {entry["index"]: (entry["reason"], entry["message"]) for entry in report["skipped_samples"]}
    expected = {
        3: ("damaged image", "03.png: image 0: damaged or truncated PNG"),
        7: ("caption", "07.txt: empty caption"),
        11: ("caption", "11.png: no caption"),
        12: ("size", "12.png: image 0 is 8x20 pixels, under 16"),
        13: ("size", "13.png: image 0 is 144x16 pixels, over 8:1"),
        14: ("damaged image", "14.png: damaged or truncated PNG"),
        15: ("malformed sample", "15.json: not valid JSON"),
    }
    assert set(named) == set(expected)
    for index, (reason, message) in expected.items():
        assert named[index][0] == reason and message in named[index][1]
    source = ArrayRecordSource(tmp_path / "out")
    assert [source[i].key for i in range(len(source))] == [f"{i:02d}.png" for i in range(40) if i not in expected]


def test_a_decompression_bomb_counts_as_a_size(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 20 * 24 - 1)
    (folder / "03.png").write_bytes(png(height=19))
    with pytest.raises(InputError, match="39 size"):
        build.build(FolderSource(folder), tmp_path / "out", shard_samples=100)


@pytest.mark.parametrize("workers", [1, 2])
def test_over_the_threshold_the_build_stops_with_its_report(folder, tmp_path, workers):
    for i in (3, 5):
        (folder / f"{i:02d}.png").write_bytes(b"junk")
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        build.build(FolderSource(folder), out, max_skipped=0.04, shard_samples=10, workers=workers)
    assert caught.value.exit_code == 2
    assert (
        f"{out}/report.json: 2 of 40 samples (5.00%) cannot be used, at most 4.00% may be: 2 damaged image; the first: "
        in str(caught.value)
    )
    report = json.loads((out / "report.json").read_text())
    assert (report["finished"], [entry["index"] for entry in report["skipped_samples"]]) == (False, [3, 5])
    with pytest.raises(InputError, match="not a dataset"):
        ArrayRecordSource(out)
    assert not list(out.glob(".*"))

    first = (out / "shard-00000.array_record").stat().st_mtime_ns
    report = build.build(FolderSource(folder), out, max_skipped=0.05, shard_samples=10)
    assert (report["finished"], report["written"]) == (True, 38)
    assert (out / "shard-00000.array_record").stat().st_mtime_ns == first


def test_the_default_threshold_is_one_percent(tmp_path):
    class Bad(ShapesSource):
        def __getitem__(self, index):
            if index in self.bad:
                raise InputError(f"sample {index} is bad")
            return records.Sample((records.TextPart("x"),), "text", "k")

    source = Bad("text", "train", 200)
    source.bad = (0, 199)
    assert build.build(source, tmp_path / "two")["skipped"] == 2
    source.bad = (0, 100, 199)
    with pytest.raises(InputError, match="3 of 200 samples"):
        build.build(source, tmp_path / "three")


def test_a_shard_without_samples_is_left_out(folder, tmp_path):
    for i in range(10, 20):
        (folder / f"{i:02d}.png").write_bytes(b"junk")
    build.build(FolderSource(folder), tmp_path / "out", shard_samples=10, max_skipped=1)
    source = ArrayRecordSource(tmp_path / "out")
    assert [shard.file for shard in source.index["shards"]] == [shards.shard_name(i) for i in (0, 2, 3)]
    assert [source[i].key for i in (9, 10)] == ["09.png", "20.png"]


def test_damaged_stored_data_stops_the_build(tmp_path):
    build.build(SHAPES, tmp_path / "first")
    path = tmp_path / "first" / shards.shard_name(0)
    source = ArrayRecordSource(tmp_path / "first")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedDataError) as caught:
        build.build(source, tmp_path / "second")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "second" / "index.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"shard_samples": 0}, "shard_samples must be"),
        ({"max_skipped": 1.5}, "max_skipped must be"),
        ({"max_skipped": float("nan")}, "max_skipped must be"),
        ({"max_aspect": 0.5}, "max_aspect must be"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        build.build(SHAPES, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- what is in the way -----------------------------------------------------------------------------------------------


def test_a_folder_with_something_else_is_left_alone(folder, tmp_path):
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match="photos: already there"):
        build.build(SHAPES, folder)
    assert sorted(folder.iterdir()) == before
    with pytest.raises(InputError, match="cannot be created|already there"):
        build.build(SHAPES, folder / "00.png")
    with pytest.raises(InputError, match="cannot be created"):
        build.build(SHAPES, folder / "00.png" / "out")


@pytest.mark.parametrize("other", [{"shard_samples": 5}, {"min_side": 20}, {"source": ShapesSource("text", "train", 10)}])
def test_another_build_does_not_overwrite_a_dataset(tmp_path, other):
    build.build(SHAPES, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds a dataset made otherwise"):
        build.build(**({"source": SHAPES, "out": tmp_path} | other))
    assert contents(tmp_path) == before


def test_two_builds_at_once_are_refused(tmp_path):
    build.build(SHAPES, tmp_path)
    with open(tmp_path / "progress" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing it"):
            build.build(SHAPES, tmp_path)
    assert (tmp_path / "index.json").exists()


# --- resuming ---------------------------------------------------------------------------------------------------------


def times(directory):
    return [path.stat().st_mtime_ns for path in sorted(directory.glob("*.array_record"))]


def changed_shards(directory, before):
    return [i for i, (a, b) in enumerate(zip(before, times(directory), strict=True)) if a != b]


def test_a_finished_dataset_is_verified_and_kept(tmp_path):
    build.build(SHAPES, tmp_path, shard_samples=3)
    before, data = times(tmp_path), contents(tmp_path)
    build.build(SHAPES, tmp_path, shard_samples=3)
    assert times(tmp_path) == before and contents(tmp_path) == data


def test_damaged_and_unaccounted_shards_are_made_again(tmp_path):
    build.build(SHAPES, tmp_path, shard_samples=2)
    data, before = contents(tmp_path), times(tmp_path)
    shard = tmp_path / shards.shard_name(0)
    shard.write_bytes(data[shard.name][:500] + b"?" + data[shard.name][501:])
    (tmp_path / shards.shard_name(1)).write_bytes(data[shards.shard_name(1)][:1000])
    entry = tmp_path / "progress" / "shard-00003.json"
    entry.write_text(entry.read_text()[:50])
    (tmp_path / ".shard-00004.array_record.tmp-123").write_bytes(b"half written")
    build.build(SHAPES, tmp_path, shard_samples=2)
    assert contents(tmp_path) == data
    assert changed_shards(tmp_path, before) == [0, 1, 3]
    assert not list(tmp_path.glob(".*"))


def test_shards_whose_source_changed_are_made_again(folder, tmp_path):
    out = tmp_path / "out"
    (folder / "25.png").write_bytes(b"junk")
    build.build(FolderSource(folder), out, shard_samples=10, max_skipped=0.1)
    before = times(out)
    (folder / "25.png").write_bytes(png(level=200))
    report = build.build(FolderSource(folder), out, shard_samples=10, max_skipped=0.1)
    assert report["skipped"] == 0
    assert changed_shards(out, before) == [2]
    assert ArrayRecordSource(out)[25].images[0].pixels()[0, 0, 0] == 200


KILLED = """
import os, pathlib, sys, time
from nextstep_jax.data import build, sources

class Slow(sources.ShapesSource):
    def __getitem__(self, index):
        (pathlib.Path(sys.argv[2]) / str(os.getpid())).touch()
        time.sleep(0.02)
        return super().__getitem__(index)

if __name__ == "__main__":
    build.build(Slow("pair", "train", 120), sys.argv[1], shard_samples=10, workers=int(sys.argv[3]))
"""


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_where_it_was(tmp_path, workers):
    script, out, seen = tmp_path / "script.py", tmp_path / "out", tmp_path / "pids"
    script.write_text(KILLED)
    seen.mkdir()
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, str(script), str(out), str(seen), str(workers)], env=environment)
    try:
        wait_for(lambda: len(list(out.glob("progress/shard-*.json"))) >= 2 and list(out.glob(".shard-*.tmp-*")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not any(running(path.name) for path in seen.iterdir()))  # the workers follow the parent

    assert not (out / "index.json").exists()
    with pytest.raises(InputError, match="not a dataset"):
        ArrayRecordSource(out)
    finished = {path.stem: path.stat().st_mtime_ns for path in (out / "progress").glob("shard-*.json")}
    build.build(ShapesSource("pair", "train", 120), out, shard_samples=10)
    assert {name: (out / "progress" / f"{name}.json").stat().st_mtime_ns for name in finished} == finished
    build.build(ShapesSource("pair", "train", 120), tmp_path / "at once", shard_samples=10)
    assert contents(out) == contents(tmp_path / "at once")
    assert not list(out.glob(".*"))


class Deadly(ShapesSource):
    def __getitem__(self, index):
        if index == 7:
            os._exit(9)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_an_error_and_not_a_wait(tmp_path):
    with pytest.raises(NextStepError, match="a worker process died"):
        build.build(Deadly("pair", "train", 10), tmp_path / "out", shard_samples=2, workers=2)
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_shard_is_counted_by_what_is_in_it(tmp_path):
    samples = [ShapesSource("edit", "train", 2)[0], shard_job.Skipped(1, "size", "no"), ShapesSource("text", "train", 1)[0]]
    made = shard_job.make_shard(prepared(tmp_path), 0, "digest", samples)
    assert (made.images, collections.Counter(made.kinds), made.skipped) == (2, {"edit": 1, "text": 1}, (samples[1],))
    assert shard_job.make_shard(tmp_path, 0, "digest", iter(())) == made  # kept: the samples are not even asked for
    assert shard_job.make_shard(tmp_path, 0, "other", iter(())).shard.samples == 0


def prepared(directory):
    (directory / "progress").mkdir()
    return directory


def test_the_report_names_what_was_not_used(folder, tmp_path):
    """On the command line too, for what lies beside samples and for what a caption leaves out."""
    (folder / "lost.txt").write_text("x")
    (folder / "old.zip").write_bytes(b"x")
    tar = tmp_path / "t.tar"
    caption = json.dumps({"caption": "<image_0>", "caption_b": "<image_1>"}).encode()
    with tarfile.open(tar, "w") as file:
        for name, data in (("k.json", caption), ("k-0.png", png()), ("k-1.png", png())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    for number, options in enumerate(([str(folder), "--max-skipped", "1"], [str(tar), "--kind", "interleaved"])):
        out = tmp_path / f"out{number}"
        for _ in range(2):  # the second time, shards are kept, and so is their account
            result = CliRunner().invoke(cli, ["data", "build", *options[:1], str(out), "--workers", "1", *options[1:]])
            assert result.exit_code == 0, result.output
            unused = json.loads((out / "report.json").read_text())["unused"]
            assert all(f"{things['count']} {reason}" in result.output for reason, things in unused.items())
        found = {reason: [name.rpartition(": k")[2] for name in things["names"]] for reason, things in unused.items()}
        if number:
            assert found == {captions.UNPLACED: [": image 1"], captions.OTHER_VARIANT: [": caption_b"]}
        else:
            assert found["caption without an image"] == ["lost.txt"] and found["archive that is not read"] == ["old.zip"]
        shown = CliRunner().invoke(cli, ["data", "inspect", options[0], *(options[1:] if number else [])])
        assert all(f"not used  {things['count']} {reason}" in shown.output for reason, things in unused.items())
