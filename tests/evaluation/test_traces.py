"""Traces of a generation agree with the generation itself."""

import dataclasses

import jax
import numpy as np
import pytest

from nextstep_jax.evaluation.traces import token_statistics, token_trajectories, trace, word_attention
from nextstep_jax.models.nextstep import NextStep, empty_batch

PROMPTS = ["a red circle", "blue"]


@pytest.fixture(scope="module")
def settings(tiny_pipeline):
    return tiny_pipeline.settings(normalize_tokens=True)


@pytest.fixture(scope="module")
def traced(tiny_pipeline, settings):
    return trace(tiny_pipeline, PROMPTS, seed=3, settings=settings, height=32, width=32)


def test_traces_the_generation(tiny_pipeline, settings, traced):
    images = tiny_pipeline.generate(PROMPTS, seed=3, settings=settings, height=32, width=32)
    np.testing.assert_allclose(traced.tokens, np.stack([image.tokens for image in images]), atol=1e-5)
    assert traced.tokens.shape == traced.sampled.shape == (2, traced.h * traced.w, 64)
    assert traced.conditions.shape == (4, 4, tiny_pipeline.config.transformer.width)


def test_tokens_are_the_sampled_ones_normalized(traced):
    mean, variance = token_statistics(traced.sampled)
    assert np.abs(mean).max() > 1e-3 and mean.shape == variance.shape == (4,)
    centered = traced.sampled - traced.sampled.mean(-1, keepdims=True)
    np.testing.assert_allclose(traced.tokens, centered / traced.sampled.std(-1, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(token_statistics(traced.tokens), [np.zeros(4), np.ones(4)], atol=1e-3)


def test_without_normalization_nothing_is_changed(tiny_pipeline):
    plain = tiny_pipeline.settings(normalize_tokens=False, cfg=1.0)
    traced = trace(tiny_pipeline, PROMPTS[:1], settings=plain, height=16, width=16)
    np.testing.assert_allclose(traced.tokens, traced.sampled, atol=1e-6)


def test_trajectories_start_at_the_same_noise_and_follow_the_condition(tiny_pipeline, settings, traced):
    condition = traced.conditions[0, 0::2]
    times, euler = token_trajectories(tiny_pipeline, condition, settings.replace(steps=4), draws=3)
    _, noisy = token_trajectories(tiny_pipeline, condition, settings.replace(sampler="1.1", steps=4), draws=3)
    assert euler.shape == noisy.shape == (5, 3, 64)
    np.testing.assert_allclose(times, np.linspace(0, 1, 5), atol=1e-6)
    np.testing.assert_array_equal(euler[0], noisy[0])
    assert np.abs(euler[-1] - noisy[-1]).max() > 1e-3
    _, other = token_trajectories(tiny_pipeline, traced.conditions[0, 1::2], settings.replace(steps=4), draws=3)
    assert np.abs(euler[-1] - other[-1]).max() > 1e-6


def test_word_attention_is_the_attention_of_the_predicting_positions(tiny_pipeline, traced):
    words, weights = word_attention(tiny_pipeline, PROMPTS[0], traced.tokens[0], traced.h, traced.w)
    t = tiny_pipeline.config.transformer
    assert words == ["a", "red", "circle"]
    assert weights.shape == (t.layers, t.heads, 4, 3)
    assert weights.min() > 0 and weights.sum(-1).max() < 1


def test_attention_maps_are_causal_and_stay_in_their_segment(tiny_pipeline):
    batch = empty_batch(tiny_pipeline.config, rows=1, length=6)
    segments = np.asarray([[1, 1, 1, 2, 2, 2]], np.int32)
    ids = np.arange(1, 7, dtype=np.int32)[None]
    batch = dataclasses.replace(batch, text_ids=ids, positions=ids - 1, segment_ids=segments)
    model = NextStep(tiny_pipeline.config)
    maps = jax.jit(lambda params, batch: model.apply({"params": params}, batch, method="attention_maps"))
    for weights in maps(tiny_pipeline.params, batch):
        visible = np.tril(segments[0][:, None] == segments[0])
        assert np.all(np.asarray(weights)[0][:, ~visible] == 0)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
