"""A vision-language model as a reward, behind any endpoint that speaks OpenAI's chat completions."""

import concurrent.futures
import json
import logging
import os
import re
from collections.abc import Sequence

from nextstep_jax.errors import InputError
from nextstep_jax.rewards.endpoint import png_base64
from nextstep_jax.rewards.protocol import RewardRequest, Score

logger = logging.getLogger(__name__)

BEST = 10
QUESTION = (
    "Does this image show what the prompt asks for? Judge objects, their number, colors, places and any text. "
    f'Answer with JSON alone, {{"score": n}}, n a whole number from 0 (not at all) to {BEST} (exactly).\nPrompt: '
)


class JudgeReward:
    """{"reward": the model's score / 10}; None where it gives no answer or one that is not a score.

    The key is taken from the environment variable OPENAI_API_KEY, and from nowhere else.

    Args:
      concurrency: questions asked at once.
      timeout: seconds for one answer; the client tries a failed one twice again, with growing pauses.

    Raises:
      InputError: `openai` is not installed; when called, the endpoint refuses key, model or request.
    """

    def __init__(self, url: str, model: str, concurrency: int = 8, timeout: float = 60.0, retries: int = 2):
        try:
            import openai
        except ImportError as error:
            raise InputError(f"reward openai:{url} needs the package openai: pip install 'nextstep_jax[rewards]'") from error
        self.name = f"openai:{url}#{model}-1"
        self._model, self._concurrency = model, concurrency
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)
        self._refused = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError)
        self._failed = openai.APIError

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(self._ask, requests))

    def _ask(self, request: RewardRequest) -> Score | None:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_base64(request.image)}"}}
        content = [{"type": "text", "text": QUESTION + request.prompt}, image]
        try:
            reply = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=64
            )
            return parse_verdict(reply.choices[0].message.content)
        except self._refused as error:
            raise InputError(f"reward {self.name}: the endpoint refused the request ({error})") from error
        except (self._failed, AttributeError, IndexError, TypeError, ValueError) as error:
            logger.warning("reward %s: an image was not scored (%s)", self.name, error)
            return None


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
