"""From the parts of a prompt to right-aligned rows of ids and image tokens.

A row is a list of parts: text, ids as they are, and encoded images, which are written the way training sees them,
`<|image_area|>h*w<|begin_of_image|>{tokens}<|end_of_image|>`.

Letters: R rows, P row length, C channels of an image token.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation.token_loop import Prompt

# Prompts are padded to a multiple of this, so that most prompts share a compiled program.
LENGTH_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image as the transformer reads it: tokens [h * w, C] float32 in raster order."""

    tokens: np.ndarray
    h: int
    w: int


Part = str | Sequence[int] | EncodedImage


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence: ids [P], image tokens [number of image positions, C] in order, is_image [P]."""

    ids: np.ndarray
    tokens: np.ndarray
    is_image: np.ndarray


def require_prompt(prompt: str | Sequence[int]) -> None:
    """InputError for a text or ids with nothing in it."""
    if not (prompt.strip() if isinstance(prompt, str) else len(prompt)):
        raise InputError("a prompt must not be empty")


def describe(prompt: str | Sequence[int]) -> str:
    """What records call a prompt."""
    return prompt if isinstance(prompt, str) else "ids " + " ".join(str(int(i)) for i in prompt)


def place_images(instruction: str | Sequence[int], images: Sequence[EncodedImage], last: bool) -> list[Part]:
    """The instruction with "<image>" and "<image_n>" replaced by the images, in order or by number; without any of them, all
    images come first or last.

    Raises:
      InputError: a placeholder without an image, or an image without a placeholder.
    """
    if not isinstance(instruction, str) or not re.search(r"<image(?:_\d+)?>", instruction):
        return [instruction, *images] if last else [*images, instruction]
    parts, used = [], []
    for piece in re.split(r"(<image(?:_\d+)?>)", instruction):
        if match := re.fullmatch(r"<image(?:_(\d+))?>", piece):
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


def area_prefix(special: SpecialIds, h: int, w: int) -> list[int]:
    """The ids that announce an image of h x w tokens."""
    return [*special.area_ids(h, w), special.begin_of_image]


def make_row(parts: Sequence[Part], special: SpecialIds, channels: int, vocabulary: Vocabulary | None = None) -> Row:
    """Write parts as one row.

    Raises:
      InputError: a text part without a vocabulary, or an image whose tokens do not fit its grid.
    """
    ids: list[int] = []
    tokens: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, EncodedImage):
            if part.tokens.shape != (part.h * part.w, channels):
                raise InputError(f"image tokens must be [{part.h} * {part.w}, {channels}], found {list(part.tokens.shape)}")
            ids += area_prefix(special, part.h, part.w)
            ids += [special.image_placeholder] * (part.h * part.w) + [special.end_of_image]
            tokens.append(np.asarray(part.tokens, np.float32))
        elif isinstance(part, str):
            if part and vocabulary is None:
                raise InputError("this checkpoint has no text tokenizer (tokenizer.json): pass ids instead of text")
            ids += vocabulary.encode(part) if part else []
        else:
            ids += [int(i) for i in part]
    row_ids = np.asarray(ids, np.int32)
    is_image = row_ids == special.image_placeholder
    row_tokens = np.concatenate(tokens) if tokens else np.zeros((0, channels), np.float32)
    if is_image.sum() != len(row_tokens):
        raise InputError(f"a prompt has {is_image.sum()} image placeholders but {len(row_tokens)} image tokens")
    return Row(row_ids, row_tokens, is_image)


def align_rows(rows: Sequence[Row], bucket: int = LENGTH_BUCKET) -> Prompt:
    """Right-align rows and pad them on the left to a common multiple of `bucket`."""
    longest = max(len(row.ids) for row in rows)
    length = -(-longest // bucket) * bucket
    channels = rows[0].tokens.shape[1]
    ids = np.zeros((len(rows), length), np.int32)
    tokens = np.zeros((len(rows), length, channels), np.float32)
    is_image = np.zeros((len(rows), length), bool)
    for r, row in enumerate(rows):
        first = length - len(row.ids)
        ids[r, first:], is_image[r, first:] = row.ids, row.is_image
        tokens[r, first + np.flatnonzero(row.is_image)] = row.tokens
    return Prompt(ids, tokens, is_image, np.asarray([len(row.ids) for row in rows], np.int32))


def row_batch(row: Row) -> Batch:
    """One row as the whole-sequence passes of the model take it: B = 1, no padding, no position a target."""
    length, channels = len(row.ids), row.tokens.shape[1]
    image_tokens = np.zeros((1, length, channels), np.float32)
    image_tokens[0, row.is_image] = row.tokens
    positions, segment_ids = np.arange(length, dtype=np.int32)[None], np.ones((1, length), np.int32)
    weights = np.zeros((1, length), np.float32)
    return Batch(row.ids[None], image_tokens, row.is_image[None], positions, segment_ids, weights, weights)
