"""The decoder against a float64 oracle and against itself in its other forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.batch import Batch
from nextstep_jax.config import TransformerConfig, kept_values
from nextstep_jax.errors import InputError
from nextstep_jax.models.attention import causal_attention, segment_mask
from nextstep_jax.models.layers import apply_rope, rope_table
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.models.param_layouts import fuse_projections, stack_layers, unstack_layers
from nextstep_jax.models.transformer import init_cache


def make_batch(config, segments, seed=0) -> Batch:
    """Random mixed rows with the given segment ids [B, S]; positions restart in each segment."""
    rng = np.random.default_rng(seed)
    segments = np.asarray(segments)
    positions = np.zeros_like(segments)
    for row in range(len(segments)):
        for s in range(1, segments.shape[1]):
            positions[row, s] = positions[row, s - 1] + 1 if segments[row, s] == segments[row, s - 1] else 0
    is_image = rng.random(segments.shape) < 0.4
    ids = np.where(is_image, config.image_placeholder_id, rng.integers(0, 400, segments.shape))
    tokens = np.where(is_image[..., None], rng.normal(size=(*segments.shape, config.token_channels)), 0)
    weights = np.ones(segments.shape, np.float32)
    arrays = (ids.astype(np.int32), tokens.astype(np.float32), is_image, positions.astype(np.int32), segments.astype(np.int32))
    return Batch(*map(jnp.asarray, (*arrays, weights, weights)))


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config, params, batch):
    return NextStep(config).apply({"params": params}, batch)


def oracle(config: TransformerConfig, params: dict, x: np.ndarray, positions: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """One row [S, D] through the decoder in float64, straight from the equations."""

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def rotate(x):
        half = config.head_dim // 2
        angles = positions[:, None] * config.rope_theta ** (-np.arange(half) * 2 / config.head_dim)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = x.astype(np.float64)
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["decoder"][f"layers_{i}"])
        attention, y = layer["attention"], norm(x, layer["attention_norm"]["scale"])
        q, k, v = (np.einsum("sd,dnh->snh", y, attention[n]["kernel"]) + attention[n]["bias"] for n in "qkv")
        q, k = rotate(q), rotate(k)
        out = np.zeros_like(q)
        for s in range(len(x)):
            seen = [t for t in range(s + 1) if segments[t] == segments[s]]
            for head in range(config.heads):
                group = head // (config.heads // config.kv_heads)
                scores = k[seen, group] @ q[s, head] / np.sqrt(config.head_dim)
                weights = np.exp(scores - scores.max())
                out[s, head] = weights @ v[seen, group] / weights.sum()
        x = x + np.einsum("snh,nhd->sd", out, attention["o"]["kernel"])
        y, mlp = norm(x, layer["mlp_norm"]["scale"]), layer["mlp"]
        gate = y @ mlp["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
    return norm(x, np.asarray(params["decoder"]["final_norm"]["scale"], np.float64))


def test_matches_float64_oracle(tiny_config, tiny_params):
    segments = np.array([[1] * 5 + [2] * 6 + [0] * 1])
    batch = make_batch(tiny_config, segments)
    x = NextStep(tiny_config).apply({"params": tiny_params}, batch.text_ids, batch.image_tokens, batch.is_image, method="embed")
    expected = oracle(tiny_config.transformer, tiny_params, np.asarray(x[0]), np.asarray(batch.positions[0]), segments[0])
    np.testing.assert_allclose(hidden_states(tiny_config, tiny_params, batch)[0], expected, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remat": "full"},
        {"remat": "attention"},
        {"remat": "projections"},
        {"remat": "dots"},
        {"remat": "q:device,up:device"},
        {"remat": "gate:host,block_middle:device"},
    ],
)
def test_scanned_form_equals_unrolled(tiny_config, tiny_params, changes):
    batch = make_batch(tiny_config, [[1] * 12])
    scanned = tiny_config.with_transformer(scan_layers=True, **changes)
    expected = hidden_states(tiny_config, tiny_params, batch)
    np.testing.assert_allclose(hidden_states(scanned, stack_layers(tiny_params), batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    "remat, fixed",
    [
        ("gate:host", True),
        ("block_in:host,gate:host,block_middle:device", True),
        ("block_in:host,attention_out:device", False),
        ("projections", False),
    ],
)
def test_streams_on_the_device_have_one_layout_beside_values_on_the_host(tiny_config, tiny_params, remat, fixed):
    """Compiled for a TPU, the stack of a layer's streams would be there in two."""
    batch, scanned = make_batch(tiny_config, [[1] * 12]), tiny_config.with_transformer(scan_layers=True, remat=remat)
    gradient = jax.jit(jax.grad(lambda params: hidden_states(scanned, params, batch).sum()))
    text = gradient.trace(stack_layers(tiny_params)).lower(lowering_platforms=("tpu",)).as_text()
    assert ("@LayoutConstraint" in text) == fixed


