"""From the name that a config gives a reward to the reward."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence

from nextstep_jax.chat import ChatEndpoint
from nextstep_jax.errors import InputError
from nextstep_jax.rewards.endpoint import EndpointReward
from nextstep_jax.rewards.judge import JudgeReward
from nextstep_jax.rewards.protocol import Reward, RewardRequest, Score
from nextstep_jax.rewards.shapes import ShapesReward
from nextstep_jax.rewards.text import OcrReward


@dataclasses.dataclass(frozen=True)
class FunctionReward:
    """A Python function of requests as a reward."""

    name: str
    function: Callable[[Sequence[RewardRequest]], list[Score | None]]

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        return self.function(requests)


def open_reward(spelling: str) -> Reward:
    """The reward that a config calls `spelling`.

    "shapes"                         whether an image of the built-in dataset's world is right
    "ocr"                            words read from the image, against those asked for (extra `rewards`)
    "python:package.module:function" a function (requests) -> scores
    "http://HOST/PATH", "https://…"  a server of scores, see `endpoint`
    "openai:URL#MODEL"               a vision-language model behind an OpenAI-compatible endpoint (extra `rewards`)

    Raises:
      InputError: no such spelling, a function that cannot be imported, or a package that is not installed.
    """
    kind, _, rest = spelling.partition(":")
    if spelling == "shapes":
        return ShapesReward()
    if spelling == "ocr":
        return OcrReward()
    if kind == "python":
        return FunctionReward(spelling, _import_function(rest))
    if kind in ("http", "https"):
        return EndpointReward(spelling)
    if kind == "openai":
        return JudgeReward(ChatEndpoint(spelling))
    raise InputError(
        f"reward must be shapes, ocr, python:MODULE:FUNCTION, an http(s) address or openai:URL#MODEL, found {spelling!r}"
    )


def parse_weighted(text: str) -> tuple[float, str]:
    """(weight, spelling) of "0.5 SPELLING" or "SPELLING". InputError for a weight that is no number."""
    weight, _, spelling = text.strip().rpartition(" ")
    try:
        return float(weight or 1), spelling
    except ValueError as error:
        raise InputError(f"a reward is written REWARD or 'WEIGHT REWARD', found {text!r}") from error


def _import_function(path: str) -> Callable:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"reward python:{path}: cannot be imported ({error})") from error
