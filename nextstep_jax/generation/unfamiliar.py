"""Warnings of prompts and sizes that a model was not trained with: it draws something all the same."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import UnfamiliarWarning
from nextstep_jax.generation.prompts import PLACEHOLDER
from nextstep_jax.generation.sizes import trained_sizes

_CALLER = 5  # frames up from here to whoever called the pipeline


def warn_of_words(name: str, vocabulary: Vocabulary | None, prompts: Sequence[str | Sequence[int]]) -> None:
    """Warn of words that a word-level vocabulary can only spell."""
    texts = [PLACEHOLDER.sub(" ", prompt) for prompt in prompts if isinstance(prompt, str)]
    unknown = dict.fromkeys(word for text in texts for word in (vocabulary.unknown_words(text) if vocabulary else ()))
    if unknown:
        _warn(f"{name} was not trained with {', '.join(map(repr, unknown))}; `nextstep-jax info` lists the words it knows")


def warn_of_size(name: str, overrides: Mapping[str, Any], height: int, width: int) -> None:
    """Warn of a size that is none of those the checkpoint says it was trained at."""
    sizes = trained_sizes(overrides)
    if sizes and (height, width) not in sizes:
        known = ", ".join(f"{w}x{h}" for h, w in sizes)
        _warn(f"{name} was not trained to draw images of {width}x{height} pixels, only of {known}")


def _warn(message: str) -> None:
    warnings.warn(message, UnfamiliarWarning, stacklevel=_CALLER)