def test_fused_form_equals_unfused(tiny_config, tiny_params):
    batch = make_batch(tiny_config, [[1] * 12])
    fused = hidden_states(tiny_config.with_transformer(fused_projections=True), fuse_projections(tiny_params), batch)
    np.testing.assert_allclose(fused, hidden_states(tiny_config, tiny_params, batch), atol=1e-5)


def test_stack_and_unstack_are_inverse(tiny_params):
    back = unstack_layers(stack_layers(tiny_params))
    assert jax.tree.structure(back) == jax.tree.structure(tiny_params)
    jax.tree.map(np.testing.assert_array_equal, back, tiny_params)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 1000))
def test_packed_samples_equal_separate_ones(tiny_config, tiny_params, lengths, seed):
    length = 28
    segments = np.zeros((1, length), int)
    starts = np.cumsum([0, *lengths])
    for i, (first, last) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        segments[0, first:last] = i + 1
    packed = make_batch(tiny_config, segments, seed)
    together = hidden_states(tiny_config, tiny_params, packed)
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        alone = jax.tree.map(lambda leaf: jnp.roll(leaf, -first, axis=1), packed)  # noqa: B023
        mask = jnp.arange(length) < last - first
        alone = Batch(**{**vars(alone), "segment_ids": jnp.where(mask, 1, 0)[None]})
        separate = hidden_states(tiny_config, tiny_params, alone)[0, : last - first]
        np.testing.assert_allclose(together[0, first:last], separate, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_cache_step_by_step_equals_all_at_once(tiny_config, tiny_params, pieces, padding):
    length, slots = sum(pieces) + padding, 24
    batch = make_batch(tiny_config, [[0] * padding + [1] * sum(pieces)])
    config, params = tiny_config.with_transformer(fused_projections=True), fuse_projections(tiny_params)
    model, variables = NextStep(config), {"params": params}
    x = model.apply(variables, batch.text_ids, batch.image_tokens, batch.is_image, method="embed")
    cache = init_cache(config.transformer, 1, slots)
    valid = jnp.arange(slots)[None] >= padding
    outputs, first = [], 0
    for piece in [padding, *pieces] if padding else pieces:
        part = slice(first, first + piece)
        hidden, cache = model.apply(variables, x[:, part], batch.positions[:, part], cache, valid, method="extend")
        outputs.append(hidden)
        first += piece
    assert int(cache.index) == length
    at_once = hidden_states(tiny_config, tiny_params, batch)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1)[:, padding:], at_once[:, padding:], atol=1e-5)


def test_rope_is_relative_and_exact_far_out():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    near, far = (jnp.asarray([[p]]) for p in (3, 100_003))
    scores = [
        jnp.vdot(apply_rope(q, rope_table(at, 16, 1e6)), apply_rope(k, rope_table(at - 3, 16, 1e6))) for at in (near, far)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-2)
    cos, _ = rope_table(jnp.asarray([99_999]), 16, 1e6)
    exact = np.cos(np.float32(99_999) * (np.float32(1e6) ** (-np.arange(0, 16, 2, dtype=np.float32) / 16)).astype(np.float64))
    np.testing.assert_allclose(cos[0], exact, atol=2e-2)


def test_bfloat16_keeps_rope_angles_in_float32(tiny_config, tiny_params):
    half = tiny_config.with_transformer(dtype="bfloat16")
    batch = make_batch(tiny_config, [[1] * 12])
    shifted = Batch(**{**vars(batch), "positions": batch.positions + 3000})
    near, far = (np.asarray(hidden_states(half, tiny_params, b), np.float32) for b in (batch, shifted))
    # Relative positions are equal, so only rounding may differ; bfloat16 frequencies would be off by whole radians.
    assert np.abs(near - far).max() < 0.2


def test_padding_row_is_finite(tiny_config, tiny_params):
    assert np.isfinite(hidden_states(tiny_config, tiny_params, make_batch(tiny_config, [[0] * 6 + [1] * 6]))).all()


def test_kernel_choice_is_overridable():
    q = jax.random.normal(jax.random.key(0), (1, 8, 4, 16))
    kv = jax.random.normal(jax.random.key(1), (1, 8, 2, 16))
    ids = jnp.ones((1, 8), jnp.int32)
    np.testing.assert_array_equal(causal_attention(q, kv, kv, ids), causal_attention(q, kv, kv, ids, "xla"))
    assert segment_mask(jnp.asarray([[1, 1, 2, 0]])).sum() == 3 + 1 + 1


def test_config_refuses_what_cannot_work():
    with pytest.raises(InputError, match="not a multiple of kv_heads"):
        TransformerConfig(heads=5, kv_heads=2)
    for remat in ("some", "gate:disk", "gate:host,gate:device", "attention_out:host", "gate", ""):
        with pytest.raises(InputError, match="remat must be one of .* or VALUE:device or VALUE:host"):
            TransformerConfig(remat=remat if remat != "gate" else "gate,up")


def test_values_are_kept_by_name():
    assert kept_values("projections") == {"q": "device", "kv": "device", "attention_out": "device", "block_middle": "device"}
    assert kept_values("block_in:host, gate:device") == {"block_in": "host", "gate": "device"}
    assert kept_values("full") == {} and kept_values("dots") is None
