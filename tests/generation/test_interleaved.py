"""Where a sequence of text and images ends, with a script in place of the model's ids."""

import jax
import numpy as np
import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.generation import text
from nextstep_jax.generation.interleaved import generate_interleaved
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.seeds import MAX_SEED


@pytest.fixture
def scripted(tiny_pipeline, monkeypatch):
    """scripted([("a red", True), ...], **arguments): what comes of these texts, True where an image is to follow."""
    special, vocabulary = tiny_pipeline.special, tiny_pipeline.vocabulary

    def call(script, **arguments):
        steps, keys = iter(script), []

        def generate_ids(self, parts, stops, key, *args, **kwargs):
            if special.begin_of_image in stops:
                return special.area_ids(4, 4)[1:], special.begin_of_image
            keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            words, draws = next(steps)
            ids = vocabulary.encode(words) if isinstance(words, str) else words
            return ids, special.image_area if draws else special.eos

        def sample_tokens(self, branches, h, w, keys, settings, has_image, on_chunk):
            return np.zeros((1, h * w, self.config.token_channels), np.float32)

        monkeypatch.setattr(Pipeline, "generate_ids", generate_ids)
        monkeypatch.setattr(Pipeline, "sample_tokens", sample_tokens)
        results = generate_interleaved(tiny_pipeline, "a circle", **arguments)
        assert len(set(keys)) == len(keys), "two texts are drawn with one key"
        return [part if isinstance(part, str) else "image" for part in results]

    return call


def test_it_ends_where_the_model_ends_it(scripted):
    assert scripted([("a red circle", True), ("a blue circle", False)]) == ["a red circle", "image", "a blue circle"]
    assert scripted([("", True), ("", False)]) == ["image"]


def test_it_ends_with_the_last_image(scripted):
    script = [("a red circle", True), ("a blue circle", True), ("a red square", True)]
    assert scripted(script, max_images=2) == ["a red circle", "image", "a blue circle", "image"]
    assert scripted([("a red circle", True)], max_images=0) == []
    assert scripted([("a red circle", True), ("a square", False)], max_images=1) == ["a red circle", "image", "a square"]


@pytest.mark.parametrize("again", [("a red circle", True), ("a red circle", False)])
def test_it_ends_before_it_repeats_itself(scripted, again):
    script = [("a red circle", True), ("a blue circle", True), again]
    assert scripted(script) == ["a red circle", "image", "a blue circle", "image"]


def test_images_without_text_are_no_repetition(scripted):
    assert scripted([("", True)] * 5) == ["image"] * 4


def test_thinking_is_left_out(scripted, tiny_pipeline):
    special, encode = tiny_pipeline.special, tiny_pipeline.vocabulary.encode
    thought = [special.begin_of_thinking, *encode("a blue square"), special.end_of_thinking]
    assert scripted([([*encode("a red"), *thought, *encode("circle")], True), (thought, False)]) == ["a red circle", "image"]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([1, 90, 2, 91, 3], [1, 3]),
        ([90, 2, 91], []),
        ([1, 90, 2, 3], [1]),
        ([1, 2, 91, 3], [3]),
        ([1, 90, 2, 91, 3, 90, 4, 91, 5], [1, 3, 5]),
        ([1, 2, 3], [1, 2, 3]),
        ([], []),
    ],
)
def test_spans_of_thinking(tiny_pipeline, ids, kept):
    names = {90: tiny_pipeline.special.begin_of_thinking, 91: tiny_pipeline.special.end_of_thinking}
    assert text.without_thinking([names.get(id, id) for id in ids], tiny_pipeline.special) == kept


def test_the_largest_seed_draws_every_image(scripted):
    assert scripted([("", True)] * 5, seed=MAX_SEED) == ["image"] * 4


def test_no_image_tokenizer_is_said_before_anything_is_written(tiny_pipeline):
    import dataclasses

    with pytest.raises(InputError, match="has no image tokenizer"):
        generate_interleaved(dataclasses.replace(tiny_pipeline, tokenizer_config=None), "a red circle")


def test_whoever_reads_along_sees_the_parts_and_nothing_that_is_left_out(tiny_pipeline, monkeypatch):
    special, encode = tiny_pipeline.special, tiny_pipeline.vocabulary.encode
    script = iter([("a red circle", True), ("a red square", True), ("a red circle", True)])
    read, parts = [], []

    def generate_ids(self, parts, stops, key, *args, on_ids=None, **kwargs):
        if special.begin_of_image in stops:
            return special.area_ids(4, 4)[1:], special.begin_of_image
        words, draws = next(script)
        ids = encode(words)
        for n in range(1, len(ids) + 1):
            on_ids(ids[:n])
        return ids, special.image_area if draws else special.eos

    monkeypatch.setattr(Pipeline, "generate_ids", generate_ids)
    chunks = []
    results = generate_interleaved(
        tiny_pipeline, "a circle", on_text=read.append, on_part=parts.append, on_chunk=lambda done, *_: chunks.append(done)
    )
    assert all(a is b for a, b in zip(parts, results, strict=True)) and len(results) == 4
    assert chunks == [*range(1, 17)] * 2
    assert read[-1] == "a red square" and "a red circle" in read
    assert [text for text in read[read.index("a red circle") + 1 :] if "a red circle".startswith(text)] == []
