"""Attention to words: its numbers, its words, and that on the built-in model it finds the objects."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation import traces
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.word_attention import contrast, last_layers, word_attention


def test_it_is_the_mean_of_the_whole_maps(tiny_pipeline):
    tokens = np.random.default_rng(0).standard_normal((6, tiny_pipeline.config.token_channels)).astype(np.float32)
    found = word_attention(tiny_pipeline, "a red circle", tiny_pipeline.settings(prompt_suffix="blue"), tokens, 2, 3)
    assert found.words == ["a", "red", "circle", "blue"]
    _, maps = traces.word_attention(tiny_pipeline, "a red circle blue", tokens, 2, 3)  # [L, N, n, W]
    layers = list(last_layers(len(maps)))
    np.testing.assert_allclose(found.weights, maps[layers].mean((0, 1)).T, rtol=1e-5, atol=1e-7)


def test_words_of_several_ids_are_summed(tiny_pipeline):
    tokens = np.zeros((4, tiny_pipeline.config.token_channels), np.float32)
    text = "a  circle 37 red"  # digits are ids of their own
    found = word_attention(tiny_pipeline, text, tiny_pipeline.settings(prompt_suffix=""), tokens, 2, 2)
    places = tiny_pipeline.vocabulary.word_places(text)
    assert found.words == text.split() and [len(ids) for _, ids in places] == [1, 1, 2, 1]
    assert sorted(sum((ids for _, ids in places), [])) == list(range(len(tiny_pipeline.vocabulary.encode(text))))
    _, maps = traces.word_attention(tiny_pipeline, text, tokens, 2, 2)
    by_id = maps[list(last_layers(len(maps)))].mean((0, 1)).T
    np.testing.assert_allclose(found.weights, [by_id[ids].sum(0) for _, ids in places], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("layers", "chosen"), [(1, (0,)), (2, (1,)), (5, (4,)), (48, (39, 43, 47))])
def test_layers_are_of_the_last_fifth(layers, chosen):
    assert last_layers(layers) == chosen


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_contrast_stays_within_bounds(rows):
    shown = contrast(np.asarray(rows, np.float32))
    assert np.isfinite(shown).all() and shown.min() >= 0 and shown.max() <= 1


def test_contrast_takes_off_what_all_words_share():
    weights = np.asarray([[0.8, 0.1, 0.0], [0.4, 0.0, 0.1]])
    np.testing.assert_allclose(contrast(weights), [[0, 1, 0], [0, 0, 1]], atol=1e-12)


def test_ids_have_no_words(tiny_pipeline):
    nameless = dataclasses.replace(tiny_pipeline, vocabulary=None)
    with pytest.raises(InputError, match="no text tokenizer"):
        word_attention(nameless, "a", nameless.settings(), np.zeros((1, 1), np.float32), 1, 1)


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_the_builtin_model_looks_at_an_objects_word_where_it_draws_it(relation):
    """A word's map has more of its weight on its object's half than the other object's word has there."""
    pipeline = Pipeline.from_checkpoint()
    colors, names = ("red", "blue", "green", "yellow"), ("circle", "square", "star")
    pairs = [(a, s, b, t) for a, b in itertools.permutations(colors, 2) for s, t in itertools.permutations(names, 2)][::12]
    prompts = [f"a {a} {s} {relation} a {b} {t}" for a, s, b, t in pairs]
    wins = []
    for (_, shape, _, other), image in zip(pairs, pipeline.generate(prompts, seed=7), strict=True):
        found = word_attention(pipeline, image.record["prompt"], pipeline.settings(), image.tokens, 4, 4)
        for maps in (found.weights, contrast(found.weights)):
            maps = maps.reshape(-1, 4, 4)
            half = {"left of": maps[:, :, :2], "right of": maps[:, :, 2:], "above": maps[:, :2], "below": maps[:, 2:]}[relation]
            share = dict(zip(found.words, half.sum((1, 2)) / maps.sum((1, 2)), strict=True))
            wins.append(share[shape] > share[other])
    assert np.mean(wins) >= 0.9
