"""What a reward is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Score = dict[str, float]


@dataclasses.dataclass(frozen=True)
class RewardRequest:
    """One image to be scored.

    Attributes:
      prompt: what was asked for.
      image: [height, width, 3] uint8.
      metadata: JSON-able values that a reward may need: the text to be rendered, a category, a seed.
      sources: [height, width, 3] uint8 each, the images that the prompt, an instruction, is about.
    """

    prompt: str
    image: np.ndarray
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: Sequence[np.ndarray] = ()


class Reward(Protocol):
    """Scores of a batch of requests, in their order; None where one could not be scored. Higher is better.

    Attributes:
      name: kind and version; scores cached under one name must be comparable.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]: ...
