"""How sure a difference between two models is: paired bootstrap over prompts.

Letters: P prompts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nextstep_jax.errors import InputError

RESAMPLES = 10_000


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
    random, observed, drawn = np.random.default_rng(seed), [], []
    for name, scores in before.items():
        old, new = np.asarray(scores, np.float64), np.asarray(after[name], np.float64)
        if old.shape != new.shape or old.ndim != 1 or not old.size:
            raise InputError(f"{name}: expected one score of each prompt, found {list(old.shape)} and {list(new.shape)}")
        change = new - old
        observed.append(change.mean())
        drawn.append(change[random.integers(0, len(change), (resamples, len(change)))].mean(axis=1))
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return Interval(float(np.mean(observed)), float(low), float(high))
