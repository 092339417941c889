"""A reward behind HTTP: any program that answers with scores, such as one that holds a torch model.

POST {"requests": [{"prompt": text, "image": base64 of a PNG, "metadata": {...}}, ...]}
  -> {"scores": [{"reward": 0.3, ...} or null, ...]}

A request about an edit also has "sources": [base64 of a PNG, ...], the images that its prompt, an instruction, is about.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from nextstep_jax.chat import png_base64
from nextstep_jax.errors import InputError
from nextstep_jax.rewards.protocol import RewardRequest, Score

logger = logging.getLogger(__name__)

ATTEMPTS = 4
BUSY = (429, 500, 502, 503, 504)  # may be another status soon
MAX_REPLY = 1 << 20  # bytes
MAX_TIMEOUTS = 4  # how often `timeout` may pass in all while an answer trickles in


class EndpointReward:
    """The scores a server gives.

    Connections that fail, 429 and 5xx are tried again with growing pauses. What still fails, is too slow, or answers with
    something else than scores, counts as not scored.

    Args:
      timeout: seconds without a byte before an answer is given up; one that comes in pieces has four times as long in all.
      pause: seconds before the third attempt; the second comes at once, each later one after twice the pause.

    Raises:
      InputError: `requests` is not installed; when called, the server refuses the request (another 4xx).
    """

    def __init__(self, url: str, timeout: float = 60.0, pause: float = 2.0):
        try:
            import requests
            from requests.adapters import HTTPAdapter
            from urllib3.exceptions import HTTPError
            from urllib3.util import Retry
        except ImportError as error:
            raise InputError(f"reward {url} needs the package requests: pip install 'nextstep_jax[rewards]'") from error
        self.name = url
        self._timeout = timeout
        self._failed = (requests.RequestException, HTTPError, _BusyError)
        self._session = requests.Session()
        retry = Retry(
            total=ATTEMPTS - 1,
            redirect=0,
            backoff_factor=pause / 2,
            backoff_max=30 * pause,
            status_forcelist=BUSY,
            allowed_methods=None,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        try:
            scores = parse_scores(self._post({"requests": list(map(_entry, requests))}), len(requests))
            problem = "the answer holds no scores"
        except self._failed as error:
            scores, problem = None, str(error)
        if scores is None:
            logger.warning("reward %s: %d images were not scored (%s)", self.name, len(requests), problem)
            return [None] * len(requests)
        return scores

    def _post(self, body: dict) -> bytes:
        options: dict[str, Any] = {"json": body, "timeout": self._timeout, "stream": True, "allow_redirects": False}
        options["headers"] = {"Accept-Encoding": "identity"}
        with self._session.post(self.name, **options) as response:
            if response.status_code in BUSY:
                raise _BusyError(f"status {response.status_code} in {ATTEMPTS} attempts")
            if response.status_code != 200:
                raise InputError(f"reward {self.name}: the server answered with status {response.status_code}")
            reply, end = b"", time.monotonic() + MAX_TIMEOUTS * self._timeout
            while part := response.raw.read1(1 << 16):
                reply += part
                if len(reply) > MAX_REPLY:
                    return b""
                if time.monotonic() > end:
                    raise _BusyError(f"the answer was not whole after {MAX_TIMEOUTS * self._timeout:g} s")
            return reply


def _entry(request: RewardRequest) -> dict[str, Any]:
    """A request as JSON."""
    entry = {"prompt": request.prompt, "image": png_base64(request.image), "metadata": dict(request.metadata)}
    return entry | ({"sources": list(map(png_base64, request.sources))} if request.sources else {})


class _BusyError(Exception):
    """The server answered at last, but only that it cannot."""


def parse_scores(reply: bytes, count: int) -> list[Score | None] | None:
    """The scores of an answer; None if it is not what `EndpointReward` asks for. A score with a number that is not finite
    counts as missing.
    """
    try:
        scores = json.loads(reply)["scores"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(scores, list) or len(scores) != count:
        return None
    return [_score(score) for score in scores]


def _score(value) -> Score | None:
    if not isinstance(value, dict) or not value:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value.values()):
        return None
    return {str(name): float(number) for name, number in value.items()}
