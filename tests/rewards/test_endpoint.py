"""Rewards behind HTTP, against a server that fails in the ways servers do."""

import base64
import dataclasses
import io
import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextstep_jax.errors import InputError
from nextstep_jax.rewards.endpoint import MAX_REPLY, EndpointReward, parse_scores


def scored(values) -> tuple[int, bytes]:
    return 200, json.dumps({"scores": values}).encode()


def test_scores_come_back_in_order_and_the_server_sees_prompt_pixels_and_metadata(server, requests_of):
    server.answer = lambda path, body, count: scored([{"reward": r["metadata"]["seed"] / 10} for r in body["requests"]])
    assert EndpointReward(server.url + "/score")(requests_of(3)) == [{"reward": 0.0}, {"reward": 0.1}, {"reward": 0.2}]
    (body, _), *rest = server.bodies
    assert not rest and [r["prompt"] for r in body["requests"]] == ["a gray square"] * 3
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["requests"][2]["image"]))))
    assert pixels.shape == (8, 8, 3) and np.all(pixels == 2) and "sources" not in body["requests"][2]


def test_the_server_sees_what_an_instruction_is_about(server, requests_of):
    server.answer = lambda path, body, count: scored([{"reward": 1.0}])
    (request,) = requests_of(1)
    EndpointReward(server.url + "/score")([dataclasses.replace(request, sources=[request.image + np.uint8(7)])])
    (source,) = server.bodies[0][0]["requests"][0]["sources"]
    assert np.all(np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) == 7)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, requests_of, status):
    server.answer = lambda path, body, count: (status, b"") if count < 3 else scored([{"reward": 1}])
    assert EndpointReward(server.url, pause=0.01)(requests_of(1)) == [{"reward": 1.0}]
    assert len(server.bodies) == 3


def test_a_server_that_stays_busy_scores_nothing_after_four_attempts(server, requests_of):
    server.answer = lambda path, body, count: (503, b"")
    assert EndpointReward(server.url, pause=0.01)(requests_of(2)) == [None, None]
    assert len(server.bodies) == 4


def test_a_refused_request_stops_the_run(server, requests_of):
    server.answer = lambda path, body, count: (404, b"")
    with pytest.raises(InputError, match=r"http://127.0.0.1:\d+: the server answered with status 404"):
        EndpointReward(server.url)(requests_of(1))


def test_a_redirect_to_another_host_is_not_followed(server, requests_of):
    server.answer = lambda path, body, count: (302, b"")
    with pytest.raises(InputError, match="status 302"):
        EndpointReward(server.url)(requests_of(1))


def test_a_slow_server_and_none_at_all_score_nothing(server, requests_of):
    def slow(path, body, count):
        time.sleep(0.5)
        return scored([{"reward": 1}])

    server.answer = slow
    assert EndpointReward(server.url, timeout=0.05, pause=0.01)(requests_of(1)) == [None]
    assert EndpointReward("http://127.0.0.1:9", pause=0.01)(requests_of(1)) == [None]


def test_an_answer_that_trickles_in_for_too_long_scores_nothing(server, requests_of):
    def trickle():
        for _ in range(100):
            time.sleep(0.01)
            yield b" "
        yield scored([{"reward": 1}])[1]

    server.answer = lambda path, body, count: (200, trickle())
    assert EndpointReward(server.url, timeout=0.1, pause=0.01)(requests_of(1)) == [None]
    assert EndpointReward(server.url, timeout=10, pause=0.01)(requests_of(1)) == [{"reward": 1.0}]


def test_an_answer_cut_off_and_one_without_end_score_nothing(server, requests_of):
    server.answer = lambda path, body, count: None
    assert EndpointReward(server.url, pause=0.01)(requests_of(1)) == [None]
    server.answer = lambda path, body, count: (200, b" " * (MAX_REPLY + 1) + json.dumps({"scores": [{"reward": 1}]}).encode())
    assert EndpointReward(server.url, pause=0.01)(requests_of(1)) == [None]


@pytest.mark.parametrize(
    "reply",
    [b"", b"<html>", b"[]", b"{}", b'{"scores": 3}', b'{"scores": [{"reward": 1}]}', b"[" * 100_000, b'{"scores": [1, 2, 3]}'],
)
def test_garbage_is_no_score(reply):
    assert parse_scores(reply, 2) is None


@pytest.mark.parametrize("value", ["null", "{}", '{"reward": NaN}', '{"reward": 1e999}', '{"reward": "1"}', '{"reward": true}'])
def test_a_score_that_is_no_finite_number_is_missing(value):
    assert parse_scores(b'{"scores": [{"reward": 1}, %s]}' % value.encode(), 2) == [{"reward": 1.0}, None]


@given(st.binary(max_size=200))
def test_no_bytes_make_parsing_fail(reply):
    parse_scores(reply, 1)
