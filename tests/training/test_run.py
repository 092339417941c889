"""What a run leaves behind and what the same command finds there: settings, failed saves, evaluations."""

import importlib
import json
import logging

import numpy as np
import pytest

from nextstep_jax import __version__
from nextstep_jax.checkpoints import training as checkpoints
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.evaluation.evaluators import EVALUATORS
from nextstep_jax.schema import plain
from nextstep_jax.training import loop, run_record
from nextstep_jax.training.config import evaluation, resolve
from tests.training.conftest import metric_lines

pytestmark = pytest.mark.usefixtures("shared_compilations")


@pytest.fixture
def config():
    """A stage of three short steps."""
    config = importlib.import_module("configs.shapes_tokenizer").get_config("laptop")
    config.steps, config.optimizer.warmup_steps, config.log_every, config.checkpoint.every = 3, 0, 1, 0
    config.data.sources, config.data.batch_size = ("shapes:pair:train:24",), 2
    config.optimizer.schedule = "constant"  # of which the compiled step does not see the length
    config.image_tokenizer.update({"stem_patch": 8, "channel_multipliers": (1,), "blocks_per_level": 1, "resolution": 16})
    config.data.height = config.data.width = 16
    return config


def test_settings_are_kept_logged_and_compared(config, tmp_path, caplog, listener):
    caplog.set_level(logging.INFO)
    config.webhook = "HOOK"
    loop.train(config, tmp_path)
    assert [(message["event"], message["step"]) for message in listener.messages] == [("done", 3)]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert "secret" not in caplog.text and not any(b"services" in content for content in kept)
    assert json.loads((tmp_path / "config.json").read_text()) == {"version": __version__, "config": plain(resolve(config))}
    assert '  config.optimizer.schedule = "constant"' in caplog.text

    caplog.clear()
    config.steps, config.log_every = 4, 2
    assert loop.train(config, tmp_path).step == 4
    changed = [record.message for record in caplog.records if "Changed since" in record.message]
    assert [line.rpartition("config.")[2] for line in changed] == ["log_every: 1 -> 2", "steps: 3 -> 4"]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["steps"] == 4

    config.seed = 7
    with pytest.raises(InputError, match=r"these cannot change \(config.seed: 42 -> 7\); use another workdir"):
        loop.train(config, tmp_path)
    config.seed, config.steps = 42, 2
    with pytest.raises(InputError, match="config.steps is 2, but this run has done 4 steps already"):
        loop.train(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "fixed"),
    [
        ({"image_tokenizer": {"channels": 64}}, ["image_tokenizer.channels"]),
        ({"image_tokenizer": {"dtype": "bfloat16", "perturbation": 0.1}}, []),
        ({"optimizer": {"frozen": ("encoder",), "learning_rate": 1.0}}, ["optimizer.frozen"]),
        ({"optimizer": {"muon": (".",)}}, ["optimizer.muon"]),
        ({"init": {"checkpoint": "elsewhere"}}, ["init.checkpoint"]),
        ({"evals": {"mine": {"evaluator": "shapes", "every": 5, "watch": "overall"}}}, ["evals.mine.watch"]),
        ({"ema_decay": 0.0}, ["ema_decay"]),
        ({"ema_decay": 0.9}, []),
        ({"mesh": {"data": -1, "fsdp": 1}, "steps": 9, "name": "x", "grad_accum_steps": 2}, []),
    ],
)
def test_what_a_restart_may_change(config, tmp_path, changes, fixed):
    before = resolve(config)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    run_record.write(tmp_path, before)
    values = plain(before)
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    if fixed:
        with pytest.raises(InputError, match="these cannot change") as error:
            run_record.changes_since_start(tmp_path, resolve(values))
        assert all(f"config.{name}: " in str(error.value) for name in fixed)
    else:
        count = sum(len(value) if isinstance(value, dict) else 1 for value in changes.values())
        assert len(run_record.changes_since_start(tmp_path, resolve(values))) == count


def test_a_setting_that_an_older_version_did_not_know_was_off(config, tmp_path):
    values = plain(resolve(config))
    values["evals"] = {"mine": {"evaluator": "shapes", "every": 5}}
    now = resolve(values)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    run_record.write(tmp_path, now)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["evals"]["mine"]["watch"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert run_record.changes_since_start(tmp_path, now) == ["config.evals.mine.watch: nothing -> ''"]


@pytest.mark.parametrize(
    ("content", "message"), [('{"con', "expected the settings of a run"), ('{"config": 3}', "expected the")]
)
def test_a_record_that_is_none_is_an_error(config, tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    assert run_record.changes_since_start(tmp_path, resolve(config)) == []  # nothing is saved that it could contradict
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(InputError, match="config.json: expected the settings of a run"):
        run_record.changes_since_start(tmp_path, resolve(config))


def test_a_record_of_an_older_version_says_the_new_name(config, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"version": "0.1", "config": {"accumulation": 2}}))
    with pytest.raises(InputError, match="written by version 0.1: config.accumulation is now config.grad_accum_steps"):
        run_record.changes_since_start(tmp_path, resolve(config))


