"""What a reward is, and how a config spells one."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from nextstep_jax.errors import InputError

Score = dict[str, float]


@dataclasses.dataclass(frozen=True)
class RewardRequest:
    """One image to be scored.

    Attributes:
      prompt: what was asked for.
      image: [height, width, 3] uint8.
      metadata: JSON-able values that a reward may need: the text to be rendered, a category, a seed.
    """

    prompt: str
    image: np.ndarray
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Reward(Protocol):
    """Scores of a batch of requests, in their order; None where one could not be scored. Higher is better.

    Attributes:
      name: kind and version; scores cached under one name must be comparable.
    """

    name: str

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]: ...


@dataclasses.dataclass(frozen=True)
class FunctionReward:
    """A Python function of requests as a reward."""

    name: str
    function: Callable[[Sequence[RewardRequest]], list[Score | None]]

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        return self.function(requests)


def open_reward(spelling: str) -> Reward:
    """The reward that a config calls `spelling`.

    "ocr"                            words read from the image, against those asked for (extra `rewards`)
    "python:package.module:function" a function (requests) -> scores
    "http://HOST/PATH", "https://…"  a server of scores, see `endpoint`
    "openai:URL#MODEL"               a vision-language model behind an OpenAI-compatible endpoint (extra `rewards`)

    Raises:
      InputError: no such spelling, a function that cannot be imported, or a package that is not installed.
    """
    kind, _, rest = spelling.partition(":")
    if spelling == "ocr":
        from nextstep_jax.rewards.text import OcrReward

        return OcrReward()
    if kind == "python":
        return FunctionReward(spelling, _import_function(rest))
    if kind in ("http", "https"):
        from nextstep_jax.rewards.endpoint import EndpointReward

        return EndpointReward(spelling)
    if kind == "openai":
        from nextstep_jax.rewards.judge import JudgeReward

        url, _, model = rest.rpartition("#")
        if not url.startswith(("http://", "https://")) or not model:
            raise InputError(f"reward {spelling!r}: expected openai:URL#MODEL, such as openai:http://localhost:8000/v1#qwen")
        return JudgeReward(url, model)
    raise InputError(f"reward must be ocr, python:MODULE:FUNCTION, an http(s) address or openai:URL#MODEL, found {spelling!r}")


def _import_function(path: str) -> Callable:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"reward python:{path}: cannot be imported ({error})") from error
