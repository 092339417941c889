"""Asking a judge about a suite's images: a vision-language model behind an endpoint."""

import collections
import concurrent.futures
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nextstep_jax.chat import Answer, ChatEndpoint, png_bytes
from nextstep_jax.data import files, images
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.evaluation.suites.export import IMAGES, exported_items, read_record
from nextstep_jax.evaluation.suites.results import Lines, Result, latest, sha256
from nextstep_jax.evaluation.suites.suite import Ask, Item, Suite
from nextstep_jax.rewards.cache import Cache

TRIES = 3  # of a reply that cannot be read
MAX_UNANSWERED = 20  # questions in a row


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judges, and how.

    Attributes:
      tries: how often a question is asked whose reply cannot be read.
      body: further fields of each request.
      cache: answers of earlier runs.
    """

    endpoint: ChatEndpoint
    temperature: float = 0.0
    tries: int = TRIES
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cache: Cache | None = None

    @property
    def name(self) -> str:
        """Model and address, with whatever else changes its replies."""
        return f"{self.endpoint.model} at {self.endpoint.url}" + (f" with {json.dumps(self.body)}" if self.body else "")


@dataclasses.dataclass(frozen=True)
class _Job:
    """One question about one image."""

    item: Item
    sample: int
    image_sha256: str
    ask: Ask
    key: str  # in the cache


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """`values`: None where there is no answer or it could not be read."""

    answer: Answer
    values: Sequence[float] | None
    attempts: int


def judge(
    suite: Suite,
    out: pathlib.Path,
    results: pathlib.Path,
    judge: Judge,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Ask about every image in OUT/images what has not been answered yet; each answer is appended to `results` at once.

    A question counts as answered if `results` has a score for each of its criteria, or a reply that could not be read, from the
    same judge about the same image in the same words. A question that was not answered is asked again by the next call.

    Args:
      progress: called with (images looked at, images in all).

    Returns:
      {"asked", "known", "cached", "unparsable", "unanswered", "left"}: questions; `left` were not asked because the budget of
      requests was used up.

    Raises:
      InputError: an image that is missing or damaged, or an endpoint that refuses key, model or request.
      NextStepError: the endpoint does not answer any more.
    """
    items = exported_items(read_record(out, suite), suite)
    counts: collections.Counter[str] = collections.Counter()
    for item in items:
        for name in item.files:
            if not (out / IMAGES / name).is_file():
                raise InputError(f"{out / IMAGES / name}: not there; export the images first")
    with Lines(results) as lines:
        known = latest(lines.values, suite.name, results)
        waiting: dict[concurrent.futures.Future, _Job] = {}
        in_a_row = 0

        def finish(futures: Sequence[concurrent.futures.Future]) -> None:
            nonlocal in_a_row
            for future in futures:
                job = waiting.pop(future)
                verdict = future.result()
                if verdict is None:
                    counts["left"] += 1
                    continue
                counts["asked"] += 1
                in_a_row = in_a_row + 1 if verdict.answer.text is None else 0
                _keep(suite, judge, lines, job, verdict, counts)

        pool = concurrent.futures.ThreadPoolExecutor(judge.endpoint.concurrency)
        try:
            for job in _jobs(suite, items, out, judge, progress):
                if _is_known(known, job, judge):
                    counts["known"] += 1
                    continue
                cached = judge.cache.find([job.key]).get(job.key) if judge.cache is not None else None
                if cached is not None:
                    counts["cached"] += 1
                    _keep(suite, judge, lines, job, _Verdict(Answer(cached["raw"]), cached["values"], 0), counts)
                    continue
                waiting[pool.submit(_decide, judge, job.ask)] = job
                if len(waiting) >= 2 * judge.endpoint.concurrency:
                    done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                    finish(list(done))
                if in_a_row >= MAX_UNANSWERED:
                    raise NextStepError(f"{judge.endpoint.name}: did not answer {in_a_row} questions in a row; try again later")
            finish(list(concurrent.futures.as_completed(list(waiting))))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # what was asked is paid for: it is waited for and kept
            answered = [f for f in waiting if not f.cancelled() and f.exception() is None]
            finish(answered)
    names = ("asked", "known", "cached", "unparsable", "unanswered", "left")
    return {name: counts[name] for name in names}


