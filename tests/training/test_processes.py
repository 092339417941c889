"""Runs that are killed, and runs of several processes (jax.distributed, gloo), end as one process that is left alone."""

import dataclasses
import random
import re
import signal
import time

import pytest

from benchmarks import kill
from nextstep_jax import storage
from nextstep_jax.checkpoints import steps

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    kill.make_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return kill.finish(kill.Run(folder, "alone", 1, STEPS))


def wait_for_checkpoint(run, newer_than=0):
    deadline = time.monotonic() + 300
    while max(steps.list_steps(run.path / "checkpoints"), default=0) <= newer_than and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.xdist_group("processes")
def test_a_killed_run_ends_with_the_same_bits_and_saw_the_same_samples(folder, alone):
    run = kill.Run(folder, "killed", 1, STEPS)
    for newer_than in (0, 2):
        with kill.Life(run) as life:
            wait_for_checkpoint(run, newer_than)
            time.sleep(random.uniform(0, 0.05))
            life.send(0, signal.SIGKILL)
    kill.finish(run)
    kill.require_same_samples(alone, run)
    kill.require_same_metrics(alone, run)
    kill.require_same_end(alone, run)


@pytest.mark.xdist_group("processes")
def test_two_processes_are_one(folder, alone):
    """One of two is killed, once the second and once the first, whose loss makes JAX end the other. The one left says so and
    ends. Started again, one is told to stop, and both save the same step. One process alone does the rest. Every batch was
    that of the run in one piece, in the same order.
    """
    run = kill.Run(folder, "two", 2, steps=10_000)  # how many must not matter: the learning rate is constant
    for victim, newer_than in ((1, 0), (0, 2)):
        with kill.Life(run) as life:
            wait_for_checkpoint(run, newer_than)
            life.send(victim, signal.SIGKILL)
            assert life.wait(1 - victim, 120) == 1
            said = "^error: .*process of (this|the) run is gone or .*start all processes again"
            assert re.search(said, life.said(1 - victim), re.MULTILINE)
    with kill.Life(run) as life:
        wait_for_checkpoint(run, newer_than=4)
        life.send(1, signal.SIGTERM)
        life.require_good_end()
        assert all("Asked to stop" in life.said(process) for process in (0, 1))
    newest = max(steps.list_steps(run.path / "checkpoints"))
    assert (run.path / "checkpoints" / str(newest) / "process_1-of-2.json").exists()
    run.count, run.steps = 1, max(newest + 2, STEPS)
    kill.finish(run)
    if run.steps > STEPS:
        alone = kill.finish(dataclasses.replace(alone, steps=run.steps))
    kill.require_same_samples(alone, run)
    for mine, whole in zip(run.metrics(), alone.metrics(), strict=True):
        assert mine["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert mine["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-3)
    assert kill.distance(alone.path, run.path) < 1e-3


@pytest.mark.xdist_group("processes")
def test_a_run_goes_on_with_half_of_its_devices_and_the_same_batches(folder):
    """Eight devices with a row each; then four, which take two rows one after the other (launch/README.md, section 7). The flow
    head's noise is drawn anew for each part, so that only the loss of text can be compared, before its parameters differ.
    """
    run = kill.Run(folder, "eight", 1, steps=4, changes={"data.batch_size": 8}, devices=8)
    before = kill.finish(run).metrics()
    storage.of(run.path).remove_folder(run.path / "export")
    storage.of(run.path).remove_step(run.path / "checkpoints" / "4")
    run.devices, run.changes = 4, {**run.changes, "grad_accum_steps": 2}
    kill.finish(run)
    steps_done = run.log()
    assert [step for step, _ in steps_done] == [1, 2, 3, 4, 3, 4] and all(len(names) > 8 for _, names in steps_done)
    assert steps_done[2:4] == steps_done[4:]
    now, then = run.metrics(), before
    assert [line["packing_waste"] for line in now] == [line["packing_waste"] for line in then]
    assert now[2]["text_loss"] == pytest.approx(then[2]["text_loss"], rel=1e-4)
    assert now[2]["loss"] == pytest.approx(then[2]["loss"], rel=0.05)


@pytest.mark.xdist_group("processes")
def test_an_epoch_of_two_processes_is_that_of_one(folder):
    """Every sample once, in the same batches, and all processes end together."""
    changes = {"data.epochs": 1, "data.sources.text.path": "shapes:text:train:24", "checkpoint.every": 0}
    changes |= {"data.sources.interleaved.weight": 0}
    alone, two = (kill.finish(kill.Run(folder, f"epoch_{count}", count, 10_000, changes=changes)) for count in (1, 2))
    kill.require_same_samples(alone, two)
    seen = [name for _, names in two.log() for name in names]
    assert len(seen) == len(set(seen)) == 224
    assert steps.list_steps(two.path / "checkpoints") == steps.list_steps(alone.path / "checkpoints") == [len(two.log())]
    assert (two.path / "export" / "manifest.json").exists()


@pytest.mark.xdist_group("processes")
def test_online_training_survives_a_kill_and_two_processes_are_one(folder):
    """Killed after its first save it ends with the same bits; two processes, each with prompts of its own, see its metrics."""
    kinds = {"steps": 4, "stage": "nextstep_14b_grpo"}
    alone = kill.finish(kill.Run(folder, "online", 1, **kinds))
    assert all(line["gradient_norm"] > 0 and line["reward_std/shapes"] > 0 for line in alone.metrics())
    run = kill.Run(folder, "online_killed", 1, **kinds)
    with kill.Life(run) as life:
        wait_for_checkpoint(run)
        life.send(0, signal.SIGKILL)
    kill.finish(run)
    kill.require_same_samples(alone, run)
    kill.require_same_metrics(alone, run)
    kill.require_same_end(alone, run)
    two = kill.finish(kill.Run(folder, "online_two", 2, **kinds))
    kill.require_same_samples(alone, two)
    for mine, whole in zip(two.metrics(), alone.metrics(), strict=True):
        assert mine["reward/shapes"] == pytest.approx(whole["reward/shapes"], rel=1e-4)
        assert mine["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-2)
