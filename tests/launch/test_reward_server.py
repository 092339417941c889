"""The server of rewards and its client, through a real connection; and what the server makes of bad requests."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import requests

from nextstep_jax.chat import png_base64
from nextstep_jax.launch import reward_server
from nextstep_jax.rewards.endpoint import EndpointReward
from nextstep_jax.rewards.protocol import RewardRequest

PNG = png_base64(np.zeros((1, 1, 3), np.uint8))


def brightness(asked):
    """None for a prompt "skip", an exception for "fail"."""
    if any(request.prompt == "fail" for request in asked):
        raise RuntimeError("no")
    return [None if r.prompt == "skip" else {"reward": float(r.image.mean()), "seed": r.metadata["seed"]} for r in asked]


def asked(*prompts):
    return [RewardRequest(prompt, np.full((8, 16, 3), 10 * i, np.uint8), {"seed": i}) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def url():
    with reward_server.make_server(brightness) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/score"
        server.shutdown()


def test_the_client_gets_the_functions_scores(url):
    found = EndpointReward(url)(asked("a", "skip", "b"))
    assert found == [{"reward": 0.0, "seed": 0.0}, None, {"reward": 20.0, "seed": 2.0}]


def test_the_function_sees_what_an_instruction_is_about():
    def difference(asked):
        return [{"reward": float(np.mean(r.image - r.sources[0])) if r.sources else 0.0} for r in asked]

    with reward_server.make_server(difference) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        plain, edit = asked("a", "b")
        edit = dataclasses.replace(edit, sources=[plain.image + np.uint8(4)])
        assert EndpointReward(f"http://127.0.0.1:{server.server_port}/score")([plain, edit]) == [
            {"reward": 0.0},
            {"reward": 6.0},
        ]
        server.shutdown()


def test_a_function_that_fails_scores_nothing_and_the_server_goes_on(url):
    assert EndpointReward(url, pause=0.01)(asked("a", "fail")) == [None, None]
    assert EndpointReward(url)(asked("a")) == [{"reward": 0.0, "seed": 0.0}]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[" * 100_000, b'{"requests": 3}', b'{"requests": [{"prompt": "a", "image": "****"}]}']
    + [json.dumps({"requests": [{"prompt": "a", "image": "aGVsbG8="}]}).encode()]
    + [json.dumps({"requests": [{"prompt": "a", "image": PNG, "sources": sources}]}).encode() for sources in (3, ["aGVsbG8="])],
)
def test_a_request_that_cannot_be_read_is_refused(url, body):
    assert requests.post(url, data=body, timeout=10).status_code == 400


def test_a_body_beyond_the_limit_is_not_read(url, monkeypatch):
    monkeypatch.setattr(reward_server, "MAX_BODY", 10)
    with contextlib.suppress(requests.ConnectionError):  # closed while the client still writes
        assert requests.post(url, data=b"x" * 100, timeout=10).status_code == 413


def test_the_command_serves_a_function_by_name():
    command = [sys.executable, "-m", "nextstep_jax.launch.reward_server", "--port", "0", "--function"]
    wrong = subprocess.run([*command, "nowhere:f"], capture_output=True, text=True)
    assert wrong.returncode == 2 and re.fullmatch(r"error: --function nowhere:f: cannot be imported .*\n", wrong.stderr)
    server = subprocess.Popen([*command, "tests.launch.test_reward_server:brightness"], stdout=subprocess.PIPE, text=True)
    try:
        url = re.fullmatch(r"scoring at (http://127\.0\.0\.1:\d+/score)\n", server.stdout.readline())[1]
        assert EndpointReward(url)(asked("a", "b")) == [{"reward": 0.0, "seed": 0.0}, {"reward": 10.0, "seed": 1.0}]
    finally:
        server.terminate()
        server.wait()
