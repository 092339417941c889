"""Several rewards as one number for each image of a group.

Letters: P prompts, G images of a prompt.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Real
from scipy.stats import rankdata

from nextstep_jax.errors import InputError
from nextstep_jax.rewards.protocol import Reward, RewardRequest, Score

NORMALIZERS = ("none", "rank", "z_score")


@dataclasses.dataclass(frozen=True)
class RewardTerm:
    """A reward's part in a sum.

    Attributes:
      reward: the reward.
      weight: of its score.
      normalizer: what happens to a group's scores before they are weighed: "none"; "rank", their ranks in [0, 1]; "z_score",
        their distance from the group's mean in standard deviations, 0 in a unanimous group.
      score: which of the reward's named scores counts.
    """

    reward: Reward
    weight: float = 1.0
    normalizer: str = "none"
    score: str = "reward"

    def __post_init__(self):
        if self.normalizer not in NORMALIZERS:
            raise InputError(f"normalizer must be one of {', '.join(NORMALIZERS)}, found {self.normalizer!r}")
        if not math.isfinite(self.weight):
            raise InputError(f"weight of reward {self.reward.name} must be a finite number, found {self.weight}")


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Scores of P groups.

    Attributes:
      totals: [P, G] float64 weighted sums; NaN in a group that is not valid.
      scores: {"reward name/score name": [P, G] float64}, NaN where a reward failed.
      valid: [P] bool; a group is dropped when any of its images could not be scored.
      failed: {reward name: how many images it could not score}.
    """

    totals: np.ndarray
    scores: Mapping[str, np.ndarray]
    valid: np.ndarray
    failed: Mapping[str, int]


def score_groups(groups: Sequence[Sequence[RewardRequest]], terms: Sequence[RewardTerm], batch: int = 64) -> Rewards:
    """Score P groups of G images each with every reward.

    Args:
      batch: requests a reward is given at once.

    Raises:
      InputError: groups of different sizes, no term, or a reward without the score that its term names.
    """
    sizes = {len(group) for group in groups}
    if len(sizes) != 1 or not terms:
        raise InputError(f"expected rewards and groups of one size, found {len(terms)} rewards and sizes {sorted(sizes)}")
    requests, shape = [request for group in groups for request in group], (len(groups), sizes.pop())
    totals, valid = np.zeros(shape), np.ones(shape[0], bool)
    scores: dict[str, np.ndarray] = {}
    failed: dict[str, int] = {}
    for term in terms:
        results = [result for i in range(0, len(requests), batch) for result in term.reward(requests[i : i + batch])]
        failed[term.reward.name] = sum(result is None for result in results)
        scores |= _by_name(term.reward.name, results, shape)
        key = f"{term.reward.name}/{term.score}"
        if key not in scores and failed[term.reward.name] < len(results):
            raise InputError(f"reward {term.reward.name} gives no score {term.score!r}, found {', '.join(scores)}")
        values = scores.get(key, np.full(shape, np.nan))
        valid &= np.isfinite(values).all(axis=1)
        totals += term.weight * normalize(values, term.normalizer)
    totals[~valid] = np.nan
    return Rewards(totals, scores, valid, failed)


def normalize(scores: Real[np.ndarray, "P G"], normalizer: str) -> Real[np.ndarray, "P G"]:
    """Scores [P, G] normalized group by group, see `RewardTerm`."""
    if normalizer == "rank":
        return (rankdata(scores, axis=1) - 1) / max(scores.shape[1] - 1, 1)
    if normalizer == "z_score":
        spread = scores.std(axis=1, keepdims=True)
        return (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    return scores


def _by_name(reward: str, results: Sequence[Score | None], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    names = sorted({name for result in results if result is not None for name in result})
    columns = ([math.nan if result is None else result.get(name, math.nan) for result in results] for name in names)
    return {f"{reward}/{name}": np.reshape(column, shape) for name, column in zip(names, columns, strict=True)}
