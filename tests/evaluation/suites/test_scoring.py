"""From results to `score.json`: what is missing, what is of another judge, what was drawn from other prompts."""

import json

import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Lines
from nextstep_jax.evaluation.suites.scoring import format_score, score_files
from nextstep_jax.evaluation.suites.wise import WiseVerified


@pytest.fixture(scope="module")
def suite(data) -> WiseVerified:
    return WiseVerified(data / "wise", unofficial=True)


def write(path, suite, **changes_of):
    """Results of all prompts; changes by id."""
    with Lines(path) as lines:
        for item in suite.items:
            fields = dict(
                suite=suite.name, id=item.id, sample=0, criterion="correct", score=1.0, raw="Score: 1", judge="m at u"
            )
            fields |= dict(
                temperature=0.0, date="2026-01-01T00:00:00Z", prompt_sha256="p", image_sha256="i", attempt=1, error=None
            )
            change = changes_of.get(f"_{item.id}", {})
            lines.append([] if change is None else [fields | change])


def test_missing_verdicts_are_named_and_partial_scores_the_rest(suite, tmp_path):
    write(tmp_path / "r.jsonl", suite, _640=None, _760=dict(score=None, raw=None, error="status 503"))
    with pytest.raises(InputError, match="r.jsonl: 2 of 6 verdicts are missing, first: correct of image 0 of prompt 640"):
        score_files(suite, [tmp_path / "r.jsonl"])
    score = score_files(suite, [tmp_path / "r.jsonl"], partial=True)
    assert score["counts"] == dict(prompts=6, expected=6, scored=4, unparsable=0, unanswered=1, missing=2)
    assert score["metrics"]["overall"]["value"] is None and score["metrics"]["time"]["value"] == 1
    assert "overall                      not known" in format_score(score) and "2 verdicts missing" in format_score(score)


def test_a_score_names_its_judge_and_all_it_was_made_of(suite, tmp_path):
    write(tmp_path / "r.jsonl", suite, _640=dict(score=0.0, date="2026-01-02T00:00:00Z"), _760=dict(score=None, error="x"))
    score = score_files(suite, [tmp_path / "r.jsonl"])
    assert score["title"] == "WISE_Verified with m at u" and score["judge"]["dates"] == [
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
    ]
    assert score["judge"]["unparsable_share"] == pytest.approx(1 / 6) and score["counts"]["unparsable"] == 1
    assert score["groups"]["space"] == {"640": [0.0]} and score["groups"]["biology"] == {} and not score["official"]
    weights = score["metrics"]["overall"]["weights"]
    means = {name: sum(map(sum, values.values())) / max(1, len(values)) for name, values in score["groups"].items()}
    assert sum(weight * means[name] for name, weight in weights.items()) == pytest.approx(0.4 + 3 * 0.12)
    assert json.loads(json.dumps(score)) == score and list(score["files"]) == ["r.jsonl"]


def test_verdicts_of_two_judges_are_not_mixed(suite, tmp_path):
    write(tmp_path / "r.jsonl", suite, _640=dict(judge="n at u"))
    with pytest.raises(InputError, match="expected the verdicts of one judge, found m at u .* and n at u"):
        score_files(suite, [tmp_path / "r.jsonl"])


def test_an_official_file_has_no_judge_and_its_own_prompts_count(suite, tmp_path):
    lines = [json.dumps({"prompt_id": int(item.id), "score": 1}) for item in suite.items]
    (tmp_path / "official.jsonl").write_text("\n".join(lines))
    score = score_files(suite, [tmp_path / "official.jsonl"])
    assert (
        score["title"] == "WISE_Verified"
        and score["judge"] is None
        and score["metrics"]["overall"]["value"] == pytest.approx(1)
    )


@pytest.mark.parametrize(
    "record, message",
    [
        ({"suite": "wise", "prompts": [], "files": {}}, "expected an export of wise-verified, found 'wise'"),
        ({"suite": "wise-verified", "prompts": [], "files": {"x": "y"}}, "drawn from other files"),
        ({"suite": "wise-verified", "prompts": [{"id": "7"}], "files": {}}, "has no prompt '7'"),
        ([], "not the record of an export"),
    ],
)
def test_a_record_that_does_not_fit_is_named(suite, tmp_path, record, message):
    write(tmp_path / "r.jsonl", suite)
    (tmp_path / "nextstep.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"nextstep.json: .*{message}"):
        score_files(suite, [tmp_path / "r.jsonl"])


def test_only_the_prompts_of_the_export_are_expected(suite, tmp_path):
    write(tmp_path / "r.jsonl", suite, _640=None)
    record = {"suite": suite.name, "files": dict(suite.files.digests), "prompts": [{"id": "400"}, {"id": "520"}], "seed": 3}
    (tmp_path / "nextstep.json").write_text(json.dumps(record))
    score = score_files(suite, [tmp_path / "r.jsonl"])
    assert score["counts"]["expected"] == 2 and score["export"] == {k: v for k, v in record.items() if k != "prompts"}
    assert set(score["groups"]["culture"]) == {"400"} and not score["groups"]["physics"]
