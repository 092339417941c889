"""How sure a difference between two models is: paired bootstrap over prompts.

Letters: P prompts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nextstep_jax.errors import InputError

RESAMPLES = 10_000
_AT_ONCE = 1000  # resamples in memory


class Interval(NamedTuple):
    """A mean difference and the 95 % interval around it."""

    difference: float
    low: float
    high: float


def paired_interval(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over groups of the mean of `after - before` in each, with the percentiles 2.5 and 97.5 of its bootstrap.

    Prompts are drawn anew within each group, each with both of its scores, so that what makes a prompt easy for both models
    does not widen the interval. Several images of one prompt are one score, their mean: they are not independent.

    Args:
      before, after: scores [P] of the same prompts in the same order, by group; one group for a single category.

    Raises:
      InputError: different groups, different numbers of prompts, or none.
    """
    if not before or before.keys() != after.keys():
        raise InputError(f"expected scores of the same groups, found {sorted(before)} and {sorted(after)}")
    pairs = {}
    for name, scores in before.items():
        old, new = np.asarray(scores, np.float64), np.asarray(after[name], np.float64)
        if old.shape != new.shape or old.ndim != 1 or not old.size:
            raise InputError(f"{name}: expected one score of each prompt, found {list(old.shape)} and {list(new.shape)}")
        pairs[name] = Pairs(np.stack([old, new]), np.ones((2, len(old))))
    return bootstrap(pairs, dict.fromkeys(pairs, 1 / len(pairs)), resamples=resamples, seed=seed)


class Pairs(NamedTuple):
    """Sums of the scores of a group's prompts and how many scores they are, both [2, P]: before and after."""

    sums: np.ndarray
    counts: np.ndarray


def bootstrap(
    groups: Mapping[str, Pairs], weights: Mapping[str, float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The change of the weighted sum of the groups' means, each over all scores of a group, and its interval as above."""
    random, observed, drawn = np.random.default_rng(seed), 0.0, np.zeros(resamples)
    for name, (sums, counts) in groups.items():
        observed += weights[name] * float(_change(sums.sum(1), counts.sum(1)))
        for first in range(0, resamples, _AT_ONCE):
            rows = min(_AT_ONCE, resamples - first)
            chosen = random.integers(0, sums.shape[1], (rows, sums.shape[1]))
            change = _change(sums[:, chosen].sum(-1), counts[:, chosen].sum(-1))
            drawn[first : first + rows] += weights[name] * change
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(observed, float(low), float(high))


def _change(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean after less that before; not a number where there is no score."""
    with np.errstate(invalid="ignore", divide="ignore"):
        before, after = sums / counts
    return after - before
