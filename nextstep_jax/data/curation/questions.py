"""What stages ask a language model: several questions in flight, none that was answered before, and no more than a budget."""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from nextstep_jax.chat import Budget, ChatEndpoint, Question, png_bytes
from nextstep_jax.data import files
from nextstep_jax.data.curation.stages import NO_RESULT
from nextstep_jax.errors import InputError
from nextstep_jax.schema import NonNegative, at_least

Ask = Callable[[Sequence[Question], int], list[str | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asks:
    """Settings of every stage that asks an endpoint; what it finds does not depend on them.

    Attributes:
      concurrency: questions in flight, for one worker.
      answers: folder of answers, kept by a digest of model, question and images; "" keeps none. What it holds is not asked
        again, whichever recipe or run asked first.
      max_requests: of one worker in one run, retries included; 0 for any number. A job stops when they are used up.
    """

    concurrency: Annotated[int, at_least(1)] = dataclasses.field(default=8, metadata=NO_RESULT)
    answers: str = dataclasses.field(default="", metadata=NO_RESULT)
    max_requests: NonNegative = dataclasses.field(default=0, metadata=NO_RESULT)

    def open(self, endpoint: str, what: str) -> Ask:
        """A function from questions and the length of an answer in tokens to answers, None where there was none.

        Raises:
          InputError: `endpoint` is not set (`what` is named) or not openai:URL#MODEL; when asked, it refuses key, model or
            request, or the budget is used up.
        """
        if not endpoint:
            raise InputError(f"endpoint of a {what} is not set (expected openai:URL#MODEL)")
        budget = Budget(self.max_requests or None)
        model, in_flight = ChatEndpoint(endpoint, budget=budget), threading.BoundedSemaphore(self.concurrency)

        def answer(question: Question, max_tokens: int) -> str | None:
            path = self._path(model.model, question, max_tokens)
            if path is not None and path.is_file():
                kept = files.read_json(path)
                if isinstance(kept, dict) and isinstance(kept.get("text"), str):
                    return kept["text"]
            with in_flight:
                found = model.answer(question, max_tokens)
            if found.text is None and budget.used_up:
                raise InputError(
                    f"{endpoint}: the {self.max_requests} requests of max_requests are used up; the same command goes on with "
                    "what was answered"
                )
            if found.text is not None and path is not None:
                files.make_directory(path.parent)
                files.write_json(path, {"text": found.text})
            return found.text

        def ask(questions: Sequence[Question], max_tokens: int) -> list[str | None]:
            if len(questions) == 1:
                return [answer(questions[0], max_tokens)]
            with concurrent.futures.ThreadPoolExecutor(min(self.concurrency, len(questions))) as pool:
                return list(pool.map(lambda question: answer(question, max_tokens), questions))

        return ask

    def _path(self, model: str, question: Question, max_tokens: int) -> pathlib.Path | None:
        if not self.answers:
            return None
        images = [png_bytes(image) if isinstance(image, np.ndarray) else image for image in question.images]
        seen = [hashlib.sha256(image).hexdigest() for image in images]
        text = json.dumps([model, max_tokens, question.system, question.text, seen])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return pathlib.Path(self.answers) / digest[:2] / f"{digest[2:]}.json"
