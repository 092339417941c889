"""Prompts made richer by a language model before an image is drawn (prompt rewriting, paper section 6.2)."""

from collections.abc import Sequence

from nextstep_jax.chat import ChatEndpoint, Question
from nextstep_jax.errors import NextStepError

MAX_TOKENS = 512
QUESTION = (
    "Rewrite this prompt for a model that draws images. Keep every fact it states; spell out what it implies: which objects "
    "there are, how many, their colors, materials, places and relations, any text word by word, style and light. Answer with "
    "the rewritten prompt alone, in the language of the prompt.\nPrompt: "
)


def rewrite_prompts(prompts: Sequence[str], endpoint: ChatEndpoint) -> list[str]:
    """Each prompt as the endpoint's model rewrites it.

    Raises:
      NextStepError: a prompt came back empty or not at all.
      InputError: the endpoint refuses key, model or request.
    """
    answers = endpoint.ask([Question(QUESTION + prompt) for prompt in prompts], MAX_TOKENS)
    rewritten = [(answer or "").strip().strip('"') for answer in answers]
    for prompt, text in zip(prompts, rewritten, strict=True):
        if not text:
            raise NextStepError(f"{endpoint.name}: did not rewrite the prompt {prompt!r:.100}")
    return rewritten
