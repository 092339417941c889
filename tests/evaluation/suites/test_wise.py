"""WISE: files, rubric, replies, score, and whole runs of both editions."""

import json

import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.wise import CRITERIA, Wise, WiseVerified, parse_one, parse_three
from nextstep_jax.generation.load import builtin_checkpoint
from tests.evaluation.suites import made

ROWS = [
    (Wise, (0.51, 0.54, 0.61, 0.52, 0.63, 0.48), 0.538, 1e-3),  # NextStep-1; the paper prints 0.54
    (WiseVerified, (0.8975, 0.8167, 0.9333, 0.8167, 0.8667, 0.8750), 0.8760, 1e-4),  # NanoBanana-Pro
]


@pytest.mark.parametrize("edition, row, overall, tolerance", ROWS)
def test_published_rows(data, edition, row, overall, tolerance):
    suite = edition(data / "wise", unofficial=True)
    scores = {}
    for item, value in zip(suite.items, row, strict=True):
        names = CRITERIA if edition is Wise else ("correct",)
        scores |= {(item.id, 0, name): 2 * value if edition is Wise else value for name in names}
    metrics = suite.score(scores).metrics
    assert metrics["overall"].value == pytest.approx(overall, abs=tolerance)
    assert [metrics[name].value for name in suite.categories] == pytest.approx(row)


def test_wiscore_weighs_its_criteria(data):
    suite = Wise(data / "wise", unofficial=True)
    scores = dict.fromkeys(((item.id, 0, name) for item in suite.items for name in CRITERIA), 0.0)
    for name, weight in zip(CRITERIA, (0.7, 0.2, 0.1), strict=True):
        changed = scores | {("400", 0, name): 2.0}
        assert suite.score(changed).metrics["culture"].value == pytest.approx(weight)


def test_without_a_verdict_an_image_is_left_out_and_without_a_category_there_is_no_total(data):
    suite = Wise(data / "wise", unofficial=True)
    scores = {(item.id, 0, name): 2.0 for item in suite.items for name in CRITERIA} | {("400", 0, "realism"): None}
    metrics = suite.score(scores).metrics
    assert metrics["culture"].value is None and metrics["overall"].value is None
    assert metrics["time"].value == pytest.approx(1)


@pytest.mark.parametrize("edition", [Wise, WiseVerified])
def test_the_official_files(official, edition):
    suite = edition(official("wise"))
    assert suite.files.official and [item.id for item in suite.items] == [str(i) for i in range(1, 1001)]
    counts = {name: sum(item.groups == (name,) for item in suite.items) for name in suite.categories}
    assert {name: count / 1000 for name, count in counts.items()} == {name: w for name, (_, w) in suite.categories.items()}


@pytest.mark.parametrize(
    "reply, scores",
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", [2, 1, 0]),
        ("**Consistency**: 2\n**Realism**: 1\n**Aesthetic quality**: 0\n", [2, 1, 0]),
        ("2\n1\n0\n", [2, 1, 0]),
        ("Consistency：1 Realism：1 Aesthetic Quality：1", [1, 1, 1]),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 12\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 2\nRealism: 1", None),
        ("Consistency: 2 or Consistency: 1\nRealism: 1\nAesthetic Quality: 0", None),
        ("I would say two.", None),
        ("", None),
    ],
)
def test_replies(reply, scores):
    assert parse_three(reply) == scores


@pytest.mark.parametrize(
    "reply, score", [("Score: 1", [1]), ("**Score:** 0", [0]), ("Score: 1\nScore: 0", None), ("Score: 2", None), ("1", None)]
)
def test_binary_replies(reply, score):
    assert parse_one(reply) == score


def test_the_official_scores_file(data):
    suite = Wise(data / "wise", unofficial=True)
    lines = [{"prompt_id": int(item.id), "Subcategory": "x"} | dict.fromkeys(CRITERIA, 2.0) for item in suite.items]
    lines[0]["realism"] = 999
    scores = suite.read_official("\n".join(map(json.dumps, lines)).encode(), "s.jsonl")
    assert scores["400", 0, "realism"] is None and scores["567", 0, "consistency"] == 2
    for changes, message in (({"realism": 7}, "realism must be a number from 0 to 2"), ({"prompt_id": 5}, "no prompt 5")):
        with pytest.raises(InputError, match=f"s.jsonl, line 1: .*{message}"):
            suite.read_official(json.dumps(lines[1] | changes).encode(), "s.jsonl")


def test_a_rubric_of_the_user_is_asked_instead(data, tmp_path):
    made.wise(tmp_path)
    (tmp_path / "rubric.txt").write_text("Is it <prompt>?")
    with pytest.raises(
        InputError, match="rubric.txt: expected instructions with <prompt>, <explanation>, found no <explanation>"
    ):
        Wise(tmp_path, unofficial=True)
    (tmp_path / "rubric.txt").write_text("Is it <prompt>? <explanation>")
    suite = Wise(tmp_path, unofficial=True)
    (ask,) = suite.asks(suite.items[0], b"")
    (other,) = Wise(data / "wise", unofficial=True).asks(suite.items[0], b"")
    assert ask.question.text == "Is it what number 400 stands for? It stands for 400."
    assert ask.prompt_sha256 != other.prompt_sha256


def test_a_folder_is_needed_and_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="wise: data must name the folder"):
        Wise(None)
    with pytest.raises(InputError, match="cultural_common_sense.json: not there; get the data folder of PKU-YuanGroup/WISE"):
        Wise(tmp_path)


def test_a_whole_run(whole_run, judge, data):
    def reply(text, count):
        return "I cannot rate this." if "number 567" in text else "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"

    judge.reply = reply
    score = whole_run("wise", data / "wise", 6)
    assert score["counts"] == dict(prompts=6, expected=18, scored=15, unparsable=3, unanswered=0, missing=0)
    assert score["metrics"]["culture"]["value"] == pytest.approx(0.8) and score["metrics"]["time"]["value"] is None
    assert score["judge"]["unparsable_share"] == pytest.approx(1 / 6) and score["metrics"]["overall"]["value"] is None


def test_a_whole_run_of_the_verified_edition_with_the_built_in_model(whole_run, judge, data):
    judge.reply = lambda text, count: "Score: 0" if "number 1000 " in text else "Score: 1"
    score = whole_run("wise-verified", data / "wise", 6, checkpoint=builtin_checkpoint())
    assert score["metrics"]["overall"]["value"] == pytest.approx(0.88) and score["counts"]["scored"] == 6
