"""GenEval: files, statements, score, and a whole run."""

import json

import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.geneval import TASKS, GenEval, statements


@pytest.fixture(scope="module")
def suite() -> GenEval:
    return GenEval()


def test_the_shipped_prompts_are_the_official_ones(suite, official):
    assert suite.files.official and len(suite.items) == 553
    counts = {task: sum(item.groups == (task,) for item in suite.items) for task in TASKS}
    assert counts == dict(single_object=80, two_object=99, counting=80, colors=94, position=100, color_attr=100)
    assert GenEval(official("geneval")).items == suite.items


def test_a_changed_file_is_named_with_what_was_expected_and_found(tmp_path, suite):
    lines = [json.dumps(item.record) for item in suite.items[:-1]]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        InputError, match=r"metadata.jsonl: expected 553 prompts with sha256 5c48e0813e812e3c, found 552 prompts"
    ):
        GenEval(tmp_path)
    assert not GenEval(tmp_path, unofficial=True).files.official


def test_statements_say_all_of_a_prompt(suite):
    by_task = {item.groups[0]: item for item in suite.items}
    counting = by_task["counting"].record
    (entry,) = counting["include"]
    assert statements(counting) == [
        f"The number of objects of the kind '{entry['class']}' that can be seen is at least {entry['count']}.",
        f"The number of objects of the kind '{entry['class']}' that can be seen is less than {entry['count'] + 1}.",
    ]
    colors = by_task["color_attr"].record["include"]
    assert [
        f"'{entry['color']} {entry['class']}'" in text
        for entry, text in zip(colors, statements({"include": colors}), strict=True)
    ]
    place = by_task["position"].record["include"]
    relation, target = next(entry["position"] for entry in place if "position" in entry)
    assert any(text.endswith(f"is {relation} the {place[target]['class']}.") for text in statements({"include": place}))


@pytest.mark.parametrize(
    "row, overall",
    [
        ((0.98, 0.51, 0.44, 0.85, 0.07, 0.17), 0.50),  # SD v2.1
        ((0.98, 0.74, 0.39, 0.85, 0.15, 0.23), 0.55),  # SDXL
        ((0.97, 0.74, 0.66, 0.81, 0.13, 0.35), 0.61),  # IF-XL
    ],
)
def test_published_rows(suite, row, overall):
    """Images with the fractions of a published row give its overall score, up to the rounding of both."""
    scores = {}
    for task, fraction in zip(TASKS, row, strict=True):
        keys = [(item.id, sample) for item in suite.items if item.groups == (task,) for sample in range(4)]
        scores |= {(*key, "correct"): float(i < round(fraction * len(keys))) for i, key in enumerate(keys)}
    metrics = suite.score(scores).metrics
    assert metrics["overall"].value == pytest.approx(overall, abs=0.01)
    assert [round(metrics[task].value, 2) for task in TASKS] == pytest.approx(row, abs=0.011)
    assert metrics["mean over images"].value != pytest.approx(metrics["overall"].value, abs=1e-4)


def test_the_official_results_file(suite):
    lines = [
        {"filename": f"/x/{item.id}/samples/{k:05d}.png", "tag": item.groups[0], "prompt": item.prompt, "correct": k == 0}
        for item in suite.items
        for k in range(4)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    assert suite.score(suite.read_official(data, "r.jsonl")).metrics["overall"].value == pytest.approx(0.25)
    for changes, message in (
        ({"prompt": "a cat"}, "expected the prompt 'a photo of a bench', found 'a cat'"),
        ({"filename": "../0.png"}, "expected a file INDEX/samples/K.png"),
        ({"correct": 1}, "true or false"),
    ):
        with pytest.raises(InputError, match=f"r.jsonl, line 1: .*{message}"):
            suite.read_official(json.dumps(lines[0] | changes).encode(), "r.jsonl")


def test_a_whole_run(whole_run, judge, tmp_path):
    judge.reply = lambda text, count: "No." if "'bench'" in text else "Yes"
    score = whole_run("geneval", None, 6)
    assert score["counts"] == dict(prompts=6, expected=24, scored=24, unparsable=0, unanswered=0, missing=0)
    assert score["title"].startswith("GenEval with m at http://") and not score["official"]
    values = [value for of_prompt in score["groups"].values() for values in of_prompt.values() for value in values]
    assert sorted(values) == [0.0] * 4 + [1.0] * 20
    assert score["groups"]["single_object"] == {"00000": [0.0] * 4}
    out = tmp_path / "geneval" / "images"
    assert sorted(path.name for path in out.iterdir()) == ["00000", "00092", "00184", "00276", "00368", "00460"]
    assert json.loads((out / "00000" / "metadata.jsonl").read_text())["prompt"] == "a photo of a bench"
    assert sorted(path.name for path in (out / "00000" / "samples").iterdir()) == [f"{k:05d}.png" for k in range(4)]
    assert len(judge.bodies) > len(judge.seen) == 24
