"""Spread of latents, and noise in them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.latents import distance_to_normal, encode_latents, reconstruct_noisy
from nextstep_jax.evaluation.reconstruction import psnr
from nextstep_jax.models.image_tokenizer import ImageTokenizer, patchify
from nextstep_jax.objectives.reconstruction import Draws, reconstruction_loss


def test_distance_to_normal_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=(40, 50)) - 1
    found = distance_to_normal(values)
    flat = values.ravel()
    assert found["ks"] == pytest.approx(scipy.stats.kstest(flat, "norm").statistic, abs=1e-6)
    expected = [flat.mean(), flat.var(), scipy.stats.skew(flat), scipy.stats.kurtosis(flat)]
    assert [found[n] for n in ("mean", "variance", "skewness", "excess_kurtosis")] == pytest.approx(expected, abs=1e-9)
    assert distance_to_normal(np.random.default_rng(1).normal(size=20_000))["ks"] < 0.02


def test_distance_needs_different_numbers():
    with pytest.raises(InputError, match="at least two different"):
        distance_to_normal(np.ones(5))


def test_latents_with_and_without_their_normalization(tiny_tokenizer):
    config, params = tiny_tokenizer
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    tokens = np.asarray(patchify(jnp.asarray(encode_latents(config, params, images)), config.normalize_patch))
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.var(-1), 1, atol=1e-3)
    assert np.abs(np.asarray(encode_latents(config, params, images, normalize=False)).var() - 1) > 0.05


def test_noise_of_strength_zero_is_the_plain_reconstruction(tiny_tokenizer):
    config, params = tiny_tokenizer
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    made = reconstruct_noisy(config, params, images, (0.0, 0.5, 0.5))
    plain = np.clip(ImageTokenizer(config).apply({"params": params}, images), -1, 1)
    np.testing.assert_allclose(made[0], plain, atol=1e-5)
    np.testing.assert_array_equal(made[1], made[2])
    assert np.all(np.asarray(psnr(made[0], made[1])) < 60)


def test_noise_is_added_as_in_training(tiny_tokenizer):
    """decode(norm(z) + alpha * eps) (paper section 4.2), whatever scaling lies between the tokenizer and the transformer."""
    config, params = tiny_tokenizer
    config = dataclasses.replace(config, scaling=0.25, shift=0.5)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    tokenizer = ImageTokenizer(config)
    raw = ImageTokenizer(dataclasses.replace(config, normalize=False)).apply({"params": params}, images, method="encode").mean
    tokens = np.asarray(raw, np.float64).reshape(2, 2, 2, 2, 2, 16)
    mean, variance = (f(tokens, (2, 4, 5), keepdims=True) for f in (np.mean, np.var))
    normalized = ((tokens - mean) / np.sqrt(variance + 1e-6)).reshape(raw.shape)
    noise = np.asarray(jax.random.normal(jax.random.key(3), raw.shape))
    for alpha in (0.0, 0.4):
        latents = (normalized + alpha * noise).astype(np.float32)
        expected = np.asarray(tokenizer.apply({"params": params}, latents, method="decode"))
        found = reconstruct_noisy(config, params, images, (alpha,), seed=3)[0]
        np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=1e-4)
        draws = Draws(jnp.full(2, alpha), jnp.asarray(noise), jnp.zeros(raw.shape))
        trained = reconstruction_loss(tokenizer, params, images, *draws)[1].images
        np.testing.assert_allclose(trained, expected, atol=1e-4)
