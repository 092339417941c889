"""DPG-Bench: files, the rule of dependence, score with and without quirks, and a whole run."""

import csv

import numpy as np
import pytest

from nextstep_jax.data import files
from nextstep_jax.data.image_output import read_record
from nextstep_jax.data.images import load
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.dpg import DPGBench, Proposition, dependent
from nextstep_jax.evaluation.suites.suite import git_id
from tests.evaluation.suites import made


@pytest.fixture(scope="module")
def suite(data) -> DPGBench:
    return DPGBench(data / "dpg-bench", unofficial=True)


def verdicts(rows: dict[str, list[str]]) -> dict:
    """{prompt: a text of 0 and 1 for each image} as scores; "-" for a reply that could not be read."""
    return {
        (id, sample, str(i)): None if mark == "-" else float(mark)
        for id, images in rows.items()
        for sample, marks in enumerate(images)
        for i, mark in enumerate(marks, 1)
    }


def test_the_shipped_prompts(official):
    suite = DPGBench()
    assert len(suite.items) == 1065 and suite.files.official
    file = official("dpg_bench") / "dpgbench_prompts_uniworld.json"
    assert git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert DPGBench().files.digests["dpgbench_prompts.json"] == files.sha256(file)
    with pytest.raises(InputError, match="dpg-bench: data must name the folder of dpg_bench.csv"):
        suite.criteria(suite.items[0])


def test_other_questions_than_the_official_ones_are_refused(data):
    with pytest.raises(InputError, match="dpg_bench.csv: expected git id 98457fc9901943f5, found 6 questions with git id"):
        DPGBench(data / "dpg-bench")


def test_failure_passes_on_to_grandchildren_in_order():
    chain = [Proposition(str(i), "", (str(i - 1),) if i > 1 else (), "") for i in range(1, 4)]
    assert dependent(chain, {"1": 0.0, "2": 1.0, "3": 1.0}) == {"1": 0.0, "2": 0.0, "3": 0.0}
    assert dependent(chain[::-1], {"1": 0.0, "2": 1.0, "3": 1.0}) == {"1": 0.0, "2": 0.0, "3": 1.0}  # a child before its parent


def test_the_total(suite):
    scores = verdicts({"226": ["1111", "0111", "1011", "1110"], "partiprompts155": ["11", "11", "11", "01"]})
    report = suite.score(scores)
    first, second = (1 + 1 / 4 + 2 / 4 + 3 / 4) / 4, (1 + 1 + 1 + 0) / 4
    assert report.metrics["total"].value == pytest.approx(100 * (first + second) / 2)
    # Categories: without the rule of dependence, over all images.
    assert report.metrics["entity"].value == pytest.approx(100 * (3 + 3) / 8)
    assert report.metrics["attribute - kind"].value == pytest.approx(100 * (3 + 4 - 1 + 4 - 1 + 4 - 1 + 4) / 16, abs=20)


def test_official_quirks(suite):
    scores = verdicts({"226": ["1111"] * 4, "partiprompts155": ["11", "1-", "11", "01"]})
    report = suite.score(scores, quirks=True)
    assert report.metrics["total"].value == pytest.approx(100 * (1 + 0.5 + 1 + 0) / 4)  # the first prompt is left out
    assert report.metrics["entity"].value == 0 and report.metrics["attribute"].value == 100  # of the last image
    assert len(report.quirks) == 3 and not suite.score(scores).quirks
    assert suite.score(scores).metrics["total"].value == pytest.approx(100 * (1 + (1 + 1 + 1 + 0) / 4) / 2)


def test_an_unread_parent_does_not_fail_its_children(suite):
    report = suite.score(verdicts({"226": ["-111"]}))
    assert report.groups["all"] == {"226": [1.0]}


def test_the_official_files_of_results(suite):
    detail = "\n".join(
        f"/x/226.png, ({left}, {top}, {left + 512}, {top + 512}), Is part {i} of 226 there?, {'yes' if i < 4 else 'no'}"
        for top in (0, 512)
        for left in (0, 512)
        for i in range(1, 5)
    )
    scores = suite.read_official(detail.encode(), "r_detail.txt")
    assert scores == verdicts({"226": ["1110"] * 4})
    whole = "/x/226.png, 1.0, 0.5, 0.75, 0.25, 0.625\n/x/partiprompts155.png, 1.0, 1.0, 1.0, 1.0, 1.0\nModel: x\nL1 scores:\n"
    assert suite.score(suite.read_official(whole.encode(), "r.txt")).metrics["total"].value == pytest.approx(81.25)
    for cell in ("1.0.0", "2.0", "1e999"):
        with pytest.raises(InputError, match=f"r.txt, line 1: expected a score from 0 to 1, found '{cell}'"):
            suite.read_official(f"/x/226.png, {cell}, 1.0\n".encode(), "r.txt")
    with pytest.raises(InputError, match="r.txt, line 1: expected an image of DPG-Bench"):
        suite.read_official(b"/x/unknown.png, 1.0, 1.0\n", "r.txt")


@pytest.mark.parametrize("column, value", [("item_id", "x"), ("proposition_id", "one"), ("dependency", "1;2")])
def test_a_row_that_cannot_be_used_is_named(tmp_path, column, value):
    made.dpg(tmp_path)
    with (tmp_path / "dpg_bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1][column] = value
    made.write_table(tmp_path / "dpg_bench.csv", rows)
    with pytest.raises(InputError, match="dpg_bench.csv, row 2: "):
        DPGBench(tmp_path, unofficial=True)


def test_a_whole_run(whole_run, judge, data, tmp_path):
    judge.reply = lambda text, count: "no" if "part 1 of 226" in text else "Yes."
    score = whole_run("dpg-bench", data / "dpg-bench", 2)
    assert score["counts"] == dict(prompts=2, expected=24, scored=24, unparsable=0, unanswered=0, missing=0)
    assert score["metrics"]["total"]["value"] == pytest.approx(100 * (0.25 + 1) / 2)
    paths = sorted((tmp_path / "dpg-bench" / "images").iterdir())
    assert [path.name for path in paths] == ["226.png", "partiprompts155.png"]
    grid = np.asarray(load(paths[0]))
    assert grid.shape == (128, 128, 3) and read_record(paths[0])["index"] == 0
    quarters = [grid[:64, :64], grid[:64, 64:], grid[64:, :64], grid[64:, 64:]]
    assert len({quarter.tobytes() for quarter in quarters}) == 4
