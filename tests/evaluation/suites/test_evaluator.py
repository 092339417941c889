"""A suite while training: numbers of a model in memory, and judges that fail."""

import json

import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.evaluators import EVALUATORS
from nextstep_jax.generation.pipeline import Pipeline

SETTINGS = dict(suite="geneval", model="m", limit=2, steps=1, cfg=1.0)


@pytest.fixture
def pipeline(tiny_checkpoint):
    return Pipeline.from_checkpoint(tiny_checkpoint)


def test_a_suite_of_a_model_in_memory(pipeline, judge):
    judge.fails = False
    evaluate = EVALUATORS["suite"](endpoint=f"{judge.url}/v1", **SETTINGS)
    judge.reply = lambda text, count: "no" if count == 1 else "yes"
    numbers = evaluate(pipeline)
    assert numbers["scored"] == 8 and numbers["unparsable"] == numbers["unanswered"] == 0
    assert numbers["mean_over_images"] == 7 / 8 and "overall" not in numbers  # tasks without a prompt
    tasks = {name for name in numbers if name in ("single_object", "two_object", "counting", "colors", "color_attr")}
    assert len(tasks) == 2 and json.dumps(numbers)


def test_a_judge_that_is_gone_ends_no_training(pipeline, server, caplog, monkeypatch):
    monkeypatch.setattr("nextstep_jax.chat.random.uniform", lambda low, high: 0.0)
    server.answer = lambda path, body, count: (401, b"{}")
    evaluate = EVALUATORS["suite"](endpoint=f"{server.url}/v1", **SETTINGS)
    assert evaluate(pipeline) == {"scored": 0, "unparsable": 0, "unanswered": 8}
    assert "geneval: not all is judged" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"suite": "poems"}, "suite must be one of geneval, .*found 'poems'"),
        ({"suite": "wise"}, "^wise: data must name the folder"),
        ({"limit": 0}, "limit must be at least 1, found 0"),
        ({"stepz": 1}, "no generation setting is called 'stepz'"),
    ],
)
def test_settings_are_checked_before_there_is_a_model(change, message):
    with pytest.raises(InputError, match=message):
        EVALUATORS["suite"](**SETTINGS | {"endpoint": "http://127.0.0.1:9/v1"} | change)
