"""Decoding strip by strip against decoding at once."""

import jax
import numpy as np
import pytest

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.generation.tokenizer import decode_images
from nextstep_jax.models.image_tokenizer import ImageTokenizer
from nextstep_jax.models.tiled_decode import decode_tiled

CONFIG = ImageTokenizerConfig(channels=8, channel_multipliers=(1, 2, 2), blocks_per_level=1, stem_patch=2, norm_groups=4)


@pytest.fixture(scope="module")
def example():
    """Parameters with every leaf redrawn, latents [2, 6, 4, 16] whose halves differ, and the image decoded at once."""
    shapes = jax.eval_shape(ImageTokenizer(CONFIG).init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.7 / max(1, np.prod(s.shape[:-1])) ** 0.5, s.shape).astype(np.float32), shapes
    )
    latents = rng.normal(size=(2, 6, 4, 16)).astype(np.float32)
    latents[:, 3:] *= 3
    return params, latents, np.asarray(decode(params, latents))


@jax.jit
def decode(params, latents):
    return ImageTokenizer(CONFIG).apply({"params": params}, latents, method="decode")


@pytest.mark.parametrize("rows", [1, 4])  # 6 and 2 strips
def test_strips_leave_no_seam(example, rows):
    params, latents, whole = example
    tiled = decode_tiled(CONFIG, params, latents, rows)
    assert tiled.shape == whole.shape == (2, 48, 32, 3)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=2e-6 * np.abs(whole).max())


def test_halves_decoded_on_their_own_would_show_a_seam(example):
    params, latents, whole = example
    halves = np.concatenate([decode(params, latents[:, :3]), decode(params, latents[:, 3:])], axis=1)
    assert np.abs(halves - whole).max() > 0.1 * np.abs(whole).max()


def test_images_beyond_the_limit_are_decoded_in_strips(example, monkeypatch):
    params, latents, _ = example
    tokens = latents.reshape(2, 6 * 4, 16)
    whole = decode_images(CONFIG, 1, 6, 4, params, tokens)
    size = 2 * 48 * 32 // CONFIG.stem_patch**2 * CONFIG.channels * 4  # bytes of the largest activation
    monkeypatch.setattr("nextstep_jax.generation.tokenizer.MAX_ACTIVATION_BYTES", size)
    np.testing.assert_array_equal(decode_images(CONFIG, 1, 6, 4, params, tokens), whole)
    monkeypatch.setattr("nextstep_jax.generation.tokenizer.MAX_ACTIVATION_BYTES", size - 1)
    strips = decode_images(CONFIG, 1, 6, 4, params, tokens)
    assert isinstance(strips, np.ndarray)
    np.testing.assert_allclose(strips, whole, rtol=0, atol=2e-6 * np.abs(whole).max())
