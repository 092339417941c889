"""The image tokenizer: the releases' numbers, and the properties its plain functions promise."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.conversion.names import image_tokenizer_entries
from nextstep_jax.errors import InputError
from nextstep_jax.models import image_tokenizer
from nextstep_jax.models.image_tokenizer import (
    ImageTokenizer,
    Posterior,
    normalize_latents,
    patchify,
    perturb,
    sample_posterior,
    scale_latents,
    unpatchify,
    unscale_latents,
)
from tests.conftest import GOLDENS

BOUND = 2e-5


def config_of(name, **changes):
    return ImageTokenizerConfig.from_released(json.loads((GOLDENS / name / "config.json").read_text()) | changes)


def tree_of(config, released):
    params = {}
    for entry in image_tokenizer_entries(config):
        *parents, leaf = entry.path.split("/")
        functools.reduce(lambda node, name: node.setdefault(name, {}), parents, params)[leaf] = entry.load(
            released[entry.source]
        )
    return params


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(config, params, x, method):
    return ImageTokenizer(config).apply({"params": params}, x, method=method)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def assert_near(found, expected, bound=BOUND):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.fixture(scope="module")
def tiny_params():
    return tree_of(config_of("tiny_vae"), load_file(GOLDENS / "tiny_vae/checkpoint.safetensors"))


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "vae.safetensors")


# --- the releases' numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["64x64", "48x96"])
def test_encode_and_decode_match_the_release(tiny_params, golden, size):
    config = config_of("tiny_vae")
    posterior = run(config, tiny_params, nhwc(golden[f"{size}.x"]), "encode")
    raw_mean, raw_logvar = np.split(nhwc(golden[f"{size}.encoder_raw"]), 2, axis=-1)
    assert_near(posterior.mean, nhwc(golden[f"{size}.mean"]))
    assert_near(posterior.logvar, nhwc(golden[f"{size}.logvar"]))
    assert_near(posterior.mean, raw_mean)
    assert_near(posterior.logvar, np.clip(raw_logvar, -30, 20))
    assert_near(run(config, tiny_params, nhwc(golden[f"{size}.z"]), "decode"), nhwc(golden[f"{size}.decode"]))


@pytest.mark.parametrize("size", ["64x64", "48x96"])
def test_normalized_encoding_matches_the_release(tiny_params, golden, size):
    posterior = run(config_of("tiny_vae_norm"), tiny_params, nhwc(golden[f"{size}.x"]), "encode")
    assert_near(posterior.mean, nhwc(golden[f"{size}.norm.mean"]))
    assert_near(posterior.logvar, nhwc(golden[f"{size}.norm.logvar"]))


def test_normalization_over_channels_matches_the_release(tiny_params, golden):
    posterior = run(config_of("tiny_vae_norm", psz=None), tiny_params, nhwc(golden["64x64.x"]), "encode")
    assert_near(posterior.mean, nhwc(golden["64x64.norm_nopsz.mean"]))


def splitmix64(seed, k, count):
    with np.errstate(over="ignore"):
        step = np.uint64(0x9E3779B97F4A7C15)
        z = np.uint64(seed) * step + np.uint64(k << 32) + np.arange(count, dtype=np.uint64) + step
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def test_the_released_plan_of_levels_matches_the_release():
    recipe = json.loads((GOLDENS / "vae_1244_recipe.json").read_text())
    golden, released = load_file(GOLDENS / "vae_1244.safetensors"), {}
    for row in recipe["tensors"]:
        bits = splitmix64(recipe["seed"], row["k"], int(np.prod(row["shape"])))
        u = ((bits >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
        values = np.float32(row["base"]) + np.float32(row["scale"]) * (2 * u - 1)
        released[row["name"]] = values.reshape(row["shape"])
    for name in (
        "decoder.up.3.block.0.conv1.weight",
        "encoder.conv_in.bias",
        "encoder.conv_in.weight",
        "encoder.norm_out.weight",
    ):
        np.testing.assert_array_equal(released[name].ravel()[:16], golden[f"weight_head.{name}"])
    config = ImageTokenizerConfig.from_released(recipe["config"])
    assert config.channel_multipliers == (1, 2, 4, 4)
    params = tree_of(config, released)
    posterior = run(config, params, nhwc(golden["x"]), "encode")
    raw_mean, raw_logvar = np.split(nhwc(golden["encoder_raw"]), 2, axis=-1)
    assert_near(posterior.mean, normalize_latents(raw_mean, 2))
    assert_near(posterior.mean, nhwc(golden["mean"]))
    assert_near(posterior.logvar, nhwc(golden["logvar"]))
    assert_near(posterior.logvar, np.clip(raw_logvar, -30, 20))
    assert_near(run(config, params, nhwc(golden["z"]), "decode"), nhwc(golden["decode"]))


def test_tokens_become_the_released_image(tiny_params):
    config, golden = config_of("tiny_vae"), load_file(GOLDENS / "t2i_cfg1.safetensors")
    latents = unscale_latents(unpatchify(golden["tokens"], 4, 4, 2), config)
    assert_near(latents, nhwc(golden["final_latents"]), 3e-4)
    image = run(config, tiny_params, nhwc(golden["final_latents"]), "decode")
    assert_near(image, nhwc(golden["image"]), 3e-4)
    levels = np.round(255 * np.clip(np.asarray(image) / 2 + 0.5, 0, 1))
    assert np.abs(levels - golden["image_uint8"]).max() <= 1


def test_patchify_matches_the_release_exactly():
    golden = load_file(GOLDENS / "patchify.safetensors")
    np.testing.assert_array_equal(patchify(nhwc(golden["latents"]), 2), golden["tokens"])
    np.testing.assert_array_equal(unpatchify(golden["tokens"], 2, 3, 2), nhwc(golden["latents"]))
    np.testing.assert_array_equal(unpatchify(golden["square_tokens"], 4, 4, 2), nhwc(golden["square_latents"]))


# --- plain functions --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 5))
def test_patchify_goes_there_and_back_for_any_grid(sizes):
    batch, h, w, c, p = sizes
    latents = np.arange(batch * h * p * w * p * c, dtype=np.float32).reshape(batch, h * p, w * p, c)
    tokens = patchify(latents, p)
    assert tokens.shape == (batch, h * w, c * p * p)
    np.testing.assert_array_equal(unpatchify(tokens, h, w, p), latents)
    for token, (row, column) in enumerate(np.ndindex(h, w)):  # reading order; inside a token channel, row, column
        square = latents[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
        np.testing.assert_array_equal(tokens[:, token], square.transpose(0, 3, 1, 2).reshape(batch, -1))


@settings(deadline=None, max_examples=12)
@given(st.tuples(*[st.integers(1, 3)] * 3), st.sampled_from([None, 1, 2, 3]), st.integers(0, 2**31))
def test_every_normalized_token_has_zero_mean_and_unit_variance(grid, patch, seed):
    batch, h, w = grid
    p = patch or 1
    mean = np.random.default_rng(seed).normal(3, 5, (batch, h * p, w * p, 16)).astype(np.float32)
    tokens = np.asarray(patchify(normalize_latents(mean, patch), p), np.float64)
    assert_near(tokens.mean(-1), 0)
    assert_near(tokens.var(-1), 1, 1e-4)


def test_a_constant_token_normalizes_to_zero():
    np.testing.assert_array_equal(normalize_latents(jnp.full((1, 2, 2, 16), 7.0), 2), 0)


def test_posterior_scale_and_perturbation_are_what_they_say():
    rng = np.random.default_rng(0)
    mean, logvar, noise = rng.normal(size=(3, 2, 4, 6, 16)).astype(np.float32)
    posterior, config = Posterior(mean, logvar), config_of("tiny_vae")
    latents = sample_posterior(posterior, noise, config)
    assert_near(latents, mean + np.exp(logvar / 2) * noise, 1e-6)
    np.testing.assert_array_equal(sample_posterior(posterior, noise, config_of("tiny_vae_norm")), mean)
    assert_near(scale_latents(latents, config), (latents - 0.1159) * 0.3611, 1e-6)
    assert_near(unscale_latents(scale_latents(latents, config), config), latents, 1e-6)
    assert_near(perturb(mean, np.float32([0.5, 2.0]), noise), mean + np.float32([0.5, 2.0])[:, None, None, None] * noise, 1e-6)
    assert_near(perturb(mean, 0.25, noise), mean + 0.25 * noise, 1e-6)


def test_log_variance_is_clamped(tiny_params):
    params = jax.tree.map(jnp.asarray, tiny_params)
    bias = params["encoder"]["conv_out"]["bias"].at[16:24].set(1e3).at[24:].set(-1e3)
    params["encoder"]["conv_out"] = params["encoder"]["conv_out"] | {"bias": bias}
    posterior = run(config_of("tiny_vae"), params, jnp.zeros((1, 16, 16, 3)), "encode")
    np.testing.assert_array_equal(posterior.logvar[..., :8], 20)
    np.testing.assert_array_equal(posterior.logvar[..., 8:], -30)


# --- the module -------------------------------------------------------------------------------------------------------

SMALL = ImageTokenizerConfig(channels=8, channel_multipliers=(1, 2), blocks_per_level=1, stem_patch=2, norm_groups=4)


def test_a_stem_keeps_the_sizes_and_the_names():
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    shapes = jax.eval_shape(ImageTokenizer(SMALL).init, jax.random.key(0), pixels)["params"]
    expected = {entry.path: entry.shape for entry in image_tokenizer_entries(SMALL)}
    found = jax.tree_util.tree_leaves_with_path(shapes)
    assert {"/".join(key.key for key in path): leaf.shape for path, leaf in found} == expected
    params = jax.tree.map(lambda shape: np.full(shape.shape, 0.01, np.float32), shapes)
    posterior = run(SMALL, params, pixels, "encode")
    assert posterior.mean.shape == posterior.logvar.shape == (2, 4, 6, 16)
    assert run(SMALL, params, posterior.mean, "decode").shape == pixels.shape


def test_space_to_depth_has_its_inverse():
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 5)).astype(np.float32)
    deep = image_tokenizer.space_to_depth(x, 3)
    assert deep.shape == (2, 2, 4, 45)
    np.testing.assert_array_equal(deep[:, 1, 2], x[:, 3:6, 6:9].reshape(2, 45))
    np.testing.assert_array_equal(image_tokenizer.depth_to_space(deep, 3), x)


def test_a_tile_encoder_sees_each_tile_alone():
    plan = dict(stem_patch=8, channels=32, channel_multipliers=(1, 1), blocks_per_level=1, normalize=True, deterministic=True)
    config = ImageTokenizerConfig(**plan, encoder_tile=32)
    pixels = jax.random.uniform(jax.random.key(0), (2, 64, 96, 3), minval=-1)
    encode = jax.jit(lambda params, x: ImageTokenizer(config).apply({"params": params}, x, method="encode").mean)
    params = jax.jit(ImageTokenizer(config).init)(jax.random.key(1), pixels)["params"]
    whole = encode(params, pixels)
    assert whole.shape == (2, 4, 6, 16)
    for row, column in ((0, 0), (1, 2)):
        tile = pixels[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        latents = whole[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(encode(params, tile), latents, rtol=0, atol=1e-4)
    assert ImageTokenizerConfig.from_released(config.to_released()) == config
    with pytest.raises(InputError, match="multiples of 32"):
        encode(params, pixels[:, :48])
    with pytest.raises(InputError, match="encoder_tile must be a multiple of the 32 pixels"):
        ImageTokenizerConfig(**plan, normalize_patch=2, encoder_tile=16)


def test_half_precision_keeps_statistics_and_results_in_float32(tiny_params, golden):
    x = nhwc(golden["64x64.x"])
    full = run(config_of("tiny_vae"), tiny_params, x, "encode")
    half_config = config_of("tiny_vae")
    object.__setattr__(half_config, "dtype", "bfloat16")
    half = run(half_config, tiny_params, x, "encode")
    assert half.mean.dtype == half.logvar.dtype == jnp.float32
    assert 0 < np.abs(half.mean - full.mean).max() < 0.1
    shifted = 1e4 + np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)  # squares would cancel here
    _, variance = image_tokenizer.channel_statistics(shifted)
    np.testing.assert_allclose(variance[0], shifted.astype(np.float64).var((0, 1, 2)), rtol=1e-3)


def test_attention_row_by_row_is_attention(monkeypatch):
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 3, 5, 8)).astype(np.float32)
    at_once = image_tokenizer.attend(q, k, v)
    flat = [x.reshape(2, 15, 8).astype(np.float64) for x in (q, k, v)]
    weights = np.exp(flat[0] @ flat[1].swapaxes(1, 2) / np.sqrt(8))
    assert_near(at_once, (weights / weights.sum(-1, keepdims=True) @ flat[2]).reshape(q.shape))
    monkeypatch.setattr(image_tokenizer, "FULL_ATTENTION_MAX_PIXELS", 4)
    assert_near(image_tokenizer.attend(q, k, v), at_once, 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(jnp.zeros((1, 3, 4, 16)), 2), "3x4 .* 2x2"),
        (lambda: normalize_latents(jnp.zeros((1, 4, 3, 16)), 2), "4x3 .* 2x2"),
        (lambda: unpatchify(jnp.zeros((1, 16, 64)), 8, 3, 2), "8x3 .* 24 tokens, found 16"),
        (lambda: unpatchify(jnp.zeros((1, 4, 30)), 2, 2, 2), "30 numbers .* 2x2"),
        (lambda: ImageTokenizer(SMALL).apply({}, jnp.zeros((1, 16, 18, 3)), method="encode"), "multiples of 4.*18"),
        (lambda: ImageTokenizer(SMALL).apply({}, jnp.zeros((1, 16, 16, 4)), method="encode"), "width, 3.*4"),
        (lambda: ImageTokenizer(SMALL).apply({}, jnp.zeros((1, 4, 4, 8)), method="decode"), "16 channels.*8"),
    ],
)
def test_wrong_sizes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
