"""Training checkpoints in one process: exactness, fallback, retention, kills, full disks, signals."""

import json
import logging
import os
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nextstep_jax.checkpoints import steps, training
from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage.files import Files


def _save(workdir, state, *saved_steps, **options):
    with TrainCheckpointer(workdir, config={"seed": 1}, **options) as checkpointer:
        for step in saved_steps:
            checkpointer.save(step, state | {"step": jnp.int32(step)}, {"position": step})
        checkpointer.wait()
        return checkpointer


def _restore(workdir, target, **options):
    with TrainCheckpointer(workdir, config={}) as checkpointer:
        return checkpointer.restore(target, **options)


def _step_folder(workdir, step):
    return workdir / "checkpoints" / str(step)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_round_trip(tmp_path, state, assert_same):
    _save(tmp_path, state, 7)
    found = _restore(tmp_path, state)
    assert_same(state, found.state)
    assert (found.step, found.data_states, found.config, found.warnings) == (7, ({"position": 7},), {"seed": 1}, ())
    assert found.versions["jax"] == jax.__version__ and "python" in found.versions


def test_an_abstract_target_and_orbax_restore_the_same(tmp_path, state, assert_same):
    _save(tmp_path, state, 7)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), state)
    assert_same(state, _restore(tmp_path, target).state)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = ocp.PyTreeCheckpointer().metadata(_step_folder(tmp_path, 7) / "state").item_metadata.tree
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
    by_orbax = ocp.StandardCheckpointer().restore(_step_folder(tmp_path, 7) / "state", target)
    assert_same(state["params"], by_orbax["params"])


def test_nothing_saved_yet(tmp_path, state):
    assert _restore(tmp_path, state) is None


@pytest.mark.parametrize("data_state", [b"\x00\xff opaque", {"epoch": 1, "rng": [3, 4]}, None, "text"])
def test_data_states_come_back(tmp_path, data_state):
    with TrainCheckpointer(tmp_path, config={}) as checkpointer:
        checkpointer.save(1, {"w": jnp.zeros(3)}, data_state)
        assert checkpointer.restore({"w": jnp.zeros(3)}).data_states == (data_state,)


def test_what_can_not_be_stored_is_named(tmp_path):
    with TrainCheckpointer(tmp_path, config={}) as checkpointer:
        with pytest.raises(InputError, match="leaf key: dtype.*key"):
            checkpointer.save(1, {"key": jax.random.key(0)})
        with pytest.raises(InputError, match="JSON-able"):
            checkpointer.save(1, {"w": jnp.zeros(3)}, {"set": {1, 2}})


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path, assert_same):
    state = {"w": jnp.arange(3_000_000, dtype=jnp.float32), "b": jnp.ones((7,))}
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: -x - 1, tree), donate_argnums=0)
    with TrainCheckpointer(tmp_path, config={}) as checkpointer:
        checkpointer.save(1, state)
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpointer.wait()
        assert_same(expected, checkpointer.restore(state).state)


def test_newest_is_restored_and_retention_keeps_last_and_every(tmp_path, state):
    checkpointer = _save(tmp_path, state, 1, 2, 3, 4, 5, 6, 7, keep_last=2, keep_every=3)
    assert steps.list_steps(tmp_path / "checkpoints") == [3, 6, 7]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "6", "7"]
    assert checkpointer.last_good == 7
    assert _restore(tmp_path, state).step == 7


def test_a_complete_step_is_not_written_again(tmp_path, state):
    _save(tmp_path, state, 3)
    written = _largest_file(_step_folder(tmp_path, 3)).stat().st_mtime_ns
    _save(tmp_path, state, 3)
    assert _largest_file(_step_folder(tmp_path, 3)).stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no process file"])
def test_a_damaged_newest_is_named_set_aside_and_the_one_before_used(tmp_path, state, damage, caplog):
    _save(tmp_path, state, 1, 2)
    target = _largest_file(_step_folder(tmp_path, 2))
    if damage == "flip":
        _flip(target)
    elif damage == "cut":
        os.truncate(target, target.stat().st_size // 2)
    elif damage == "missing":
        target.unlink()
    else:
        (_step_folder(tmp_path, 2) / "process_0-of-1.json").unlink()
    with caplog.at_level(logging.WARNING, "nextstep_jax"):
        found = _restore(tmp_path, state)
    assert found.step == 1 and int(found.state["step"]) == 1
    (warning,) = found.warnings
    assert "checkpoint 2 is damaged" in warning and "restored 1 instead" in warning and warning in caplog.text
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "damaged-2"]
    assert _restore(tmp_path, state).warnings == ()


def test_fallback_passes_over_several_and_names_do_not_clash(tmp_path, state):
    _save(tmp_path, state, 1, 2, 3)
    for step in (2, 3):
        _flip(_largest_file(_step_folder(tmp_path, step)))
    (tmp_path / "checkpoints" / "damaged-3").mkdir()
    assert _restore(tmp_path, state).step == 1
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "damaged-2", "damaged-3", "damaged-3-2"]


def test_none_left_is_exit_code_3_with_the_list_every_time(tmp_path, state):
    _save(tmp_path, state, 1, 2)
    for step in (1, 2):
        _flip(_largest_file(_step_folder(tmp_path, step)))
    for _ in range(2):  # nothing is set aside: a restart must not start from nothing
        with pytest.raises(DamagedDataError, match="checkpoints/2: damaged.*checkpoints/1: damaged") as caught:
            _restore(tmp_path, state)
        assert caught.value.exit_code == 3


