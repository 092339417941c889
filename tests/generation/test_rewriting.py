"""Prompts rewritten by a stand-in for a language model."""

import pytest

from nextstep_jax.chat import ChatEndpoint
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.generation.rewriting import rewrite_prompts
from tests.stand_in import chat_reply


def endpoint(server, **options) -> ChatEndpoint:
    return ChatEndpoint(f"openai:{server.url}/v1#m", **options)


def test_prompts_come_back_rewritten_in_their_order(server):
    def answer(path, body, count):
        (text,) = body["messages"][0]["content"]
        return chat_reply(f'"{text["text"].rpartition("Prompt: ")[2]}, in oil"')

    server.answer = answer
    assert rewrite_prompts(["a cat", "a dog"], endpoint(server)) == ["a cat, in oil", "a dog, in oil"]


@pytest.mark.parametrize("reply", [chat_reply(""), chat_reply(None), chat_reply('  "" '), (500, b""), (200, b"garbage")])
def test_a_prompt_that_is_not_rewritten_is_named_and_nothing_is_drawn(server, reply):
    server.answer = lambda path, body, count: reply if "a dog" in str(body) else chat_reply("a tabby cat")
    with pytest.raises(NextStepError, match="did not rewrite the prompt 'a dog'"):
        rewrite_prompts(["a cat", "a dog"], endpoint(server, retries=0))


@pytest.mark.parametrize("spelling", ["", "openai:", "openai:localhost#m", "openai:http://localhost/v1", "http://localhost#m"])
def test_an_endpoint_is_spelled_with_its_address_and_model(spelling):
    with pytest.raises(InputError, match="expected openai:URL#MODEL"):
        ChatEndpoint(spelling)
