"""The one thread that owns the device, and the queue before it.

A job is one request. Requests for images that differ in prompt, seed and the content of input images alone are drawn side by
side, each the image it would be alone up to rounding (`Pipeline.generate`: an image depends on its prompt, its seed and its
index).
"""

import collections
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.generation.interleaved import generate_interleaved
from nextstep_jax.generation.loaded_model import PartialImages
from nextstep_jax.generation.pipeline import MAX_BATCH, Pipeline
from nextstep_jax.generation.word_attention import word_attention
from nextstep_jax.serve.kept import KeptImages
from nextstep_jax.serve.preview import token_colors
from nextstep_jax.serve.requests import AttentionRequest, ChatRequest, DrawRequest, RequestError

logger = logging.getLogger(__name__)

MAX_WAITING = 64
GATHER_SECONDS = 0.02  # how long the oldest job waits for others to be drawn beside it
WATCH_SECONDS = 1 / 30  # between messages with new tokens: what the eye can follow
MAX_SECONDS = 300.0  # of one job on the device

Event = tuple[str, dict[str, Any]]
Request = DrawRequest | ChatRequest | AttentionRequest


class Stopped(Exception):
    """Nobody waits for the result any more."""


class Job:
    """A request on its way. `send` is called with each event, on the device's thread or, while it waits, on any other.

    Events: queued {position}, started {h, w}, thinking {text}, tokens {image, first, rgb}, partial {image, index, pixels},
    text {text}, part {part}; and as the last one done {results, and for images their ids} or failed {error}.
    """

    def __init__(self, request: Request, send: Callable[[Event], None]):
        self.request, self.id = request, secrets.token_urlsafe(12)
        self._send, self._over = send, threading.Event()
        self.cancelled = threading.Event()

    def send(self, name: str, **values: Any) -> None:
        """Nothing follows the last event."""
        if not self._over.is_set():
            if name in ("done", "failed"):
                self._over.set()
            self._send((name, values))

    def fail(self, message: str, status: int, code: str) -> None:
        self.send("failed", error=RequestError(message, status, code=code))


