"""Telling somebody that a run has ended or has a loss that is not finite: JSON, posted to an address of theirs.

    {"text": one line for people, "event": str, "run": its name, "workdir": str, "step": int}

`text` is what Slack, Mattermost and Google Chat show. Whoever knows such an address can post there, so a config names the
environment variable that holds it, and neither files nor logs ever hold more than the variable's name. The events: "done",
"stopped" (SIGTERM, everything saved), "failed", "non_finite". A machine that is switched off tells nobody: that shows in
`run.json`, which is then not written any more.
"""

import http.client
import json
import logging
import os
import re
import threading
import time
import urllib.parse

import jax

from nextstep_jax.checkpoints import processes
from nextstep_jax.errors import InputError

_TIMEOUT_S = 10.0  # of a post, and of waiting for the last ones at the end of a run

logger = logging.getLogger(__name__)


class Webhook:
    """Posts in threads of its own. Nothing that goes wrong here reaches the run; it is logged. A context manager, which tells
    of the error that ends its block and waits for posts under way, at most `_TIMEOUT_S` seconds.

    Args:
      variable: name of the environment variable with the address, http:// or https://; "": nobody is told.
      run, workdir: what messages call the run.

    Attributes:
      step: the step that a message of a failure names.

    Raises:
      InputError: the variable is not set, or holds no such address.
    """

    def __init__(self, variable: str, run: str, workdir: str):
        self._variable, self._about, self.step = variable, {"run": run, "workdir": workdir}, 0
        self._posts: list[threading.Thread] = []
        self._was_finite = True
        self._address = _address(variable) if variable else None

    def tell(self, event: str, text: str) -> None:
        """Begin to post a message."""
        if self._address is None:
            return
        message = {"text": f"{self._about['run'] or self._about['workdir']}: {text}", "event": event, "step": self.step}
        body = json.dumps({**message, **self._about}).encode()
        self._posts = [post for post in self._posts if post.is_alive()]
        self._posts.append(threading.Thread(target=self._post, args=(body,), name="webhook", daemon=True))
        self._posts[-1].start()

    def tell_if_not_finite(self, finite: list[tuple[int, bool]]) -> None:
        """(step, finite) of the steps since the last call: the first of several steps in a row that are not is told."""
        for step, good in finite:
            if self._was_finite and not good:
                self.tell("non_finite", f"loss or gradient of step {step} is not finite; its update was skipped")
            self._was_finite = good

    def __enter__(self) -> "Webhook":
        return self

    def __exit__(self, kind, error, _) -> None:
        if kind is not None:
            said = str(error).splitlines()[0][:500] if str(error) else kind.__name__
            self.tell("failed", f"ended after step {self.step}: {said}")
        deadline = time.monotonic() + _TIMEOUT_S
        for post in self._posts:
            post.join(max(0.0, deadline - time.monotonic()))
        if any(post.is_alive() for post in self._posts):
            logger.warning("the webhook of %s did not answer in %g s", self._variable, _TIMEOUT_S)

    def _post(self, body: bytes) -> None:
        assert self._address is not None
        address = self._address
        secure = address.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(address.hostname or "", address.port, timeout=_TIMEOUT_S)
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        try:
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status  # a redirection is not followed
            if status >= 300:
                logger.warning("the webhook of %s answered with status %d", self._variable, status)
        except (OSError, http.client.HTTPException) as error:
            logger.warning("the webhook of %s cannot be reached (%s)", self._variable, type(error).__name__)
        finally:
            connection.close()


def open_webhook(variable: str, run: str, workdir: str) -> Webhook:
    """The `Webhook` of the first process; the others' tell nobody. All processes call this together, and raise what it does."""
    hook, problem = Webhook("", run, workdir), ""
    if variable and jax.process_index() == 0:
        try:
            hook = Webhook(variable, run, workdir)
        except InputError as error:
            problem = str(error)
    if variable and (problem := processes.broadcast(problem)):
        raise InputError(problem)
    return hook


def _address(variable: str) -> urllib.parse.SplitResult:
    """The address that a variable holds. InputError, which does not show it, if it is none."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise InputError("config.webhook: expected the name of an environment variable that holds the address, not the address")
    value = os.environ.get(variable, "").strip()
    if not value:
        raise InputError(f"config.webhook: the environment variable {variable} is not set")
    problem = f"config.webhook: {variable} must hold an address, https://HOST/..., and does not"
    try:
        address = urllib.parse.urlsplit(value)
        known = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0  # an odd port raises
    except ValueError:
        raise InputError(problem) from None
    if not known or not value.isascii() or not value.isprintable() or " " in value:
        raise InputError(problem)
    return address
