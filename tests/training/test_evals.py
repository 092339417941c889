"""A watched evaluation decides which step is a run's result, and when the run ends."""

import math

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.errors import InputError
from nextstep_jax.launch import export
from nextstep_jax.training import evals, loop
from nextstep_jax.training.config import evaluation, resolve
from nextstep_jax.training.laptop import parse_arg
from nextstep_jax.training.run_logs import read_metrics
from tests.training.conftest import metric_lines, untimed

pytestmark = pytest.mark.usefixtures("shared_compilations")


def watch_of(values, patience=0):
    return evals.Watch(evals.Evaluation("mine", 10, lambda model: {}, "score", patience), dict(values))


@pytest.mark.parametrize(
    ("values", "best", "over_with_patience"),
    [
        ({}, None, ()),
        ({10: 0.5}, 10, ()),
        ({10: 0.5, 20: 0.5}, 10, (1,)),  # as good is no better
        ({10: 0.5, 20: 0.4, 30: 0.6}, 30, ()),
        ({10: -3.0, 20: -5.0, 30: -4.0}, 10, (1, 2)),
        ({10: math.nan, 20: -5.0, 30: math.inf}, 20, (1,)),
        ({10: math.nan, 20: math.nan}, 10, (1,)),
    ],
)
def test_the_best_step_and_the_end(values, best, over_with_patience):
    assert watch_of(values).best == best
    assert [patience for patience in (0, 1, 2, 3) if watch_of(values, patience).is_over] == list(over_with_patience)


# What the evaluation below says, one number a call.
SCORES: list[float] = []


def planned(calls):
    """An evaluator that takes from SCORES, and counts in `calls`."""

    def make():
        def evaluate(model):
            calls.append(1)
            return {"score": SCORES[len(calls) - 1], "other": 0.0}

        return evaluate

    return {"planned": make}


@pytest.fixture
def config():
    from nextstep_jax.configs import shapes_tokenizer

    config = parse_arg(shapes_tokenizer.base(), "laptop")
    config.data.sources = ("shapes:pair:train:24",)
    config.steps, config.log_every, config.optimizer.warmup_steps = 20, 2, 2
    config.checkpoint.every, config.checkpoint.keep_last = 0, 1
    config.evals.held_out = evaluation("planned", every=2, watch="score", patience=2)
    return config


def same(folder, other):
    one, two = (checkpoints.load_params(path, subtree="image_tokenizer") for path in (folder, other))
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def test_a_run_ends_when_it_gets_no_better_and_its_result_is_the_best_step(config, tmp_path, monkeypatch):
    """Judged at 2, 4, 6, 8: the best is step 4. Taken away twice at steps that were saved but not yet judged, the run goes the
    same way; started once more, it does nothing.
    """
    SCORES[:] = [0.1, 0.7, 0.3, 0.7, 9.0, 9.0]
    calls = []
    loop.train(config, tmp_path / "whole", planned(calls))
    assert len(calls) == 4 and metric_lines(tmp_path / "whole")[-1]["step"] == 8
    assert sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir() if path.name.isdigit()) == ["4", "8"]
    for step in (4, 8):
        out = tmp_path / f"step_{step}"
        arguments = ["--workdir", str(tmp_path / "whole"), "--out", str(out), "--dtype", config.export_dtype]
        assert export.main([*arguments, "--step", str(step)]) == 0
        assert same(tmp_path / "whole" / "export", out) == (step == 4)

    calls = []
    for taken in (4, 6, None, None):
        monkeypatch.setattr(loop.TrainCheckpointer, "reached_preemption", lambda self, step, taken=taken: step == taken)
        loop.train(config, tmp_path / "pieces", planned(calls))
    assert len(calls) == 4
    numbers = [read_metrics(tmp_path / part)["held_out/score"] for part in ("whole", "pieces")]
    np.testing.assert_array_equal(numbers[0], numbers[1])
    lines = [[untimed(line) for line in metric_lines(tmp_path / part) if "loss" in line] for part in ("whole", "pieces")]
    assert lines[0] == lines[1]
    assert same(tmp_path / "whole" / "export", tmp_path / "pieces" / "export")


def test_a_number_that_the_evaluation_does_not_give_is_named(config, tmp_path):
    SCORES[:] = [0.1]
    config.evals.held_out.watch = "skore"
    with pytest.raises(
        InputError, match=r"config.evals.held_out.watch must be a number of the evaluation \(score, other\), found 'skore'"
    ):
        loop.train(config, tmp_path, planned([]))


def test_settings_that_watch_nothing_or_twice_are_refused(config):
    config.evals.second = evaluation("planned", every=2, watch="other")
    with pytest.raises(InputError, match="config.evals: one of them can be watched, found held_out and second"):
        resolve(config)
    config.evals.second.watch, config.evals.second.patience = "", 3
    with pytest.raises(InputError, match="config.evals.second.watch must name a number where patience is 3"):
        resolve(config)
