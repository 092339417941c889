"""From the parts of a prompt to right-aligned rows of ids and image tokens.

A prompt is a list of parts: text, ids as they are, and encoded images. Parts are framed by the functions that write training
sequences (data/sequence.py), so that the model reads in generation what it saw in training.

Letters: R rows, P row length, V vocabulary, C channels of an image token.
"""

import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.sequence import ImageTokens, Segment, TextIds, frame
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation.token_loop import Prompt

# Prompts are padded to a multiple of this, so that most prompts share a compiled program.
LENGTH_BUCKET = 64


Part = str | Sequence[int] | ImageTokens

PLACEHOLDER = re.compile(r"<image(?:_(\d+))?>")  # of an input image, in an instruction


def as_prompts(prompts: str | Sequence[int] | Sequence[str | Sequence[int]]) -> list[str | Sequence[int]]:
    """One or several prompts as a list. InputError for what is neither text nor ids, and for a prompt with nothing in it."""
    several: list[Any]
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | np.ndarray):
        several = [prompts]
    elif not len(prompts):
        raise InputError("give at least one prompt")
    else:
        several = list(prompts) if isinstance(prompts[0], str | Sequence | np.ndarray) else [prompts]
    for prompt in several:
        require_prompt(prompt)
    return several


def require_prompt(prompt: str | Sequence[int]) -> None:
    """InputError for what is neither text nor ids, or has nothing in it."""
    if isinstance(prompt, bytes) or not isinstance(prompt, str | Sequence | np.ndarray):
        raise InputError(f"a prompt must be text or a list of ids, found {prompt!r:.100}")
    if not (prompt.strip() if isinstance(prompt, str) else len(prompt)):
        raise InputError("a prompt must not be empty")


def describe(prompt: str | Sequence[int]) -> str:
    """What records call a prompt."""
    return prompt if isinstance(prompt, str) else "ids " + " ".join(str(int(i)) for i in prompt)


def place_images(instruction: str | Sequence[int], images: Sequence[ImageTokens], last: bool) -> list[Part]:
    """The instruction with "<image>" and "<image_n>" replaced by the images, in order or by number; without any of them, all
    images come first or last.

    Raises:
      InputError: a placeholder without an image, or an image without a placeholder.
    """
    if not isinstance(instruction, str) or not PLACEHOLDER.search(instruction):
        return [instruction, *images] if last else [*images, instruction]
    parts: list[Part] = []
    used: list[int] = []
    for piece in re.split(r"(<image(?:_\d+)?>)", instruction):
        if match := PLACEHOLDER.fullmatch(piece):
            used.append(int(match[1]) if match[1] else len(used))
            if not 0 <= used[-1] < len(images):
                raise InputError(
                    f"{piece} in the instruction asks for an image that is not there, found {len(images)} input images"
                )
            parts.append(images[used[-1]])
        elif piece:
            parts.append(piece)
    if set(used) != set(range(len(images))):
        raise InputError(f"the instruction places {len(set(used))} of {len(images)} input images")
    return parts


def frame_prompt(
    parts: Sequence[Part], special: SpecialIds, config: NextStepConfig, vocabulary: Vocabulary | None = None
) -> Segment:
    """The parts as one sequence; no weight in it means anything, for a prompt is no target.

    Raises:
      InputError: a text part without a vocabulary, an id that is none of the vocabulary's, or an image whose tokens do not fit
        its grid.
    """
    limit = vocabulary.size if vocabulary else config.transformer.vocab_size
    framed: list[TextIds | ImageTokens] = []
    for part in parts:
        if isinstance(part, ImageTokens):
            framed.append(part)
        elif isinstance(part, str):
            if part and vocabulary is None:
                raise InputError("this checkpoint has no text tokenizer (tokenizer.json): pass ids instead of text")
            framed.append(TextIds(np.asarray(vocabulary.encode(part) if part and vocabulary else [], np.int32)))
        else:
            framed.append(TextIds(_require_ids(part, limit, special.image_placeholder)))
    return frame(framed, special, config.token_channels)


def _require_ids(ids: Sequence[int], limit: int, placeholder: int) -> np.ndarray:
    """Ids as int32. InputError for anything that is not the id of a text token."""
    for id in ids:
        if isinstance(id, bool | np.bool_) or not hasattr(id, "__index__") or not 0 <= operator.index(id) < limit:
            raise InputError(f"ids must be whole numbers in [0, {limit}), found {id!r}")
        if id == placeholder:
            raise InputError(f"id {placeholder} is the placeholder of image tokens: pass the image instead")
    return np.asarray(ids, np.int32)


def align_rows(rows: Sequence[Segment], bucket: int = LENGTH_BUCKET) -> Prompt:
    """Right-align rows and pad them on the left to a common multiple of `bucket`."""
    longest = max(map(len, rows))
    length = -(-longest // bucket) * bucket
    channels = rows[0].image_tokens.shape[1]
    ids = np.zeros((len(rows), length), np.int32)
    tokens = np.zeros((len(rows), length, channels), np.float32)
    is_image = np.zeros((len(rows), length), bool)
    for r, row in enumerate(rows):
        first = length - len(row)
        ids[r, first:], is_image[r, first:] = row.text_ids, row.is_image
        tokens[r, first + np.flatnonzero(row.is_image)] = row.image_tokens
    return Prompt(ids, tokens, is_image, np.asarray([len(row) for row in rows], np.int32))


def row_batch(row: Segment) -> Batch:
    """One row as the whole-sequence passes of the model take it: B = 1, no padding, no position a target."""
    length, channels = len(row), row.image_tokens.shape[1]
    image_tokens = np.zeros((1, length, channels), np.float32)
    image_tokens[0, row.is_image] = row.image_tokens
    positions, segment_ids = np.arange(length, dtype=np.int32)[None], np.ones((1, length), np.int32)
    weights = np.zeros((1, length), np.float32)
    return Batch(row.text_ids[None], image_tokens, row.is_image[None], positions, segment_ids, weights, weights)
