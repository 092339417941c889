"""One run in a working directory, whatever became of the one before."""

import datetime
import json
import os
import signal
import threading
import time

import pytest

from nextstep_jax.checkpoints import lock
from nextstep_jax.checkpoints.lock import RunLock
from nextstep_jax.errors import InputError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "STALE_AFTER_S", 0.6)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)


def _hold(start_program, folder):
    process = start_program("hold_lock.py", folder)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_by_name_and_the_first_keeps_its_lock(tmp_path, start_program):
    process = _hold(start_program, tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=f"in use by another run .process {process.pid} on"):
            RunLock(tmp_path)


def test_a_second_lock_in_the_same_process_is_refused(tmp_path):
    first = RunLock(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


def test_a_killed_run_leaves_no_lock(tmp_path, start_program):
    process = _hold(start_program, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run.json").exists()
    begin = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() - begin < lock.STALE_AFTER_S  # the kernel knows at once


def _leave_foreign(folder):
    (folder / "run.json").write_text(json.dumps({"pid": 5, "host": "elsewhere", "machine": "elsewhere 0"}))


def test_a_silent_owner_on_another_machine_is_taken_for_dead(tmp_path):
    _leave_foreign(tmp_path)
    taken = RunLock(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["pid"] == os.getpid()
    taken.release()
    assert not (tmp_path / "run.json").exists()


def test_a_living_owner_on_another_machine_is_respected(tmp_path):
    _leave_foreign(tmp_path)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.02):
            os.utime(tmp_path / "run.json")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 5 on elsewhere"):
            RunLock(tmp_path)
    finally:
        stop.set()
        thread.join()


def _wait_until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _told(folder):
    return json.loads((folder / "run.json").read_text())


def test_the_holder_shows_that_it_lives_and_how_far_it_is(tmp_path):
    held = RunLock(tmp_path)
    first = _told(tmp_path)
    assert (first["beats"], first["step"], first["pid"]) == (0, 0, os.getpid())
    held.step = 7
    _wait_until(lambda: _told(tmp_path)["step"] == 7 and _told(tmp_path)["beats"] > 1)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(_told(tmp_path)["time"])
    assert 0 <= age.total_seconds() < 20
    held.release()


def test_on_a_full_disk_the_holder_still_shows_that_it_lives(tmp_path, monkeypatch):
    held = RunLock(tmp_path)

    def full(*_):
        raise OSError(lock.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(lock.storage.of(tmp_path)), "write", full)
    before = (tmp_path / "run.json").stat().st_mtime_ns
    _wait_until(lambda: (tmp_path / "run.json").stat().st_mtime_ns != before)
    held.release()


def test_where_there_are_no_file_locks_the_heartbeat_decides(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    held = RunLock(tmp_path)
    lock._held.clear()  # as another process sees it
    with pytest.raises(InputError, match="in use"):
        RunLock(tmp_path)
    held.release()
    RunLock(tmp_path).release()


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        RunLock(tmp_path)
