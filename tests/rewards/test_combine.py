"""Sums of rewards over groups, normalizers, and what a failed score costs."""

import numpy as np
import pytest
import scipy.stats

from nextstep_jax.errors import InputError
from nextstep_jax.rewards.combine import RewardTerm, normalize, score_groups
from nextstep_jax.rewards.loading import FunctionReward, open_reward


def seeds(requests):
    return [{"reward": r.metadata["seed"], "half": r.metadata["seed"] / 2} for r in requests]


def three_is_lost(requests):
    return [None if r.metadata["seed"] == 3 else {"reward": 1.0} for r in requests]


def groups_of(requests_of, p: int, g: int):
    requests = requests_of(p * g)
    return [requests[i * g : (i + 1) * g] for i in range(p)]


def test_a_sum_weighs_the_named_scores(requests_of):
    terms = [RewardTerm(FunctionReward("a", seeds), 2.0), RewardTerm(FunctionReward("b", seeds), -1.0, score="half")]
    found = score_groups(groups_of(requests_of, 2, 3), terms, batch=4)
    np.testing.assert_allclose(found.totals, 1.5 * np.arange(6).reshape(2, 3))
    np.testing.assert_allclose(found.scores["b/half"], np.arange(6).reshape(2, 3) / 2)
    assert found.valid.all() and found.failed == {"a": 0, "b": 0}


def test_a_failed_score_drops_its_group_and_is_counted(requests_of):
    terms = [RewardTerm(FunctionReward("a", seeds)), RewardTerm(FunctionReward("b", three_is_lost), normalizer="rank")]
    found = score_groups(groups_of(requests_of, 3, 2), terms)
    assert found.valid.tolist() == [True, False, True] and found.failed == {"a": 0, "b": 1}
    assert np.isnan(found.totals[1]).all() and np.isfinite(found.totals[[0, 2]]).all()


def test_a_reward_that_scores_nothing_leaves_no_group(requests_of):
    found = score_groups(groups_of(requests_of, 2, 2), [RewardTerm(FunctionReward("a", lambda rs: [None] * len(rs)))])
    assert not found.valid.any() and found.failed == {"a": 4}


def test_normalizers_are_scipys():
    scores = np.random.default_rng(0).normal(size=(4, 6))
    np.testing.assert_allclose(normalize(scores, "z_score"), scipy.stats.zscore(scores, axis=1))
    np.testing.assert_allclose(normalize(scores, "rank"), (scipy.stats.rankdata(scores, axis=1) - 1) / 5)
    assert normalize(scores, "none") is scores
    assert not normalize(np.ones((1, 3)), "z_score").any()


@pytest.mark.parametrize(
    "term, message",
    [
        (dict(normalizer="softmax"), "normalizer must be one of none, rank, z_score"),
        (dict(weight=float("nan")), "weight of reward a must be a finite number"),
        (dict(score="other"), "gives no score 'other', found a/half, a/reward"),
    ],
)
def test_terms_that_make_no_sum_are_refused(requests_of, term, message):
    with pytest.raises(InputError, match=message):
        score_groups(groups_of(requests_of, 1, 2), [RewardTerm(FunctionReward("a", seeds), **term)])


def test_groups_of_different_sizes_are_refused(requests_of):
    with pytest.raises(InputError, match=r"sizes \[1, 2\]"):
        score_groups([requests_of(1), requests_of(2)], [RewardTerm(FunctionReward("a", seeds))])


@pytest.mark.parametrize(
    "spelling, message",
    [
        ("beauty", "found 'beauty'"),
        ("python:no.such:thing", "cannot be imported"),
        ("python:math:thing", "cannot be imported"),
        ("python:math", "cannot be imported"),
        ("openai:http://localhost/v1", "expected openai:URL#MODEL"),
        ("openai:localhost#m", "expected openai:URL#MODEL"),
    ],
)
def test_spellings_that_name_no_reward_are_refused(spelling, message):
    with pytest.raises(InputError, match=message):
        open_reward(spelling)


def test_a_python_function_is_a_reward(requests_of):
    reward = open_reward("python:tests.rewards.test_combine:seeds")
    assert reward.name == "python:tests.rewards.test_combine:seeds" and len(reward(requests_of(2))) == 2
