"""Questions to a language model, with or without an image, behind any endpoint that speaks OpenAI's chat completions."""

import base64
import concurrent.futures
import io
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nextstep_jax.errors import InputError

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """What is asked: a text and, to a model with vision, an image [height, width, 3] uint8."""

    text: str
    image: np.ndarray | None = None


def png_base64(image: np.ndarray) -> str:
    """An image [height, width, 3] uint8 as the text of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class ChatEndpoint:
    """A model behind an endpoint. The key is taken from the environment variable OPENAI_API_KEY, and from nowhere else.

    Args:
      spelling: "openai:URL#MODEL", such as openai:http://localhost:8000/v1#qwen.
      concurrency: questions asked at once.
      timeout: seconds for one answer.
      retries: how often a question that failed is asked again, with growing pauses.

    Raises:
      InputError: another spelling, or the package `openai` is not installed.
    """

    def __init__(self, spelling: str, concurrency: int = 8, timeout: float = 60.0, retries: int = 2):
        kind, _, rest = spelling.partition(":")
        url, _, model = rest.rpartition("#")
        if kind != "openai" or not url.startswith(("http://", "https://")) or not model:
            raise InputError(f"expected openai:URL#MODEL, such as openai:http://localhost:8000/v1#qwen, found {spelling!r}")
        try:
            import openai
        except ImportError as error:
            raise InputError(f"{spelling} needs the package openai: pip install 'nextstep_jax[rewards]'") from error
        self.name = spelling
        self._model, self._concurrency = model, concurrency
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)
        self._refused = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError)
        self._failed = openai.APIError

    def ask(self, questions: Sequence[Question], max_tokens: int) -> list[str | None]:
        """Answers at temperature 0, in order; None where there was none, which is logged.

        Raises:
          InputError: the endpoint refuses key, model or request.
        """
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(lambda question: self._ask(question, max_tokens), questions))

    def _ask(self, question: Question, max_tokens: int) -> str | None:
        content: list[Any] = [{"type": "text", "text": question.text}]
        if question.image is not None:
            url = f"data:image/png;base64,{png_base64(question.image)}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        try:
            messages: list[Any] = [{"role": "user", "content": content}]
            reply = self._client.chat.completions.create(
                model=self._model, messages=messages, temperature=0, max_tokens=max_tokens
            )
            answer = reply.choices[0].message.content
        except self._refused as error:
            raise InputError(f"{self.name}: the endpoint refused the request ({error})") from error
        except (self._failed, AttributeError, IndexError, TypeError, ValueError) as error:
            logger.warning("%s: a question was not answered (%s)", self.name, error)
            return None
        return answer if isinstance(answer, str) else None
