"""Checkpoints in buckets of both kinds keep what those on a file system promise."""

import json
import os
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax import checkpoints, storage
from nextstep_jax.checkpoints import bucket_lock, lock, steps
from nextstep_jax.checkpoints.bucket_lock import BucketLock
from nextstep_jax.checkpoints.export import export_params
from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage.buckets import COMPLETE, DAMAGED
from nextstep_jax.storage.files import identity
from tests.checkpoints.test_damage import undetected
from tests.checkpoints.test_processes import VALUES, Pair

pytest_plugins = ["tests.buckets"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "STALE_AFTER_S", 0.6)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)


def _save(workdir, state, *saved_steps, **options):
    with TrainCheckpointer(workdir, config={"seed": 1}, **options) as checkpointer:
        for step in saved_steps:
            checkpointer.save(step, state | {"step": jnp.int32(step)}, {"position": step})
            checkpointer.wait()
        return checkpointer


def _restore(workdir, target):
    with TrainCheckpointer(workdir, config={}) as checkpointer:
        return checkpointer.restore(target)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_come_back_and_damage_is_found(bucket, params, assert_same):
    checkpoints.save_params(bucket, params, {"model": {"a": 1}}, {"tokenizer.json": b"{}"})
    assert_same(params, checkpoints.load_params(bucket))
    assert checkpoints.load_config(bucket)["model"] == {"a": 1} and checkpoints.load_file(bucket, "tokenizer.json") == b"{}"
    with pytest.raises(InputError, match="already exists"):
        checkpoints.save_params(bucket, params, {})
    folder = storage.at(bucket)
    missed, trials = undetected(folder, lambda: checkpoints.load_params(bucket))
    assert missed == [] and trials > 30
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="not written whole"):
        checkpoints.load_params(bucket)


def test_a_writer_that_fails_leaves_nothing(bucket):
    def leaves():
        yield "model/a", np.zeros(3, np.float32)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        checkpoints.save_params(bucket, leaves(), {})
    assert not storage.at(bucket).exists()


def test_the_bucket_and_the_disk_hold_the_same(bucket, tmp_path, params):
    for place in (bucket, tmp_path / "c"):
        checkpoints.save_params(place, params, {"model": {}})
    entries = [json.loads((storage.at(place) / "manifest.json").read_bytes())["leaves"] for place in (bucket, tmp_path / "c")]
    assert entries[0] == entries[1]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_is_saved_restored_and_exported(bucket, state, assert_same):
    made = _save(bucket, state, 5, 6, 7, keep_last=2)
    assert made.failed_saves == 0 and steps.list_steps(storage.at(bucket) / "checkpoints") == [6, 7]
    found = _restore(bucket, state)
    assert_same(state, found.state)
    assert (found.step, found.data_states, found.config, found.warnings) == (7, ({"position": 7},), {"seed": 1}, ())
    assert not (storage.at(bucket) / lock.OWNER_FILE).exists()
    export_params(bucket, f"{bucket}/export", config={"model": {}}, part=None)
    kernel = checkpoints.load_params(f"{bucket}/export", subtree="model")["decoder"]["layers_1"]["q"]["kernel"]
    assert np.array_equal(kernel, state["params"]["model"]["decoder"]["layers"]["q"]["kernel"][1])


def test_every_damage_to_a_step_is_found_and_the_one_before_restored(bucket, state, assert_same):
    _save(bucket, state, 1, 2)
    folder = storage.at(bucket) / "checkpoints" / "2"
    (folder / COMPLETE).unlink()  # an empty object: there is nothing in it to damage
    missed, trials = undetected(folder, lambda: steps.restore_step(folder, state, cast=False))
    assert missed == [] and trials > 50
    storage.of(folder).complete_step(folder)
    largest = max((folder / name for name in folder.below()), key=lambda path: len(path.read_bytes()))
    largest.write_bytes(largest.read_bytes()[:-1])
    found = _restore(bucket, state)
    assert_same(state | {"step": jnp.int32(1)}, found.state)
    assert found.step == 1 and "checkpoint 2 is damaged" in found.warnings[0] and largest.name in found.warnings[0]
    assert (folder / DAMAGED).is_file() and steps.list_steps(folder.parent) == [1]


