"""Which words an image's tokens attended to: a pass over the finished image, for nothing of it is kept while it is drawn.

Attention says where the model looked, not why it drew what it drew.

Letters: W words, n image tokens, P row length.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.sequence import ImageTokens
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import align_rows
from nextstep_jax.generation.token_loop import Prompt
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.sharding.mesh import to_host

Array = jax.Array

_LAYERS = 3  # blocks that are averaged


class WordAttention(NamedTuple):
    """Attention of an image to its prompt.

    Attributes:
      words: W words as white space separates them.
      weights: [W, n] of the positions that predict the image's tokens, each a mean over heads and blocks and a sum over the
        word's ids. The rest of a position's attention, up to 1, goes to the image's markers and earlier tokens.
    """

    words: list[str]
    weights: np.ndarray


def word_attention(
    pipeline: Pipeline, prompt: str, settings: GenerationConfig, tokens: Float[np.ndarray, "n C"], h: int, w: int
) -> WordAttention:
    """Attention to the words of a prompt, its suffix among them.

    Args:
      prompt, settings: what `Pipeline.generate` drew the image from, without thinking.
      tokens: [h * w, C] of the image.

    Raises:
      InputError: a checkpoint without a text tokenizer.
    """
    if pipeline.vocabulary is None:
        raise InputError(f"{pipeline.name} has no text tokenizer (tokenizer.json): its prompts have no words")
    text = pipeline.prompt_text(prompt, settings)
    row = pipeline.frame([text, ImageTokens(tokens, h, w)], 0)
    padded = align_rows([row])
    layers = last_layers(pipeline.config.transformer.layers)
    weights = to_host(_attention(pipeline.config, pipeline.params, padded, layers, h * w))
    of_row = weights[:, weights.shape[1] - len(row) :]
    places = pipeline.vocabulary.word_places(text)
    return WordAttention([word for word, _ in places], np.stack([of_row[:, ids].sum(1) for _, ids in places]))


def last_layers(layers: int) -> tuple[int, ...]:
    """Numbers of up to three blocks spread over the last fifth of `layers`, the last one among them."""
    first = layers - max(1, layers // 5)
    return tuple(sorted({*np.linspace(first, layers - 1, _LAYERS).round().astype(int).tolist()}))


@functools.partial(jax.jit, static_argnames=("config", "layers", "count"))
def _attention(config: NextStepConfig, params: dict, row: Prompt, layers: tuple[int, ...], count: int) -> Float[Array, "n P"]:
    """Of the `count` positions that predict the tokens of the image at the end of one right-aligned row."""
    length = row.text_ids.shape[1]
    slots, padding = jnp.arange(length), length - row.lengths[:, None]
    first = length - count - 2  # begin-of-image; end-of-image comes last
    inputs = (row.text_ids, row.image_tokens, row.is_image, jnp.maximum(slots - padding, 0), slots >= padding)
    found: Array = NextStep(config).apply({"params": params}, *inputs, layers, first, count, method="mean_attention")
    return found[0]


def contrast(weights: Float[np.ndarray, "W n"]) -> Float[np.ndarray, "W n"]:
    """Weights as they are shown, from 0 to 1: what sets a word apart from the others at a place.

    Each word's weights are divided by their largest, the mean over words is taken off (some places look at every word more than
    others do), what is below it counts as 0, and the largest becomes 1 again.
    """

    def scaled(values: np.ndarray) -> np.ndarray:
        return values / np.maximum(values.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)

    relative = scaled(weights)
    return scaled(np.maximum(relative - relative.mean(axis=0), 0))