class Worker:
    """Runs jobs on a thread of its own, from `start` to `stop`.

    Args:
      preview: weights of `preview.preview_weights`, None for a model that draws nothing.

    Attributes:
      kept: the last images that can be asked about.
    """

    def __init__(self, pipeline: Pipeline, preview: np.ndarray | None):
        self.pipeline, self.ready, self.seconds = pipeline, False, 1.0
        self._preview, self.kept = preview, KeptImages()
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    # --- from other threads ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop what runs at its next chunk, and wait for that."""
        with self._changed:
            self._stopping = True
            for job in [*self._waiting, *self._running]:
                job.cancelled.set()
            self._changed.notify_all()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """RequestError (429) if too many wait already."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                wait = str(max(1, round(self.seconds * len(self._waiting) / 4)))
                message = f"{MAX_WAITING} requests are waiting: try again later"
                raise RequestError(message, 429, code="queue_full", headers={"retry-after": wait})
            self._waiting.append(job)
            job.send("queued", position=len(self._waiting))
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Leave out a job that waits; one that runs stops at its next chunk, when all beside it have been cancelled, too."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._tell_positions()
        job.fail("stopped", 409, "stopped")

    def find(self, id: str) -> Job | None:
        with self._changed:
            return next((job for job in [*self._running, *self._waiting] if secrets.compare_digest(job.id, id)), None)

    def counts(self) -> dict[str, int]:
        with self._changed:
            return {"running": len(self._running), "waiting": len(self._waiting)}

    # --- on the device's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._warm_up()
        except Exception:  # the first request meets the same error, and says it
            logger.exception("warming up failed")
        self.ready = True
        while (jobs := self._take()) is not None:
            start = time.monotonic()
            try:
                self._work(jobs, start + MAX_SECONDS)
            except Stopped:
                pass  # nobody is left to be told
            except TimeoutError:
                for job in jobs:
                    job.fail(f"stopped after {MAX_SECONDS:g} seconds", 503, "time_limit")
            except InputError as error:
                for job in jobs:
                    job.send("failed", error=error)
            except Exception:
                logger.exception("a job failed")
                for job in jobs:
                    job.fail("the server failed; its log says why", 500, "server_error")
            with self._changed:
                self._running = []
                self.seconds = 0.8 * self.seconds + 0.2 * (time.monotonic() - start)

    def _warm_up(self) -> None:
        """Compile the programs of one image of the default size, and of a text."""
        pipeline = self.pipeline
        if pipeline.tokenizer_config is not None:
            prompt = "a" if pipeline.vocabulary is not None else [0]
            pipeline.generate(prompt, on_chunk=lambda *_: None)

    def _take(self) -> list[Job] | None:
        """The oldest job and what can be drawn beside it; None when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            key = _batch_key(self._waiting[0])
            if key is not None:
                deadline = time.monotonic() + GATHER_SECONDS
                while self._rows_beside(key) < MAX_BATCH and (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
            if not self._waiting:
                return []  # the one that was there has been cancelled
            first = self._waiting.popleft()
            jobs, rows = [first], _rows(first)
            key = _batch_key(first)
            for job in list(self._waiting) if key is not None else ():
                if _batch_key(job) == key and rows + _rows(job) <= MAX_BATCH:
                    self._waiting.remove(job)
                    jobs.append(job)
                    rows += _rows(job)
            self._running = jobs
            self._tell_positions()
            return jobs

    def _rows_beside(self, key: tuple) -> int:
        return sum(_rows(job) for job in self._waiting if _batch_key(job) == key)

    def _tell_positions(self) -> None:
        for position, job in enumerate(self._waiting, 1):
            job.send("queued", position=position)

    def _work(self, jobs: list[Job], deadline: float) -> None:
        def check() -> None:
            if all(job.cancelled.is_set() for job in jobs):
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError

        if not jobs:
            return
        check()
        request = jobs[0].request
        if isinstance(request, ChatRequest):
            self._chat(jobs[0], request, check)
        elif isinstance(request, AttentionRequest):
            self._attention(jobs[0], request.image)
        else:
            self._draw(jobs, [job.request for job in jobs if isinstance(job.request, DrawRequest)], check)

    def _draw(self, jobs: list[Job], wanted: list[DrawRequest], check: Callable[[], None]) -> None:
        """Jobs of one batch key and their requests."""
        pipeline, n, first = self.pipeline, wanted[0].n, wanted[0]
        watchers = [_Watcher(job, wanted[i], n * i, self._preview) for i, job in enumerate(jobs)]
        for job in jobs:
            job.send("started", h=first.h, w=first.w)

        def on_chunk(done: int, total: int, partial: PartialImages) -> None:
            check()
            for watcher in watchers:
                watcher.show(done, total, partial)

        def on_thinking(job: Job, text: str) -> None:
            check()
            job.send("thinking", text=text)

        shared: dict[str, Any] = {
            "height": first.h * pipeline.token_pixels,
            "width": first.w * pipeline.token_pixels,
            "n": n,
            "seed": [request.seed for request in wanted],
            "settings": first.settings,
            "on_chunk": on_chunk,
            "on_thinking": [functools.partial(on_thinking, job) for job in jobs],
        }
        prompts = [request.prompt for request in wanted]
        if first.sources:
            images = pipeline.edit_batch([request.sources for request in wanted], prompts, **shared)
        else:
            images = pipeline.generate(prompts, **shared)
        # Only the words of a text say what the model read: not the images of an edit, nor its thoughts.
        askable = pipeline.vocabulary is not None and not (first.sources or first.settings.thinking)
        for i, job in enumerate(jobs):
            results = images[n * i : n * i + n]
            job.send("done", results=results, ids=[self.kept.add(image) if askable else None for image in results])

    def _attention(self, job: Job, image: GeneratedImage) -> None:
        settings, side = GenerationConfig(**image.record["settings"]), self.pipeline.token_pixels
        h, w = image.pixels.shape[0] // side, image.pixels.shape[1] // side
        job.send("done", results=word_attention(self.pipeline, image.record["prompt"], settings, image.tokens, h, w))

    def _chat(self, job: Job, request: ChatRequest, check: Callable[[], None]) -> None:
        drawn = 0
        watcher = _Watcher(job, request, 0, self._preview)

        def on_text(text: str) -> None:
            check()
            job.send("text", text=text)

        def on_chunk(done: int, total: int, partial: PartialImages) -> None:
            check()
            if watcher.first == 0:
                job.send("started", h=partial.h, w=partial.w)
            watcher.show(done, total, partial)

        def on_part(part: str | GeneratedImage) -> None:
            nonlocal drawn, watcher
            drawn += isinstance(part, GeneratedImage)
            watcher = _Watcher(job, request, 0, self._preview, image=drawn)
            job.send("part", part=part)

        sampling: dict[str, Any] = {name: getattr(request, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
        shared: dict[str, Any] = sampling | {"settings": request.settings, "on_text": on_text}
        results: Sequence[str | GeneratedImage]
        if request.draws:
            watch: dict[str, Any] = {"max_images": request.max_images, "on_chunk": on_chunk, "on_part": on_part}
            results = generate_interleaved(self.pipeline, request.prompt, request.sources, **watch, **shared)
        else:
            results = [self.pipeline.generate_text(request.prompt, request.sources, **shared)]
            on_part(results[0])
        job.send("done", results=results)


class _Watcher:
    """Sends a job what is new of its images after each chunk, at most once in `WATCH_SECONDS`.

    Args:
      row: of the job's first image in the batch.
      image: the number of that image in the reply.
    """

    def __init__(self, job: Job, request: DrawRequest | ChatRequest, row: int, preview: np.ndarray | None, image: int = 0):
        self._job, self._request, self._row, self._preview, self._image = job, request, row, preview, image
        self._count = request.n if isinstance(request, DrawRequest) else 1
        self.first, self._decoded, self._next = 0, 0, 0.0

    def show(self, done: int, total: int, partial: PartialImages) -> None:
        wanted = self._request.partial_images if isinstance(self._request, DrawRequest) else 0
        decode = self._decoded < wanted and done < total and done * (wanted + 1) >= total * (self._decoded + 1)
        now = time.monotonic()
        if now < self._next and done < total and not decode:
            return
        for j in range(0 if self._job.cancelled.is_set() else self._count):
            tokens, image = partial.tokens[self._row + j], self._image + j
            if self._request.tokens and self._preview is not None:
                rgb = token_colors(self._preview, tokens[self.first : done]).tobytes()
                self._job.send("tokens", image=image, first=self.first, rgb=rgb)
            if decode:
                (pixels,) = partial.decode(tokens[None], partial.h, partial.w)
                self._job.send("partial", image=image, index=self._decoded, pixels=pixels)
        self.first, self._decoded, self._next = done, self._decoded + decode, now + WATCH_SECONDS


def _batch_key(job: Job) -> tuple | None:
    return job.request.batch_key if isinstance(job.request, DrawRequest) else None


def _rows(job: Job) -> int:
    return job.request.n if isinstance(job.request, DrawRequest) else 1
