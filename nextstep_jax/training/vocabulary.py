"""The text tokenizer of a run."""

import os
from typing import Any

from nextstep_jax import checkpoints
from nextstep_jax.data import shapes
from nextstep_jax.data.vocabulary import Vocabulary, word_vocabulary
from nextstep_jax.errors import InputError

SHAPES = "shapes"  # names the built-in dataset's words


def open_vocabulary(name: str, checkpoint: str) -> Vocabulary:
    """A tokenizer.json called `name`, the built-in dataset's words, or, for "", what came with the starting checkpoint.

    Raises:
      InputError: there is none, or it is not a NextStep tokenizer.
    """
    if name == SHAPES:
        return shapes_vocabulary()
    if name:
        return Vocabulary.from_file(name)
    data = checkpoints.load_file(checkpoint, "tokenizer.json") if checkpoint else None
    if data is None:
        raise InputError("config.data.vocabulary: name a tokenizer.json, the starting checkpoint has none")
    return Vocabulary.from_bytes(data, os.path.join(checkpoint, "tokenizer.json"))


def shapes_vocabulary() -> Vocabulary:
    """The built-in dataset's words, but for those it draws: the model sees these letter by letter."""
    words = [word for word in shapes.vocabulary_words() if word.isalpha() and word not in shapes.WORDS]
    return Vocabulary.from_bytes(word_vocabulary(words), SHAPES)


def special_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """The fields of a model config that name special ids."""
    ids = vocabulary.special
    return {
        "bos_id": ids.eos,
        "eos_id": ids.eos,
        "pad_id": ids.pad,
        "begin_of_image_id": ids.begin_of_image,
        "end_of_image_id": ids.end_of_image,
        "image_placeholder_id": ids.image_placeholder,
    }
