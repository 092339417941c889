"""The one client of language models, against a stand-in that fails in the ways real ones do."""

import base64
import json
import time

import numpy as np
import pytest

from nextstep_jax.chat import Answer, Budget, ChatEndpoint, Question, png_bytes
from nextstep_jax.errors import InputError
from tests.stand_in import chat_reply


def endpoint(server, **options) -> ChatEndpoint:
    return ChatEndpoint(f"openai:{server.url}/v1#m", **{"pause": 0.01, **options})


def with_candidates(text: str, candidates: dict[str, float]) -> tuple[int, bytes]:
    status, body = chat_reply(text)
    reply = json.loads(body)
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in candidates.items()]
    reply["choices"][0]["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    return status, json.dumps(reply).encode()


@pytest.mark.parametrize(
    "failure", [(429, b"{}"), (500, b""), (503, b"busy"), (408, b"{}"), (200, b"garbage"), (200, b"{}"), None, chat_reply(None)]
)
def test_what_may_pass_is_asked_again(server, failure):
    server.answer = lambda path, body, count: failure if count < 3 else chat_reply("yes")
    assert endpoint(server).answer(Question("?"), 1) == Answer("yes", attempts=3)


def test_what_does_not_pass_is_no_answer_and_says_why(server):
    server.answer = lambda path, body, count: (503, b"")
    assert endpoint(server, retries=1).answer(Question("?"), 1) == Answer(None, attempts=2, error="status 503")
    assert len(server.bodies) == 2


def test_an_answer_that_takes_too_long_is_asked_for_again(server):
    def answer(path, body, count):
        time.sleep(0.5 if count == 1 else 0)
        return chat_reply("yes")

    server.answer = answer
    assert endpoint(server, timeout=0.2).answer(Question("?"), 1) == Answer("yes", attempts=2)


@pytest.mark.parametrize(
    "status, error",
    [
        (400, {"message": "no such field"}),
        (401, {}),
        (404, {}),
        (422, {}),
        (429, {"code": "insufficient_quota", "message": "pay"}),
    ],
)
def test_a_refusal_stops_at_once(server, status, error):
    server.answer = lambda path, body, count: (status, json.dumps({"error": error}).encode())
    with pytest.raises(InputError, match="the endpoint refused the request"):
        endpoint(server).answer(Question("?"), 1)
    assert len(server.bodies) == 1


def test_one_question_against_the_policy_does_not_stop_the_others(server):
    server.answer = lambda path, body, count: (400, b'{"error": {"code": "content_filter", "message": "no"}}')
    answer = endpoint(server).answer(Question("?"), 1)
    assert answer.text == "" and answer.attempts == 1 and "content policy" in answer.error


def test_the_budget_counts_every_request_and_is_never_exceeded(server):
    server.answer = lambda path, body, count: (500, b"")
    budget = Budget(5)
    chat = endpoint(server, retries=2, budget=budget, concurrency=4)
    assert chat.ask([Question(str(i)) for i in range(8)], 1) == [None] * 8
    assert len(server.bodies) == budget.spent == 5 and budget.used_up


def test_the_pause_that_a_server_asks_for_is_kept(server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    chat = endpoint(server, retries=3)

    class Response:
        headers = {"retry-after": "7"}

    from nextstep_jax import chat as module

    assert module._retry_after(type("E", (), {"response": Response})) == 7
    server.answer = lambda path, body, count: (500, b"")
    chat.answer(Question("?"), 1)
    assert len(waits) == 3 and waits[0] < waits[1] < waits[2]


def test_candidates_come_most_likely_first_and_only_when_asked_for(server):
    server.answer = lambda path, body, count: with_candidates("Yes", {"No": -2.0, "Yes": -0.2})
    found = endpoint(server).answer(Question("?"), 1, top_logprobs=20)
    assert found.candidates == [("Yes", -0.2), ("No", -2.0)]
    assert server.bodies[0][0]["logprobs"] is True and server.bodies[0][0]["top_logprobs"] == 20
    assert endpoint(server).answer(Question("?"), 1).candidates is None and "logprobs" not in server.bodies[1][0]
    server.answer = lambda path, body, count: chat_reply("Yes")
    assert endpoint(server).answer(Question("?"), 1, top_logprobs=20) == Answer("Yes", None)


def test_a_question_is_sent_as_it_is(server):
    server.answer = lambda path, body, count: chat_reply("yes")
    image, jpeg = np.full((2, 3, 3), 7, np.uint8), b"\xff\xd8 a JPEG"
    question = Question("which?", [image, jpeg], system="You judge.")
    endpoint(server).answer(question, 5, temperature=0.3, body={"seed": 1})
    body = server.bodies[0][0]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.3, 5, 1)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You judge."}
    text, first, second = user["content"]
    assert text["text"] == "which?"
    assert first["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
    assert second["image_url"]["url"] == "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
