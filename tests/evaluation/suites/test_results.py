"""Verdicts and scores as files."""

import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites import results
from nextstep_jax.evaluation.suites.results import Lines, Metric


def result(**changes) -> dict:
    fields = dict(suite="wise", id="1", sample=0, criterion="realism", score=1.0, raw="1", judge="m", temperature=0.0)
    fields |= dict(date="2026-01-01T00:00:00Z", prompt_sha256="p", image_sha256="i", attempt=1, error=None)
    return fields | changes


def test_of_two_verdicts_the_later_counts(tmp_path):
    with Lines(tmp_path / "r.jsonl") as lines:
        lines.append([result(score=None, raw=None), result(id="2")])
        lines.append([result(score=2)])
    found = results.read_results(tmp_path / "r.jsonl", "wise")
    assert {key: value.score for key, value in found.items()} == {("1", 0, "realism"): 2, ("2", 0, "realism"): 1.0}


def test_a_line_cut_off_is_not_there_and_the_next_begins_anew(tmp_path):
    path = tmp_path / "r.jsonl"
    with Lines(path) as lines:
        lines.append([result(), result(id="2")])
    path.write_bytes(path.read_bytes()[:-9])
    assert list(results.read_results(path, "wise")) == [("1", 0, "realism")]
    with Lines(path) as lines:
        assert [value["id"] for value in lines.values] == ["1"]
        lines.append([result(id="3")])
    assert [key[0] for key in results.read_results(path, "wise")] == ["1", "3"]


def test_one_process_writes_a_file(tmp_path):
    with Lines(tmp_path / "r.jsonl"), pytest.raises(InputError, match="r.jsonl: another process is writing it"):
        Lines(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(score=float("nan")), "score must be a finite number or null, found nan"),
        (dict(score=True), "found True"),
        (dict(score="2"), "found '2'"),
        (dict(sample="0"), "expected an id, a sample and a criterion"),
        (dict(suite="geneval"), "expected results of wise, found 'geneval'"),
        (dict(more=1), "expected a result with the fields"),
    ],
)
def test_what_is_no_result_is_named_with_its_line(tmp_path, change, message):
    with Lines(tmp_path / "r.jsonl") as lines:
        lines.append([result(), result(**change)])
    with pytest.raises(InputError, match=f"r.jsonl, line 2: .*{message}"):
        results.read_results(tmp_path / "r.jsonl", "wise")


def test_a_metric_is_a_weighted_sum_of_means():
    groups = {"a": {"1": [1.0, 0.0], "2": [1.0]}, "b": {"3": [0.5]}, "c": {}}
    assert results.weighted(groups, {"a": 0.75, "b": 0.25}) == Metric(0.75 * 2 / 3 + 0.125, {"a": 0.75, "b": 0.25})
    assert results.unweighted(groups, ["a", "b"], 100).value == pytest.approx(100 * (2 / 3 + 0.5) / 2)
    assert results.unweighted(groups, ["a", "c"]).value is None