def test_a_changed_value_is_found_when_every_file_is_as_recorded(tmp_path, state, monkeypatch):
    """The digests are of the arrays in memory: what Orbax wrote differently does not come back."""
    original = ocp.args.PyTreeSave

    def wrong(tree, *arguments):
        tree["params"]["model"]["decoder"]["scale"] += 1
        return original(tree, *arguments)

    monkeypatch.setattr(training.ocp.args, "PyTreeSave", wrong)
    _save(tmp_path, state, 1)
    with pytest.raises(DamagedDataError, match="leaf params/model/decoder/scale does not match its digest"):
        _restore(tmp_path, state)


def test_another_state_is_refused_naming_the_leaf(tmp_path, state):
    _save(tmp_path, state, 1)
    with pytest.raises(InputError, match="has no ema"):
        _restore(tmp_path, state | {"ema": jnp.zeros(3)})
    with pytest.raises(InputError, match="has skipped .and 0 more., which is not expected"):
        _restore(tmp_path, {key: value for key, value in state.items() if key != "skipped"})
    with pytest.raises(InputError, match=r"leaf step is int32\[\], expected int32\[3\]"):
        _restore(tmp_path, state | {"step": jnp.zeros(3, jnp.int32)})


def test_another_dtype_only_when_asked(tmp_path):
    _save(tmp_path, {"w": jnp.float32([1.0, 2.5])}, 1)
    target = {"step": jnp.int32(0), "w": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
    with pytest.raises(InputError, match=r"leaf w is float32\[2\], expected bfloat16\[2\]"):
        _restore(tmp_path, target)
    found = _restore(tmp_path, target, cast=True).state
    assert found["w"].dtype == jnp.bfloat16 and found["w"].tolist() == [1.0, 2.5] and found["step"].dtype == jnp.int32


def test_another_mesh(run_program, tmp_path):
    assert run_program("other_meshes.py", tmp_path, devices=8).split() == ["ok"]


# --- what can go wrong while saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["describing", "no room"])
def test_a_failed_save_is_said_and_the_run_goes_on(tmp_path, state, monkeypatch, caplog, where):
    with TrainCheckpointer(tmp_path, config={}) as checkpointer, caplog.at_level(logging.WARNING, "nextstep_jax"):
        checkpointer.save(1, state)
        checkpointer.wait()
        with monkeypatch.context() as patch:
            if where == "describing":
                patch.setattr(Files, "write", _raise_full)
            else:
                patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10))
            checkpointer.save(2, state)
            checkpointer.wait()
        assert checkpointer.failed_saves == 1 and checkpointer.last_good == 1
        assert "checkpoint 2 could not be saved" in caplog.text and "the last complete one is 1" in caplog.text
        assert os.listdir(tmp_path / "checkpoints") == ["1"]
        checkpointer.save(3, state)
        checkpointer.wait()
        assert checkpointer.last_good == 3 and checkpointer.failed_saves == 1
    assert _restore(tmp_path, state).step == 3


def test_a_disk_that_fills_up_under_orbax(run_program, tmp_path):
    outcome = json.loads(run_program("full_disk_training.py", tmp_path))
    assert outcome["steps"] == [[1], [1], [1, 3]]
    assert outcome["failed_saves"] == 1 and outcome["last_good"] == 3
    assert os.listdir(tmp_path / "checkpoints") and not list((tmp_path / "checkpoints").glob("*.partial"))


def _raise_full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("moment", ["orbax", "renaming", "any"])
def test_a_kill_inside_a_save_costs_at_most_that_save(start_program, tmp_path, moment, assert_same):
    process = start_program("killed_training.py", tmp_path, moment)
    if moment == "any":
        next(line for line in iter(process.stdout.readline, "") if int(line) >= 6)
        process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    complete = steps.list_steps(tmp_path / "checkpoints")
    if moment != "any":
        assert complete == [1, 2] and (tmp_path / "checkpoints" / "3.partial").exists()
    target = {"step": jnp.int32(0), "w": jnp.zeros((400, 300))}
    found = _restore(tmp_path, target)
    assert found.step == complete[-1] == int(found.state["step"])
    assert_same(jnp.full((400, 300), found.step, jnp.float32), found.state["w"])
    if moment != "any":
        assert found.warnings == ("checkpoint 3 was not written whole (the run stopped while saving it); removed",)
    assert all(name.isdigit() for name in os.listdir(tmp_path / "checkpoints"))


def test_a_run_killed_in_its_first_save_starts_again(tmp_path, state):
    (tmp_path / "checkpoints" / "1.partial" / "state").mkdir(parents=True)
    assert _restore(tmp_path, state) is None


def test_a_removal_cut_short_is_finished_by_the_next_run(tmp_path, state):
    _save(tmp_path, state, 2)
    (tmp_path / "checkpoints" / "1.deleting").mkdir()
    found = _restore(tmp_path, state)
    assert found.warnings == () and os.listdir(tmp_path / "checkpoints") == ["2"]


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_second_run_on_the_folder_is_refused(tmp_path):
    with TrainCheckpointer(tmp_path, config={}), pytest.raises(InputError, match="in use by another run") as caught:
        TrainCheckpointer(tmp_path, config={})
    assert caught.value.exit_code == 2
    TrainCheckpointer(tmp_path, config={}).close()


def test_sigterm_is_seen_and_the_handler_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with TrainCheckpointer(tmp_path, config={}) as checkpointer:
        assert not checkpointer.reached_preemption(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpointer.reached_preemption(2)
        assert checkpointer._lock.step == 2  # what run.json tells from then on
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": 0}, "keep_last"),
        ({"keep_every": 0}, "keep_every"),
        ({"workdir": "az://b/run"}, "expected gs://BUCKET/NAME"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        TrainCheckpointer(**{"workdir": tmp_path, "config": {}} | options)
    assert not pathlib.Path("az:").exists()


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(InputError, match="cannot be written"):
        TrainCheckpointer(tmp_path / "file", config={})
