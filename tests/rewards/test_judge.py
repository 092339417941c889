"""A vision-language model as a judge, behind a stand-in that speaks chat completions."""

import dataclasses

import numpy as np
import pytest

from nextstep_jax.chat import ChatEndpoint, png_base64
from nextstep_jax.errors import InputError
from nextstep_jax.rewards.judge import JudgeReward, parse_verdict
from tests.stand_in import chat_reply as said


def test_a_judge_scores_each_image_with_the_key_of_the_environment(server, requests_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.answer = lambda path, body, count: said('{"score": 7}')
    assert JudgeReward(ChatEndpoint(f"openai:{server.url}/v1#m"))(requests_of(3)) == [{"reward": 0.7}] * 3
    body, headers = server.bodies[0]
    assert headers["authorization"] == "Bearer secret" and body["model"] == "m" and body["temperature"] == 0
    text, image = body["messages"][0]["content"]
    assert text["text"].endswith("Prompt: a gray square") and image["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_judge_of_an_edit_sees_the_image_before_it(server, requests_of):
    server.answer = lambda path, body, count: said('{"score": 7}')
    (request,) = requests_of(1)
    edit = dataclasses.replace(request, prompt="make it white", sources=[request.image + np.uint8(255)])
    assert JudgeReward(ChatEndpoint(f"openai:{server.url}/v1#m"))([edit]) == [{"reward": 0.7}]
    text, *images = server.bodies[0][0]["messages"][0]["content"]
    urls = [f"data:image/png;base64,{png_base64(image)}" for image in (*edit.sources, edit.image)]
    assert text["text"].endswith("Instruction: make it white") and [image["image_url"]["url"] for image in images] == urls


def test_what_fails_is_not_scored_and_the_rest_is(server, requests_of):
    replies = {1: (500, b""), 2: said("I would say eight."), 3: (200, b"garbage"), 4: (200, b'{"choices": []}')}
    server.answer = lambda path, body, count: replies.get(count, said('```json\n{"score": 10}\n```'))
    found = JudgeReward(ChatEndpoint(f"openai:{server.url}/v1#m", concurrency=1, retries=0))(requests_of(5))
    assert found == [None, None, None, None, {"reward": 1.0}]


def test_a_refused_key_stops_the_run_without_showing_it(server, requests_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    server.answer = lambda path, body, count: (401, b'{"error": {"message": "no such key"}}')
    with pytest.raises(InputError, match="the endpoint refused the request") as error:
        JudgeReward(ChatEndpoint(f"openai:{server.url}/v1#m"))(requests_of(1))
    assert "very-secret" not in str(error.value)


@pytest.mark.parametrize(
    "text", [None, "", "7", '{"score": 7.5}', '{"score": 11}', '{"score": true}', '{"score": "7"}', "{}", '{"score": 7} or 8']
)
def test_an_unclear_verdict_is_none(text):
    assert parse_verdict(text) is None


@pytest.mark.parametrize(
    "text", ['{"score": 3}', ' {"score": 3, "why": "so"}\n', '```json\n{"score": 3}\n```', '```{"score":3}```']
)
def test_a_clear_verdict_is_read(text):
    assert parse_verdict(text) == {"reward": 0.3}
