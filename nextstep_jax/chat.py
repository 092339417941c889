"""Questions to a language model, with or without images, behind any endpoint that speaks OpenAI's chat completions."""

import base64
import concurrent.futures
import io
import logging
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nextstep_jax.errors import InputError

logger = logging.getLogger(__name__)

MAX_WAIT = 60.0  # seconds between two attempts, whatever the server asks for
_MEDIA = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"RIFF", "image/webp"))
_POLICY = ("content_filter", "content_policy_violation")  # codes of a refusal that concerns one question alone


class Question(NamedTuple):
    """What is asked: a text and, to a model with vision, images after it.

    Attributes:
      images: [height, width, 3] uint8, sent as PNG; or PNG, JPEG and WebP files, sent as they are.
      system: a message before the text.
    """

    text: str
    images: Sequence[np.ndarray | bytes] = ()
    system: str | None = None


class Answer(NamedTuple):
    """What came back.

    Attributes:
      text: None if there was no answer; empty, with an error, if the endpoint refuses this question for good.
      candidates: (token, log-probability) of the likeliest first tokens, most likely first; None if the endpoint does not say.
      attempts: how many requests it took.
      error: why there was no answer; None if there was one.
    """

    text: str | None
    candidates: Sequence[tuple[str, float]] | None = None
    attempts: int = 1
    error: str | None = None


class Budget:
    """Requests that may be made; shared by threads. `limit` None: as many as it takes."""

    def __init__(self, limit: int | None = None):
        self.limit, self.spent = limit, 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Count one request, unless the budget is used up."""
        with self._lock:
            if self.used_up:
                return False
            self.spent += 1
            return True

    @property
    def used_up(self) -> bool:
        return self.limit is not None and self.spent >= self.limit


def png_bytes(image: np.ndarray) -> bytes:
    """An image [height, width, 3] uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def png_base64(image: np.ndarray) -> str:
    """An image [height, width, 3] uint8 as the text of a PNG file."""
    return base64.b64encode(png_bytes(image)).decode()


def data_url(image: np.ndarray | bytes) -> str:
    """An image of a `Question` as the address that carries it."""
    data = image if isinstance(image, bytes) else png_bytes(image)
    kind = next((kind for start, kind in _MEDIA if data.startswith(start)), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def spelled(url: str, model: str) -> str:
    """openai:URL#MODEL, as `ChatEndpoint` takes it, of an address and a model that were given apart. InputError for others."""
    if not url.startswith(("http://", "https://")) or not model:
        raise InputError(
            f"endpoint must be an address such as http://localhost:8000/v1, and model a name, found {url!r} and {model!r}"
        )
    return f"openai:{url}#{model}"


class ChatEndpoint:
    """A model behind an endpoint. The key is taken from the environment variable OPENAI_API_KEY, and from nowhere else.

    Requests that time out, lose their connection, or are answered with 408, 409, 429, 5xx or something that is not a chat
    completion are made again after growing pauses, or the pause that the server asks for.

    Args:
      spelling: "openai:URL#MODEL", such as openai:http://localhost:8000/v1#qwen.
      concurrency: questions asked at once.
      timeout: seconds for one answer.
      retries: how often a request that failed is made again.
      pause: seconds before the first retry; each later one waits twice as long.
      budget: of requests, retries included.

    Raises:
      InputError: another spelling, or the package `openai` is not installed.
    """

    def __init__(
        self,
        spelling: str,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 2,
        pause: float = 0.5,
        budget: Budget | None = None,
    ):
        kind, _, rest = spelling.partition(":")
        url, _, model = rest.rpartition("#")
        if kind != "openai" or not url.startswith(("http://", "https://")) or not model:
            raise InputError(f"expected openai:URL#MODEL, such as openai:http://localhost:8000/v1#qwen, found {spelling!r}")
        try:
            import openai
        except ImportError as error:
            raise InputError(f"{spelling} needs the package openai: pip install 'nextstep_jax[rewards]'") from error
        self.name, self.model, self.url = spelling, model, url
        self.concurrency, self.budget = concurrency, budget or Budget()
        self._retries, self._pause = retries, pause
        key = os.environ.get("OPENAI_API_KEY") or "none"
        # The client's own retries would not be counted against the budget.
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)
        self._openai: Any = openai

    def ask(self, questions: Sequence[Question], max_tokens: int) -> list[str | None]:
        """Answers at temperature 0, in order; None where there was none, which is logged.

        Raises:
          InputError: the endpoint refuses key, model or request.
        """
        with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            answers = list(pool.map(lambda question: self.answer(question, max_tokens), questions))
        for answer in answers:
            if answer.text is None:
                logger.warning("%s: a question was not answered (%s)", self.name, answer.error)
        return [answer.text for answer in answers]

    def answer(
        self,
        question: Question,
        max_tokens: int,
        temperature: float = 0.0,
        top_logprobs: int = 0,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The answer to one question; safe to call from several threads.

        Args:
          top_logprobs: how many candidates of the first token to ask for.
          body: further fields of the request, such as {"chat_template_kwargs": {"enable_thinking": False}}.

        Raises:
          InputError: the endpoint refuses key, model or request.
        """
        request: dict[str, Any] = {"model": self.model, "temperature": temperature, "max_tokens": max_tokens}
        request["messages"] = _messages(question)
        if top_logprobs:
            request |= {"logprobs": True, "top_logprobs": top_logprobs}
        if body:
            request["extra_body"] = dict(body)
        problem = ""
        for attempt in range(self._retries + 1):
            if not self.budget.take():
                return Answer(None, attempts=attempt, error=problem or "the budget is used up")
            try:
                choice = self._client.chat.completions.create(**request).choices[0]
                text = choice.message.content
                if isinstance(text, str):
                    return Answer(text, _candidates(choice) if top_logprobs else None, attempt + 1)
                problem = "an answer without text"
            except self._openai.APIStatusError as error:
                if error.code in _POLICY:
                    return Answer("", attempts=attempt + 1, error=f"refused by the endpoint's content policy ({error.code})")
                if not _may_pass(error):
                    raise InputError(f"{self.name}: the endpoint refused the request ({error})") from error
                problem, wait = f"status {error.status_code}", _retry_after(error)
            except (self._openai.APIError, AttributeError, IndexError, TypeError, ValueError) as error:
                problem, wait = str(error) or type(error).__name__, None
            else:
                wait = None
            if attempt < self._retries:
                time.sleep(min(MAX_WAIT, self._pause * 2**attempt * random.uniform(0.75, 1.25) if wait is None else wait))
        return Answer(None, attempts=self._retries + 1, error=problem)


def _messages(question: Question) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
    content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in question.images]
    system = [] if question.system is None else [{"role": "system", "content": question.system}]
    return [*system, {"role": "user", "content": content}]


def _candidates(choice: Any) -> list[tuple[str, float]] | None:
    """The candidates of the first token; None without any."""
    try:
        candidates = [(str(top.token), float(top.logprob)) for top in choice.logprobs.content[0].top_logprobs]
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return sorted(candidates, key=lambda candidate: -candidate[1]) or None


def _may_pass(error: Any) -> bool:
    """Whether the same request may be answered later."""
    return error.code != "insufficient_quota" and (error.status_code in (408, 409, 429) or error.status_code >= 500)


def _retry_after(error: Any) -> float | None:
    """Seconds that the server asks to wait; None if it does not say."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
