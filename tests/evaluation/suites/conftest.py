"""Made files of the official forms, official ones where they are, and a judge that fails in every way a real one does."""

import json
import os
import pathlib
import sys
import time
import warnings

import numpy as np
import pytest

from nextstep_jax.cli import main
from nextstep_jax.errors import UnfamiliarWarning
from tests.evaluation.suites import made
from tests.stand_in import chat_reply

OFFICIAL = "NEXTSTEP_JAX_SUITES"  # the folder of the official files, one folder for each suite


@pytest.fixture(scope="session")
def official():
    """official(name) -> the folder of a suite's official files; the test is skipped where there is none."""

    def folder(name: str) -> pathlib.Path:
        root = os.environ.get(OFFICIAL)
        if not root or not (pathlib.Path(root) / name).is_dir():
            pytest.skip(f"needs the official files of {name} below the folder that {OFFICIAL} names")
        return pathlib.Path(root) / name

    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    """Made files of the form of every suite's official ones, a folder for each."""
    folder = tmp_path_factory.mktemp("suites")
    made.write_all(folder)
    return folder


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """evaluate(*arguments) -> (exit code, stdout, stderr) of `nextstep-jax evaluate`, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", "evaluate", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            warnings.simplefilter("ignore", UnfamiliarWarning)
            main()
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


FAILURES = [
    (429, b"{}"),
    (500, b""),
    (200, b"garbage"),
    None,
    chat_reply(None),
    chat_reply('{"score": [9, '),
    "slow",
    (503, b"busy"),
]


@pytest.fixture
def judge(server):
    """A server that answers questions with `judge.reply(text, count)`, every other one only after a failure.

    Its failures take turns: too many requests, server errors, no JSON, a connection cut, no text, JSON cut, an answer too late.
    """
    seen: dict[str, int] = {}
    server.reply = lambda text, count: "yes"
    server.fails = True

    def answer(path, body, count):
        content = body["messages"][-1]["content"]
        key = json.dumps(content)
        seen[key] = seen.get(key, 0) + 1
        if server.fails and len(seen) % 2 and seen[key] == 1:
            failure = FAILURES[len(seen) // 2 % len(FAILURES)]
            if failure != "slow":
                return failure
            time.sleep(1.3)
        reply = server.reply(content[0]["text"], len(seen))
        return with_candidates(reply, body) if isinstance(reply, str) else reply

    server.answer = answer
    server.seen = seen
    return server


def with_candidates(text: str, body: dict) -> tuple[int, bytes]:
    """A chat completion; with the candidates of its first token if they were asked for."""
    status, data = chat_reply(text)
    if not body.get("logprobs"):
        return status, data
    reply = json.loads(data)
    other = "No" if text == "Yes" else "Yes"
    top = [{"token": t, "logprob": float(np.log(p)), "bytes": None} for t, p in ((text, 0.75), (other, 0.25))]
    reply["choices"][0]["logprobs"] = {
        "content": [{"token": text, "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top}]
    }
    return status, json.dumps(reply).encode()


JUDGE_OPTIONS = ["--model", "m", "--retries", 3, "--timeout", 1, "--concurrency", 4]


@pytest.fixture
def whole_run(evaluate, judge, tiny_checkpoint, tmp_path, monkeypatch):
    """whole_run(suite, folder, limit, *options) -> the content of the score file: export, judge, score by the command line."""
    monkeypatch.setattr("nextstep_jax.chat.random.uniform", lambda low, high: 0.02)  # of the pause before a retry

    def run(suite, folder, limit, *options, checkpoint=tiny_checkpoint):
        files = [] if folder is None else ["--data", folder, "--unofficial"]
        export = ["--checkpoint", checkpoint, "--steps", 1, "--cfg", 1, "--limit", limit, *options]
        for command in (
            ["export", *files, "--out", tmp_path / suite, *export],
            ["judge", tmp_path / suite, *files, "--endpoint", f"{judge.url}/v1", *JUDGE_OPTIONS],
            ["score", tmp_path / suite / "results.jsonl", *files, "--json", tmp_path / suite / "score.json"],
        ):
            code, _, err = evaluate(suite, *command)
            assert code == 0, err
        return json.loads((tmp_path / suite / "score.json").read_text())

    return run
