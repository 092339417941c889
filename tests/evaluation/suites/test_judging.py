"""A judge that fails, is cut off and costs money: every verdict is asked for once and none is guessed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nextstep_jax.chat import Budget, ChatEndpoint
from nextstep_jax.data.image_output import save_image
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.evaluation.suites import judging
from nextstep_jax.evaluation.suites.results import read_results
from nextstep_jax.evaluation.suites.wise import WiseVerified
from nextstep_jax.rewards.cache import Cache
from tests.stand_in import chat_reply


@pytest.fixture
def suite(data) -> WiseVerified:
    return WiseVerified(data / "wise", unofficial=True)


@pytest.fixture
def out(tmp_path, suite) -> pathlib.Path:
    """Images of all prompts, without a record."""
    (tmp_path / "images").mkdir()
    for i, item in enumerate(suite.items):
        save_image(tmp_path / "images" / item.files[0], np.full((8, 8, 3), 10 * i, np.uint8))
    return tmp_path


def judge_of(server, budget=None, retries=0, concurrency=1, **options) -> judging.Judge:
    endpoint = ChatEndpoint(f"openai:{server.url}/v1#m", concurrency, 5, retries, pause=0.01, budget=Budget(budget))
    return judging.Judge(endpoint, **options)


def test_what_is_known_is_not_asked_again_until_the_image_the_judge_or_the_words_change(server, suite, out):
    server.answer = lambda path, body, count: chat_reply("Score: 1")
    results = out / "results.jsonl"
    assert judging.judge(suite, out, results, judge_of(server))["asked"] == 6
    assert judging.judge(suite, out, results, judge_of(server)) == dict(
        asked=0, known=6, cached=0, unparsable=0, unanswered=0, left=0
    )
    save_image(out / "images" / suite.items[2].files[0], np.zeros((8, 8, 3), np.uint8))
    assert judging.judge(suite, out, results, judge_of(server))["asked"] == 1
    assert judging.judge(suite, out, results, judge_of(server, temperature=0.5))["asked"] == 6
    assert judging.judge(suite, out, results, judge_of(server, body={"seed": 1}))["asked"] == 6
    suite.rubric += " Please."
    assert judging.judge(suite, out, results, judge_of(server))["asked"] == 6
    assert len(read_results(results, suite.name)) == 6


def test_an_unreadable_reply_is_asked_for_again_then_null_and_kept(server, suite, out):
    server.answer = lambda path, body, count: chat_reply("Score: 1" if "number 400 " in str(body) and count > 1 else "Hm.")
    found = judging.judge(suite, out, out / "r.jsonl", judge_of(server, tries=2))
    assert found == dict(asked=6, known=0, cached=0, unparsable=5, unanswered=0, left=0) and len(server.bodies) == 12
    results = read_results(out / "r.jsonl", suite.name)
    first, second = results["400", 0, "correct"], results["520", 0, "correct"]
    assert (first.score, first.attempt, first.error) == (1.0, 2, None)
    assert (second.score, second.raw, second.attempt, second.error) == (None, "Hm.", 2, "the reply could not be read")
    assert judging.judge(suite, out, out / "r.jsonl", judge_of(server))["known"] == 6


def test_a_question_that_was_not_answered_is_asked_by_the_next_call(server, suite, out):
    server.answer = lambda path, body, count: (503, b"") if count in (2, 5) else chat_reply("Score: 1")
    assert judging.judge(suite, out, out / "r.jsonl", judge_of(server))["unanswered"] == 2
    lost = [result for result in read_results(out / "r.jsonl", suite.name).values() if result.score is None]
    assert [(result.raw, result.error) for result in lost] == [(None, "status 503")] * 2
    found = judging.judge(suite, out, out / "r.jsonl", judge_of(server))
    assert (found["asked"], found["known"], found["unanswered"]) == (2, 4, 0)
    assert all(result.score == 1 for result in read_results(out / "r.jsonl", suite.name).values())


def test_a_question_against_the_policy_is_null_for_good(server, suite, out):
    refusal = (400, b'{"error": {"code": "content_filter", "message": "no"}}')
    server.answer = lambda path, body, count: refusal if "number 640 " in str(body) else chat_reply("Score: 1")
    found = judging.judge(suite, out, out / "r.jsonl", judge_of(server))
    assert (found["asked"], found["unparsable"], found["unanswered"], len(server.bodies)) == (6, 1, 0, 6)
    result = read_results(out / "r.jsonl", suite.name)["640", 0, "correct"]
    assert (result.score, result.raw) == (None, "") and "content policy" in result.error
    assert judging.judge(suite, out, out / "r.jsonl", judge_of(server))["known"] == 6


def test_the_budget_ends_the_judgement_and_the_next_goes_on(server, suite, out):
    server.answer = lambda path, body, count: chat_reply("Score: 1")
    found = judging.judge(suite, out, out / "r.jsonl", judge_of(server, budget=4, concurrency=3))
    assert (found["asked"], found["left"], len(server.bodies)) == (4, 2, 4)
    found = judging.judge(suite, out, out / "r.jsonl", judge_of(server, budget=4))
    assert (found["asked"], found["known"], found["left"], len(server.bodies)) == (2, 4, 0, 6)


def test_an_endpoint_that_is_gone_is_not_asked_forever(server, suite, out, monkeypatch):
    monkeypatch.setattr(judging, "MAX_UNANSWERED", 3)
    server.answer = lambda path, body, count: (503, b"") if count > 2 else chat_reply("Score: 1")
    # Several questions may end at once, beyond the limit.
    with pytest.raises(NextStepError, match=r"did not answer [3-9] questions in a row"):
        judging.judge(suite, out, out / "r.jsonl", judge_of(server))
    results = read_results(out / "r.jsonl", suite.name)
    assert sum(result.score == 1 for result in results.values()) == 2


def test_a_refused_key_stops_at_once_and_keeps_what_was_answered(server, suite, out):
    server.answer = lambda path, body, count: (401, b"{}") if count == 3 else chat_reply("Score: 1")
    with pytest.raises(InputError, match="refused the request"):
        judging.judge(suite, out, out / "r.jsonl", judge_of(server))
    assert len(server.bodies) <= 4
    kept = sum(result.score == 1 for result in read_results(out / "r.jsonl", suite.name).values())
    assert kept == len(server.bodies) - 1


def test_answers_are_shared_through_a_cache(server, suite, out):
    server.answer = lambda path, body, count: chat_reply("Hm." if "number 400 " in str(body) else "Score: 1")
    for name, expected in (("a", (6, 0)), ("b", (1, 5))):
        cache = Cache(out / "cache.sqlite")
        found = judging.judge(suite, out, out / f"{name}.jsonl", judge_of(server, tries=1, cache=cache))
        cache.close()
        assert (found["asked"], found["cached"]) == expected
    first, second = (read_results(out / f"{name}.jsonl", suite.name) for name in "ab")
    assert {key: result.score for key, result in first.items()} == {key: result.score for key, result in second.items()}


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_an_image_that_cannot_be_judged_is_named_before_anything_is_asked_about_it(server, suite, out, damage):
    path = out / "images" / suite.items[0].files[0]
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:20] if damage == "cut" else b"no image")
    with pytest.raises(InputError, match=f"{path.name}: "):
        judging.judge(suite, out, out / "r.jsonl", judge_of(server))
    assert not server.bodies


PROGRAM = """
import pathlib, sys
from nextstep_jax.chat import ChatEndpoint
from nextstep_jax.evaluation.suites import judging
from nextstep_jax.evaluation.suites.wise import WiseVerified

out = pathlib.Path(sys.argv[1])
suite = WiseVerified(pathlib.Path(sys.argv[2]), unofficial=True)
print("start", flush=True)
print(judging.judge(suite, out, out / "r.jsonl", judging.Judge(ChatEndpoint(sys.argv[3], 2))), flush=True)
"""


def test_a_killed_judgement_loses_nothing_and_repeats_nothing_but_what_was_in_flight(server, suite, out, data):
    def answer(path, body, count):
        time.sleep(0.15)
        return chat_reply("Score: 1")

    server.answer = answer
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, str(out), str(data / "wise"), f"openai:{server.url}/v1#m"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(server.bodies) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.3)
    asked, kept = len(server.bodies), len(read_results(out / "r.jsonl", suite.name))
    assert 1 <= kept < 6 and asked - kept <= 2  # two at once
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"'asked': {6 - kept}, 'known': {kept}" in done.stdout
    assert len(server.bodies) == asked + 6 - kept
    lines = [json.loads(line) for line in (out / "r.jsonl").read_text().splitlines()]
    assert sorted(int(line["id"]) for line in lines) == [400, 520, 640, 760, 880, 1000]
