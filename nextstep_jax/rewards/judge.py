"""A vision-language model as a reward."""

import json
import re
from collections.abc import Sequence

from nextstep_jax.chat import ChatEndpoint, Question
from nextstep_jax.rewards.protocol import RewardRequest, Score

BEST = 10
ANSWER = f'Answer with JSON alone, {{"score": n}}, n a whole number from 0 (not at all) to {BEST} (exactly).'
QUESTION = (
    "Does this image show what the prompt asks for? Judge objects, their number, colors, places and any text. "
    f"{ANSWER}\nPrompt: "
)
EDIT_QUESTION = (
    "Is the last image what the instruction makes of those before it? Judge what was asked for, and whether all else stayed as "
    f"it was. {ANSWER}\nInstruction: "
)


class JudgeReward:
    """{"reward": the model's score / 10}; None where it gives no answer or one that is not a score.

    Raises:
      InputError: when called, the endpoint refuses key, model or request.
    """

    def __init__(self, endpoint: ChatEndpoint):
        self.name = f"{endpoint.name}-1"
        self._endpoint = endpoint

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        questions = [Question((EDIT_QUESTION if r.sources else QUESTION) + r.prompt, [*r.sources, r.image]) for r in requests]
        return [parse_verdict(answer) for answer in self._endpoint.ask(questions, max_tokens=64)]


def parse_verdict(text: str | None) -> Score | None:
    """The score of an answer, alone or in a code block; None for anything that is not a whole number from 0 to 10."""
    match = re.fullmatch(r"\s*(?:```(?:json)?)?\s*(\{[^{}]*\})\s*(?:```)?\s*", text or "")
    try:
        score = json.loads(match[1])["score"] if match else None
    except (ValueError, KeyError):
        return None
    if isinstance(score, bool) or not isinstance(score, int) or not 0 <= score <= BEST:
        return None
    return {"reward": score / BEST}
