"""Prompts and sizes that a model was not trained with: it draws something all the same, after a warning."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import UnfamiliarWarning
from nextstep_jax.generation.prompts import PLACEHOLDER
from nextstep_jax.generation.sizes import trained_sizes

_CALLER = 4  # frames up from here to whoever called the pipeline


def unfamiliar(
    name: str,
    vocabulary: Vocabulary | None,
    overrides: Mapping[str, Any],
    prompts: Sequence[str | Sequence[int]],
    height: int,
    width: int,
) -> list[str]:
    """A line for words that a word-level vocabulary can only spell, and one for a size that is none of those the checkpoint
    says it was trained at.
    """
    messages = []
    texts = [PLACEHOLDER.sub(" ", prompt) for prompt in prompts if isinstance(prompt, str)]
    unknown = dict.fromkeys(word for text in texts for word in (vocabulary.unknown_words(text) if vocabulary else ()))
    if unknown:
        words = ", ".join(map(repr, unknown))
        messages.append(f"{name} was not trained with {words}; `nextstep-jax info` lists the words it knows")
    sizes = trained_sizes(overrides)
    if sizes and (height, width) not in sizes:
        known = ", ".join(f"{w}x{h}" for h, w in sizes)
        messages.append(f"{name} was not trained to draw images of {width}x{height} pixels, only of {known}")
    return messages


def warn(messages: Sequence[str]) -> None:
    """An `UnfamiliarWarning` of each message, at the place that called the pipeline."""
    for message in messages:
        warnings.warn(message, UnfamiliarWarning, stacklevel=_CALLER)
