"""The paired bootstrap against the normal interval that it must come close to, and what it must not be fooled by."""

import numpy as np
import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.intervals import paired_interval


def test_an_interval_is_the_normal_one_for_many_prompts():
    random = np.random.default_rng(1)
    before, change = random.normal(size=800), random.normal(0.05, 0.3, size=800)
    found = paired_interval({"a": before}, {"a": before + change})
    half = 1.96 * change.std(ddof=1) / np.sqrt(800)
    assert found.difference == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.1 * half)


def test_how_hard_a_prompt_is_does_not_widen_the_interval():
    before = np.arange(50) / 50
    assert paired_interval({"a": before}, {"a": before + 0.25}) == pytest.approx((0.25, 0.25, 0.25))


def test_groups_count_alike_and_are_drawn_from_apart():
    random = np.random.default_rng(2)
    small, large = random.normal(0, 1, 10), random.normal(1, 1, 1000)
    zeros = {"small": np.zeros(10), "large": np.zeros(1000)}
    found = paired_interval(zeros, {"small": small, "large": large})
    assert found.difference == pytest.approx((small.mean() + large.mean()) / 2)
    half = 1.96 / 2 * np.hypot(small.std() / np.sqrt(10), large.std() / np.sqrt(1000))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_it_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(3)
    held = 0
    for seed in range(300):
        change = random.binomial(4, 0.3, 140) / 4 - random.binomial(4, 0.25, 140) / 4
        found = paired_interval({"a": np.zeros(140)}, {"a": change}, resamples=500, seed=seed)
        held += found.low <= 0.05 <= found.high
    assert 0.90 <= held / 300 <= 0.985


@pytest.mark.parametrize(
    "before, after",
    [({}, {}), ({"a": [1.0]}, {"b": [1.0]}), ({"a": [1.0, 0.0]}, {"a": [1.0]}), ({"a": []}, {"a": []})],
)
def test_scores_of_different_prompts_are_refused(before, after):
    with pytest.raises(InputError, match="expected"):
        paired_interval(before, after)
