"""Verdicts of checkpoints on the same prompts: made once, equal for equal weights, and what is made of them."""

import json

import numpy as np
import pytest

from benchmarks import gradient_signal, post_training
from benchmarks.post_training import compare, format_comparison, mean_distance
from nextstep_jax.data import shapes
from nextstep_jax.generation.load import builtin_checkpoint

CATEGORIES = ("words", "captions")


def test_one_checkpoint_under_two_names_differs_by_nothing(tmp_path, capsys):
    checkpoint = builtin_checkpoint()
    arguments = [
        f"before={checkpoint}",
        f"after={checkpoint}",
        "--results",
        str(tmp_path),
        "--json",
        str(tmp_path / "found.json"),
        "--prompts",
        "2",
    ]
    arguments += ["--images", "2", "--readers", "--categories", *CATEGORIES]
    post_training.main(arguments)
    found = json.loads((tmp_path / "found.json").read_text())["compared"]["after"]
    assert set(found["scores"]) == set(CATEGORIES)
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in found["scores"].values())
    assert found["distance_ratio"] == {"words": 1} and found["readers"].keys() == {
        *post_training.READERS,
        "encoded and decoded",
    }
    words, captions = (json.loads((tmp_path / "before" / f"{name}.json").read_text()) for name in CATEGORIES)
    assert [len(text) for text in words["verdicts"]] == [2, 2] and [len(text) for text in captions["verdicts"]] == [1, 1]
    assert words["distance"] > 0.1
    capsys.readouterr()
    post_training.main(arguments)
    assert capsys.readouterr().out.count("there already") == 4
    post_training.main([*arguments, "--seed", "8"])
    assert "there already" not in capsys.readouterr().out


def test_a_comparison_counts_images_and_averages_categories():
    old = {"words": ["0011", "0000"], "colors": ["11", "11"], "edits": ["1", "0"]}
    new = {"words": ["1111", "0001"], "colors": ["11", "10"], "edits": ["0", "0"]}
    before, after = ({name: {"verdicts": verdicts} for name, verdicts in side.items()} for side in (old, new))
    table = compare(before, after)["scores"]
    assert list(table) == ["colors", "words", "edits"]
    assert {name: row["difference"] for name, row in table.items()} == pytest.approx(
        {"colors": -0.25, "words": 0.375, "edits": -0.5}
    )
    assert (table["words"]["before"], table["words"]["after"]) == (0.25, 0.625)
    rest = {name: {"verdicts": ["1"]} for name in shapes.CATEGORIES if name not in old}
    overall = compare(before | rest, after | rest)["scores"]["overall"]
    assert overall["difference"] == pytest.approx((0.375 - 0.25) / 7)
    assert "words" in format_comparison("after", compare(before, after))


def test_the_distance_is_over_pairs():
    tokens = np.stack([np.zeros((4, 3)), np.ones((4, 3)), np.full((4, 3), 3.0)])
    assert mean_distance(tokens) == pytest.approx((1 + 3 + 2) / 3)


def test_checkpoints_need_names(tmp_path, capsys):
    for arguments in (["a"], ["a=b", "a=c"]):
        with pytest.raises(SystemExit):
            post_training.main([*arguments, "--results", str(tmp_path)])
    assert "a name of its own" in capsys.readouterr().err


def test_gradients_agree_by_the_share_of_what_they_have_in_common():
    """Of g + noise with |noise| = 3 |g| a tenth of the squared length is common."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=200_000)
    gradients = [(common + 3 * rng.normal(size=common.shape)).astype(np.float32) for _ in range(4)]
    found = gradient_signal.cosines(gradients)
    assert len(found) == 6 and found == pytest.approx([0.1] * 6, abs=0.01)
    assert gradient_signal.cosines([common, 2 * common, -common]) == pytest.approx([1, -1, -1])