def _jobs(
    suite: Suite, items: Sequence[Item], out: pathlib.Path, judge: Judge, progress: Callable[[int, int], None]
) -> Iterator[_Job]:
    total = len(items) * suite.samples
    for i, item in enumerate(items):
        for sample, image in enumerate(read_images(suite, item, out)):
            digest = sha256(image)
            for ask in suite.asks(item, image):
                yield _Job(item, sample, digest, ask, "" if judge.cache is None else _cache_key(judge, ask))
            progress(i * suite.samples + sample + 1, total)


def read_images(suite: Suite, item: Item, out: pathlib.Path) -> list[bytes]:
    """An image file for each sample of a prompt; of a grid, its quarters as PNG files (sides rounded down).

    Raises:
      InputError: an image that is missing or damaged.
    """
    data = [files.read_bytes(out / IMAGES / name, images.MAX_FILE_BYTES) for name in item.files]
    for name, one in zip(item.files, data, strict=True):
        images.probe(one, str(out / IMAGES / name))
    if not suite.grid:
        return data
    pixels = np.asarray(images.load(out / IMAGES / item.files[0]))
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    corners = [(0, 0), (0, width), (height, 0), (height, width)]
    return [png_bytes(pixels[top : top + height, left : left + width]) for top, left in corners]


def _decide(judge: Judge, ask: Ask) -> _Verdict | None:
    """Ask until a reply can be read, `tries` times at most; None if the budget holds no request any more. A refusal counts."""
    attempts, unread = 0, None
    for _ in range(judge.tries):
        answer = judge.endpoint.answer(ask.question, ask.max_tokens, judge.temperature, ask.top_logprobs, judge.body)
        attempts += answer.attempts
        if answer.text is None:
            return _Verdict(unread or answer, None, attempts) if attempts else None
        values = None if answer.error else ask.parse(answer)
        if values is not None or answer.error:
            return _Verdict(answer, values, attempts)
        unread = answer
    return _Verdict(unread or Answer(None), None, attempts)


def _keep(suite: Suite, judge: Judge, lines: Lines, job: _Job, verdict: _Verdict, counts: collections.Counter[str]) -> None:
    """Append a line for each criterion of a question."""
    raw, values, error = verdict.answer.text, verdict.values, None
    if raw is None:
        counts["unanswered"] += 1
        error = verdict.answer.error
    elif values is None:
        counts["unparsable"] += 1
        error = verdict.answer.error or "the reply could not be read"
    elif judge.cache is not None:
        judge.cache.keep({job.key: {"raw": raw, "values": list(values)}})
    scores = [None] * len(job.ask.criteria) if values is None else values
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines.append(
        dataclasses.asdict(
            Result(
                suite=suite.name,
                id=job.item.id,
                sample=job.sample,
                criterion=criterion,
                score=score,
                raw=raw,
                judge=judge.name,
                temperature=judge.temperature,
                date=now,
                prompt_sha256=job.ask.prompt_sha256,
                image_sha256=job.image_sha256,
                attempt=verdict.attempts,
                error=error,
            )
        )
        for criterion, score in zip(job.ask.criteria, scores, strict=True)
    )


def _is_known(known: Mapping[tuple[str, int, str], Result], job: _Job, judge: Judge) -> bool:
    for criterion in job.ask.criteria:
        result = known.get((job.item.id, job.sample, criterion))
        if result is None or (result.score is None and result.raw is None):
            return False
        asked = (result.judge, result.temperature, result.prompt_sha256, result.image_sha256)
        if asked != (judge.name, judge.temperature, job.ask.prompt_sha256, job.image_sha256):
            return False
    return True


def _cache_key(judge: Judge, ask: Ask) -> str:
    """Of everything that an answer depends on."""
    question = ask.question
    pictures = [sha256(image if isinstance(image, bytes) else image.tobytes()) for image in question.images]
    words = [judge.name, judge.temperature, question.system, question.text, ask.max_tokens, ask.top_logprobs, ask.criteria]
    return sha256(json.dumps([*words, pictures]).encode())
