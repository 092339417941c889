"""OneIG-Bench: files, text, score, and whole runs in both languages."""

import numpy as np
import pytest

from nextstep_jax.data.images import load
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.oneig import OneIG, OneIGChinese, clean_text, compare_text
from tests.evaluation.suites import made


@pytest.fixture(scope="module")
def suite(data) -> OneIG:
    return OneIG(data / "oneig", unofficial=True)


@pytest.mark.parametrize("language, prompts, questions", [(OneIG, 1120, 11231), (OneIGChinese, 1320, 13822)])
def test_the_official_files(official, language, prompts, questions):
    suite = language(official("oneig_bench"))
    assert suite.files.official and len(suite.items) == prompts
    assert sum(len(suite.criteria(item)) for item in suite.items if item.groups != ("text",)) == questions
    assert sum(item.id in suite.texts for item in suite.items) == 200


def table(rows: dict[str, object], model: str = "m") -> bytes:
    return "\n".join([f",{model}", *(f'{id},"{value}"' for id, value in rows.items())]).encode()


def test_the_published_row_of_the_paper(suite):
    """Its five dimensions give 0.4176, printed as 0.417."""
    scores = {}
    for name, id, value in (
        ("alignment", "anime_000", 0.826),
        ("text", "000", [100.0, 0.0, 0.507]),
        ("reasoning", "000", 0.224),
        ("style", "000", 0.332),
        ("diversity", "human_000", 0.199),
    ):
        scores |= suite.read_official(table({id: value}), f"/x/{name}_prompt_score_EN_2026.csv")
    metrics = suite.score(scores).metrics
    assert metrics["text"].value == pytest.approx(0.507)
    assert metrics["overall"].value == pytest.approx(0.4176)
    del scores["anime_000", 0, "style"]
    assert suite.score(scores).metrics["overall"].value is None


def test_alignment_forgives_grandchildren(suite):
    def scores(*images: str):
        marks = ((sample, i, mark) for sample, text in enumerate(images) for i, mark in enumerate(text, 1))
        return {("anime_000", sample, str(i)): None if m == "-" else float(m) for sample, i, m in marks}

    def aligned(*images: str, quirks: bool = False) -> float:
        return suite.score(scores(*images), quirks).metrics["alignment"].value

    assert aligned("111") == 1
    assert aligned("011") == pytest.approx(1 / 3)  # the second fails with the first, the third does not with the second
    assert aligned("101") == pytest.approx(1 / 3)
    assert aligned("111", "011", "101", "110") == pytest.approx((1 + 1 / 3 + 1 / 3 + 2 / 3) / 4)
    assert aligned("-11") == 1 and aligned("-11", quirks=True) == pytest.approx(1 / 3)


def test_alignment_is_a_mean_over_prompts_not_over_images(suite):
    scores = {(id, 0, n): 1.0 for id in ("anime_000", "human_000") for n in "123"}
    scores |= {("human_000", s, "1"): 0.0 for s in (1, 2, 3)}
    scores |= {("human_000", s, n): 0.0 for s in (1, 2, 3) for n in "23"}
    assert suite.score(scores).metrics["alignment"].value == pytest.approx((1 + 0.25) / 2)


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("['Hello,  World', '2025']", "Hello World 2025"),
        ("['你 好', 'A1']", "你好A1"),
        ("café  à\nla", "café à la"),
        ("!?", ""),
    ],
)
def test_text_is_cleaned(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    "reply, target, numbers",
    [
        ("Hello World 2025", "['Hello, World', '2025']", [0, 3, 3]),
        ("hello world", "['hello', 'there']", [5, 1, 2]),
        ("No text recognized.", "['ab']", [2, 0, 1]),
        ("好你", "['你好', 'A1']", [3, 2, 4]),
        ("a a b", "['a a a']", [1, 2, 3]),
    ],
)
def test_text_is_compared(reply, target, numbers):
    assert compare_text(reply, target) == numbers


@pytest.mark.parametrize("language, most", [(OneIG, 100), (OneIGChinese, 50)])
def test_the_text_score(data, language, most):
    suite = language(data / "oneig", unofficial=True)
    rows = [(0, 3, 3), (30, 1, 3), (60, 0, 3), (2, 2, 3)]
    scores = {
        ("text_000", sample, name): float(value)
        for sample, row in enumerate(rows)
        for name, value in zip(("edit_distance", "matched_words", "target_words"), row, strict=True)
    }
    expected = 1 - min(most, 23) * (1 - 1 / 4) * (1 - 6 / 12) / most
    metrics = suite.score(scores).metrics
    assert metrics["text"].value == pytest.approx(expected) and metrics["text: edit distance"].value == 23
    far = {key: 1000.0 if key[2] == "edit_distance" else value for key, value in scores.items()}
    assert suite.score(far).metrics["text"].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("alignment.csv", table({"anime_000": 1}), "expected alignment|text"),
        ("alignment_prompt_score_EN.csv", table({"anime_999": 1}), "has no prompt 'anime_999'"),
        ("alignment_prompt_score_EN.csv", table({"anime_000": "one"}), "expected 1 numbers, found 'one'"),
        ("text_prompt_score_EN.csv", table({"000": [1, 2]}), "expected 3 numbers"),
        ("alignment_prompt_score_EN.csv", b",a,b\nanime_000,1,1\n", "expected the scores of one model, found a, b"),
    ],
)
def test_what_is_no_file_of_the_official_scorer_is_named(suite, name, content, message):
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        suite.read_official(content, name)


def test_an_empty_cell_is_no_score(suite):
    assert suite.read_official(table({"anime_000": ""}), "diversity_prompt_score_EN.csv") == {
        ("anime_000", 0, "diversity"): None
    }


def test_a_prompt_without_questions_is_named(tmp_path):
    made.oneig(tmp_path)
    made.write(tmp_path / "scripts" / "alignment" / "Q_D" / "human.json", {})
    with pytest.raises(InputError, match="no questions about prompt human_000"):
        OneIG(tmp_path, unofficial=True)


@pytest.mark.parametrize("name, prompts, text", [("oneig-en", 5, "Hello World 2025"), ("oneig-zh", 6, "你好A1")])
def test_a_whole_run(whole_run, judge, data, tmp_path, name, prompts, text):
    def reply(question, count):
        return text if "all text" in question else "No" if "Is it blue" in question else "Yes"

    judge.reply = reply
    score = whole_run(name, data / "oneig", prompts)
    aligned = prompts - 2
    assert score["counts"]["scored"] == score["counts"]["expected"] == 4 * (3 * aligned + 3)
    assert score["metrics"]["alignment"]["value"] == pytest.approx(1 / 3)
    assert score["metrics"]["text"]["value"] == 1 and score["metrics"]["overall"]["value"] is None
    path = tmp_path / name / "images" / "text" / "nextstep" / "000.webp"
    assert np.asarray(load(path)).shape == (128, 128, 3) and b"VP8L" in path.read_bytes()[:64]