def test_a_half_written_step_is_named_and_skipped(bucket, state):
    _save(bucket, state, 1, 2)
    folder = storage.at(bucket) / "checkpoints" / "2"
    (folder / COMPLETE).unlink()
    found = _restore(bucket, state)
    assert found.step == 1 and found.warnings == (
        "checkpoint 2 was not written whole (the run stopped while saving it); removed",
    )
    assert not folder.exists()


def test_no_step_is_whole(bucket, state):
    _save(bucket, state, 1)
    folder = storage.at(bucket) / "checkpoints" / "1"
    (folder / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(DamagedDataError, match="no checkpoint of this run is whole.*manifest.ocdbt is missing"):
        _restore(bucket, state)


def test_other_meshes(stand_ins, run_program):
    assert run_program("other_meshes.py", f"{stand_ins['gs']}/meshes", devices=8).strip().endswith("ok")


def test_two_processes_and_one(stand_ins, start_program):
    workdir = f"{stand_ins['gs']}/pair"
    pair = Pair(start_program, workdir, "save, fail, save")
    assert pair.reports() == [{"failed_saves": 1, "last_good": 3}] * 2
    pair.finish()
    assert steps.list_steps(storage.at(workdir) / "checkpoints") == [1, 3]
    with TrainCheckpointer(workdir, config={}) as checkpointer:
        found = checkpointer.restore(VALUES)
    assert found.step == 3 and found.data_states == ({"process": 0, "step": 3}, {"process": 1, "step": 3})
    assert all(np.asarray(found.state[name]).tobytes() == value.tobytes() for name, value in VALUES.items())


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_by_name(bucket):
    folder = storage.at(bucket)
    with TrainCheckpointer(bucket, config={}):
        for _ in range(2):
            with pytest.raises(InputError, match=f"in use by another run .process {os.getpid()} on"):
                BucketLock(folder)
    BucketLock(folder).release()
    assert not (folder / lock.OWNER_FILE).exists()


def _leave_foreign(folder):
    owner = {"pid": 5, "host": "elsewhere", "machine": "elsewhere 0"}
    (folder / lock.OWNER_FILE).write_bytes(json.dumps(owner).encode())


def test_a_silent_owner_on_another_machine_is_taken_for_dead(bucket):
    _leave_foreign(storage.at(bucket))
    BucketLock(storage.at(bucket)).release()


def test_a_living_owner_on_another_machine_is_respected(bucket):
    folder, stop = storage.at(bucket), threading.Event()
    _leave_foreign(folder)

    def beat():
        beats = 0
        while not stop.wait(0.02):
            beats += 1
            (folder / lock.OWNER_FILE).write_bytes(json.dumps({"pid": 5, "host": "elsewhere", "beats": beats}).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 5 on elsewhere"):
            BucketLock(folder)
    finally:
        stop.set()
        thread.join()


def test_a_process_of_this_machine_that_ended_is_dead_at_once(bucket, monkeypatch):
    owner = identity() | {"pid": 2**22 + 1}
    (storage.at(bucket) / lock.OWNER_FILE).write_bytes(json.dumps(owner).encode())
    monkeypatch.setattr(bucket_lock.BucketLock, "_is_touched", lambda *_: pytest.fail("nobody needs to wait"))
    BucketLock(storage.at(bucket)).release()


def test_a_run_that_lost_its_folder_completes_no_step(bucket, state):
    with TrainCheckpointer(bucket, config={}) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        _leave_foreign(storage.at(bucket))
        with pytest.raises(InputError, match="another run has taken it over"):
            checkpointer.save(2, state)
            checkpointer.wait()
            checkpointer.save(3, state)
    assert steps.list_steps(storage.at(bucket) / "checkpoints") == [1]
    assert json.loads((storage.at(bucket) / lock.OWNER_FILE).read_bytes())["pid"] == 5
