"""GenAI-Bench: files, VQAScore, score, and a whole run."""

import json
import math

import pytest

from nextstep_jax.chat import Answer
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.genai import GenAIBench, yes_probability
from tests.evaluation.suites import made
from tests.stand_in import chat_reply


def test_the_official_files(official):
    suite = GenAIBench(official("genai_bench"))
    sizes = {name: sum(name in item.groups for item in suite.items) for name in ("basic", "advanced", "all", "counting")}
    assert suite.files.official and sizes == dict(basic=722, advanced=871, all=1593, counting=340)


@pytest.mark.parametrize(
    "candidates, probability",
    [
        ([("Yes", math.log(0.7)), ("No", math.log(0.2))], 0.7),
        ([("No", math.log(0.8)), (" yes", math.log(0.1))], 0.1),
        ([(" NO ", math.log(0.8)), ("Maybe", math.log(0.1))], 0.2),
        ([("Maybe", math.log(0.9))], None),
        ([], None),
        (None, None),
    ],
)
def test_the_probability_of_yes(candidates, probability):
    found = yes_probability(Answer("Yes", candidates))
    assert found is None if probability is None else found == [pytest.approx(probability)]


def test_means_go_over_the_prompts_of_a_skill(data):
    suite = GenAIBench(data / "genai-bench", unofficial=True)
    report = suite.score(suite.read_official(b'{"00000": 1, "00001": 0.5, "00002": 0.3, "00003": 0}', "s.json"))
    expected = {"basic": 0.75, "advanced": 0.3, "all": 0.6, "attribute": 0.6, "counting": 0.3}
    assert {name: metric.value for name, metric in report.metrics.items()} == pytest.approx(expected)
    for value in (b"[]", b'{"00000": 2}', b'{"00009": 1}'):
        with pytest.raises(InputError, match="s.json: "):
            suite.read_official(value, "s.json")


def test_a_skill_of_a_prompt_that_does_not_exist_is_named(tmp_path):
    made.genai(tmp_path)
    made.write(tmp_path / "genai_skills.json", {"basic": [7]})
    with pytest.raises(InputError, match="genai_skills.json: basic: expected a list of prompts by number"):
        GenAIBench(tmp_path, unofficial=True)
    made.write(tmp_path / "genai_image.json", {"../x": {"prompt": "a"}})
    with pytest.raises(InputError, match="expected a name of a file, found '../x'"):
        GenAIBench(tmp_path, unofficial=True)


def test_a_whole_run_without_log_probabilities_for_one_prompt(whole_run, judge, data, tmp_path):
    judge.reply = lambda text, count: chat_reply("Yes") if "number 3" in text else "No" if "number 2" in text else "Yes"
    score = whole_run("genai-bench", data / "genai-bench", 4)
    assert score["counts"] == dict(prompts=4, expected=4, scored=3, unparsable=1, unanswered=0, missing=0)
    assert score["metrics"]["basic"]["value"] == pytest.approx(0.75)
    assert score["metrics"]["advanced"]["value"] == pytest.approx(0.25)
    paths = sorted((tmp_path / "genai-bench" / "images" / "nextstep").iterdir())
    assert [path.name for path in paths] == [f"{i:05d}.jpeg" for i in range(4)]
    assert all(path.read_bytes().startswith(b"\xff\xd8") for path in paths)
    lines = (tmp_path / "genai-bench" / "results.jsonl").read_text().splitlines()
    (unread,) = [line for line in map(json.loads, lines) if line["score"] is None]
    assert unread["raw"] == "Yes" and unread["error"] == "the reply could not be read"
