"""Messages to an address of the user's: what is told, and that nothing there reaches the run."""

import logging
import socket
import threading
import time

import pytest

from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.training import webhook
from nextstep_jax.training.webhook import Webhook, open_webhook


def test_the_end_of_a_run_is_told(listener):
    with Webhook("HOOK", "mine", "gs://bucket/run") as hook:
        hook.step = 12
        hook.tell("done", "done after step 12")
    assert listener.messages == [
        {"text": "mine: done after step 12", "event": "done", "step": 12, "run": "mine", "workdir": "gs://bucket/run"}
    ]
    assert listener.paths == ["/services/secret?key=x"]


def test_an_error_is_told_in_one_line_and_goes_on(listener):
    with pytest.raises(NextStepError), Webhook("HOOK", "", "/runs/a") as hook:
        hook.step = 3
        raise NextStepError("the disk is full\nand more")
    assert [(m["event"], m["text"]) for m in listener.messages] == [("failed", "/runs/a: ended after step 3: the disk is full")]


def test_of_steps_in_a_row_that_are_not_finite_the_first_is_told(listener):
    with Webhook("HOOK", "r", "w") as hook:
        hook.tell_if_not_finite([(1, True), (2, False), (3, False)])
        hook.tell_if_not_finite([(4, False)])
        hook.tell_if_not_finite([(5, True), (6, False)])
    assert sorted(m["text"].split(" is not")[0] for m in listener.messages) == [
        "r: loss or gradient of step 2",
        "r: loss or gradient of step 6",
    ]


@pytest.mark.parametrize("trouble", ["refuses", "fails", "redirects", "is silent", "trickles"])
def test_trouble_there_is_logged_without_the_address_and_goes_no_further(trouble, listener, monkeypatch, caplog):
    monkeypatch.setattr(webhook, "_TIMEOUT_S", 0.3)
    if trouble == "refuses":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("HOOK", f"http://127.0.0.1:{closed.getsockname()[1]}/services/secret")
    listener.trouble = trouble
    began = time.monotonic()
    with caplog.at_level(logging.DEBUG), Webhook("HOOK", "r", "w") as hook:
        hook.tell("done", "done")
        assert time.monotonic() - began < 10  # telling does not wait
    assert time.monotonic() - began < 20
    if trouble != "trickles":  # it may still go on
        assert "HOOK" in caplog.text
    assert "secret" not in caplog.text and "127.0.0.1" not in caplog.text and len(listener.paths) <= 1


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("https://hooks.example/secret", None, "expected the name of an environment variable"),
        ("HOOK", "", "HOOK is not set"),
        ("HOOK", "ftp://host/secret", "HOOK must hold an address, https"),
        ("HOOK", "https:///secret", "HOOK must hold an address, https"),
        ("HOOK", "http://[secret", "HOOK must hold an address, https"),
        ("HOOK", "http://host:99999/secret", "HOOK must hold an address, https"),
        ("HOOK", "http://host/secret\r\nX: y", "HOOK must hold an address, https"),
    ],
)
def test_what_is_no_address_is_refused_at_the_start_and_not_shown(variable, value, message, monkeypatch):
    monkeypatch.setenv("HOOK", value or "")
    with pytest.raises(InputError, match=message) as error:
        open_webhook(variable, "r", "w")
    assert "secret" not in str(error.value)


def test_nobody_is_told_by_default():
    with Webhook("", "r", "w") as hook:
        hook.tell("done", "done")
        hook.tell_if_not_finite([(1, False)])
    assert not [thread for thread in threading.enumerate() if thread.name == "webhook"]