@pytest.mark.parametrize("fails_at", [3, 2])
def test_a_last_step_that_cannot_be_saved_is_no_success(config, tmp_path, monkeypatch, fails_at):
    """A disk that is full at a step, as the writer meets it; the run itself goes on. Step 3 is the last one."""
    config.checkpoint.every = 1
    describe = checkpoints.TrainCheckpointer._describe

    def full(self, step, *arguments):
        if step == fails_at:
            raise OSError(28, "No space left on device")
        return describe(self, step, *arguments)

    monkeypatch.setattr(checkpoints.TrainCheckpointer, "_describe", full)
    if fails_at == 2:
        loop.train(config, tmp_path)
        assert (tmp_path / "export").exists()
        return
    with pytest.raises(NextStepError, match="step 3 could not be saved .* the newest complete step is 2") as error:
        loop.train(config, tmp_path)
    assert error.value.exit_code == 1 and not (tmp_path / "export").exists()
    monkeypatch.undo()
    loop.train(config, tmp_path)
    assert (tmp_path / "export").exists()


def test_a_step_that_cannot_be_saved_when_told_to_stop_is_no_success(config, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.TrainCheckpointer, "reached_preemption", lambda self, step: step == 2)
    monkeypatch.setattr(checkpoints.TrainCheckpointer, "_make_room", lambda *_: "no space left")
    with pytest.raises(NextStepError, match="step 2 could not be saved .* the newest complete step is none"):
        loop.train(config, tmp_path)


def test_an_export_that_cannot_be_written_leaves_the_last_one(config, tmp_path, monkeypatch):
    config.steps = 2
    loop.train(config, tmp_path)
    before = (tmp_path / "export" / "manifest.json").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "export_run", full)
    config.steps = 3
    with pytest.raises(NextStepError, match=r"export: cannot be written \(No space left on device\); step 3 is complete"):
        loop.train(config, tmp_path)
    assert (tmp_path / "export" / "manifest.json").read_bytes() == before and not (tmp_path / ".export.new").exists()


def test_non_finite_steps_are_counted_over_a_restart(config, tmp_path, monkeypatch, listener):
    """Two in a row, a stop, and one more."""
    config.webhook = "HOOK"
    config.max_nonfinite_steps, config.steps = 3, 9
    make_stage = loop.make_stage

    def broken(run):
        stage = make_stage(run)
        loss = stage.objective.loss

        def not_finite(*arguments):
            value, means = loss(*arguments)
            return value * np.nan, means

        return stage._replace(objective=stage.objective._replace(loss=not_finite))

    monkeypatch.setattr(loop, "make_stage", broken)
    monkeypatch.setattr(loop.TrainCheckpointer, "reached_preemption", lambda self, step: step == 2)
    assert loop.train(config, tmp_path).skipped_in_a_row == 2
    with pytest.raises(NextStepError, match="not finite in 3 steps in a row, 1 to 3"):
        loop.train(config, tmp_path)
    told = sorted((message["event"], message["step"]) for message in listener.messages)
    assert told == [("failed", 3), ("non_finite", 1), ("non_finite", 3), ("stopped", 2)]


def test_evaluations_of_the_config_are_logged(config, tmp_path):
    config.evals.held_out = evaluation("reconstruction", every=2, source="shapes:pair:heldout:4", limit=4)
    config.evals.never = evaluation("reconstruction", every=0)
    loop.train(config, tmp_path, EVALUATORS)
    found = [line for line in metric_lines(tmp_path) if "held_out/psnr" in line]
    assert [line["step"] for line in found] == [2] and found[0]["held_out/images"] == 4
    assert not any(name.startswith("never") for line in metric_lines(tmp_path) for name in line)


def mean_error(scale: float = 1.0):
    """An evaluator of a user's: how far a gray image comes back from gray."""
    return lambda model: {"error": scale * float(np.abs(model(np.zeros((1, 64, 64, 3), np.float32))).mean()), "none": None}


@pytest.mark.parametrize(
    ("evaluator", "every", "settings", "message"),
    [
        ("shape", 1, {}, "config.evals.mine.evaluator must be one of shapes, reconstruction, suite, python:"),
        ("python:no.such:thing", 1, {}, "config.evals.mine.evaluator: 'no.such:thing' is not"),
        ("python:json:decoder", 1, {}, "config.evals.mine.evaluator: 'json:decoder' is not a function"),
        ("reconstruction", 1, {"limits": 3}, "config.evals.mine.settings: .*'limits'"),
        ("reconstruction", 1, {"limit": 0}, "config.evals.mine.settings: limit and batch must be at least 1"),
        ("reconstruction", -1, {}, "config.evals.mine.every must be at least 0"),
    ],
)
def test_an_evaluation_that_cannot_be_is_an_error_at_once(config, tmp_path, monkeypatch, evaluator, every, settings, message):
    config.evals.mine = evaluation(evaluator, every, **settings)
    monkeypatch.setattr(loop, "make_stage", lambda run: pytest.fail("too late"))
    with pytest.raises(InputError, match=message):
        loop.train(config, tmp_path, EVALUATORS)


def test_an_evaluator_can_be_the_users(config, tmp_path):
    config.evals.mine = evaluation(f"python:{__name__}:mean_error", every=3, scale=0.0)
    loop.train(config, tmp_path)
    assert metric_lines(tmp_path)[-1]["mine/error"] == 0.0
    assert "mine/none" not in metric_lines(tmp_path)[-1]


def test_a_step_copies_nothing_on_its_own(config, tmp_path, monkeypatch):
    """A batch that nobody put on the device is refused instead of copied."""
    monkeypatch.setattr(loop, "global_batch", lambda arrays, *_: arrays)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(config, tmp_path)
