"""The attention kernels against plain attention, and which of them is chosen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.models import attention
from nextstep_jax.models.attention import LayerCache, attention_weights, cached_attention, causal_attention
from nextstep_jax.models.transformer import remat_policy

LENGTH, HEADS, KEY_HEADS, HEAD_DIM = 256, 4, 2, 128


@pytest.fixture(scope="module")
def arrays():
    """Queries, keys, values, segment ids with a boundary inside a block and padding at the end, and an output gradient."""
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(1, LENGTH, n, HEAD_DIM)).astype(np.float32) for n in (HEADS, KEY_HEADS, KEY_HEADS, HEADS))
    ids = np.repeat([1, 2, 3, 0], [100, 60, 80, 16])[None].astype(np.int32)
    return q, k, v, ids, g * (ids > 0)[..., None, None]


def oracle(q, k, v, ids):
    """float64, straight from the equation."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // KEY_HEADS, axis=2) for x in (k, v))
    scores = np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(HEAD_DIM)
    seen = (ids[:, :, None] == ids[:, None, :]) & np.tril(np.ones((LENGTH, LENGTH), bool))
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen[:, None]
    return np.einsum("bnst,btnh->bsnh", weights / weights.sum(-1, keepdims=True), v)


def test_splash_equals_plain_attention_with_its_gradients(arrays, monkeypatch):
    """Several blocks each way, grouped heads, packed samples, padding; the kernel is interpreted here."""
    monkeypatch.setattr(attention, "_BLOCK", 128)
    monkeypatch.setattr(attention, "_BLOCK_KEYS", 128)
    q, k, v, ids, g = arrays

    def run(kernel):
        y, pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, jnp.asarray(ids), kernel), q, k, v)
        return y, pull(jnp.asarray(g))

    (y, gradients), (plain, expected) = run("splash"), run("xla")
    real = ids[0] > 0
    np.testing.assert_allclose(y[:, real], oracle(q, k, v, ids)[:, real], atol=2e-5)
    np.testing.assert_allclose(plain[:, real], oracle(q, k, v, ids)[:, real], atol=2e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("queries_of_a_block", [1, 3, 64, 100, 1000])
def test_blocks_of_queries_over_a_cache(arrays, monkeypatch, queries_of_a_block):
    """Padding before the row, slots not written yet, an index to go on from, blocks that do not divide the queries."""
    q, k, v, _, _ = arrays
    slots, index, padding, first = LENGTH, 20, 7, 150  # 150 queries at slots 20..169; later slots hold what nobody may see
    cache, valid = LayerCache(jnp.asarray(k), jnp.asarray(v)), jnp.arange(slots)[None] >= padding
    monkeypatch.setattr(attention, "_SCORES_BYTES", 4 * HEADS * slots * queries_of_a_block)
    y = jax.jit(cached_attention)(q[:, :first], cache, valid, jnp.asarray(index))
    seen = np.arange(slots) <= (index + np.arange(first))[:, None]
    expected = plain(q[:, :first], k, v, (seen & (np.arange(slots) >= padding))[None])
    np.testing.assert_allclose(y, expected, atol=2e-5)


def plain(q, k, v, seen):
    """float64 attention of q [B, S, N, H] over k and v [B, T, K, H] where `seen` [B, S, T]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // KEY_HEADS, axis=2) for x in (k, v))
    scores = np.where(seen[:, None], np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(HEAD_DIM), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnst,btnh->bsnh", weights / weights.sum(-1, keepdims=True), v)


def test_memory_of_a_long_prompt_follows_its_slots():
    """Compiled for many heads: never the scores of all queries, four times the slots take at most four times the memory."""

    def temporaries(slots):
        q = jax.ShapeDtypeStruct((3, slots, 40, 16), jnp.float32)
        cache = LayerCache(*[jax.ShapeDtypeStruct((3, slots, 8, 16), jnp.float32)] * 2)
        valid, index = jax.ShapeDtypeStruct((3, slots), bool), jax.ShapeDtypeStruct((), jnp.int32)
        compiled = jax.jit(cached_attention).lower(q, cache, valid, index).compile()
        return compiled.memory_analysis().temp_size_in_bytes - 2 * q.size * 4  # what is linear anyway

    short, long = temporaries(1024), temporaries(4096)
    assert long < 4 * attention._SCORES_BYTES < 4 * 3 * 40 * 4096**2 / 4
    assert long < 4 * short


def test_cudnn_is_never_given_a_mask_of_whole_rows(arrays, monkeypatch):
    """Its place is taken by the same function without a kernel: values, gradients, and the masks that it sees."""
    q, k, v, ids, g = arrays
    ids, seen = jnp.asarray(ids), []
    attend = jax.nn.dot_product_attention

    def stand_in(q, k, v, mask, implementation):
        assert implementation == "cudnn"
        seen.append(mask.shape)
        return attend(q, k, v, mask=mask)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    for queries, expected in ((100, {(1, 1, 86, LENGTH)}), (LENGTH, {(1, 1, LENGTH, LENGTH)})):
        monkeypatch.setattr(attention, "_CUDNN_QUERIES", queries)
        seen.clear()
        y, pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, ids, "cudnn"), q, k, v)
        wanted, plain_pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, ids, "xla"), q, k, v)
        real = np.asarray(ids)[0] > 0
        np.testing.assert_allclose(y[:, real], wanted[:, real], atol=2e-5)
        for found, by_hand in zip(pull(jnp.asarray(g)), plain_pull(jnp.asarray(g)), strict=True):
            np.testing.assert_allclose(found, by_hand, atol=1e-4)
        assert set(seen) == expected


def test_gradients_of_blocks_are_summed_in_float32(arrays, monkeypatch):
    """In bfloat16 the blocks' gradients of a key would lose what is small beside their sum."""
    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, mask, implementation: attend(q, k, v, mask=mask))
    q, k, v, ids, g = (jnp.asarray(x) for x in arrays)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]

    def gradients(queries):
        monkeypatch.setattr(attention, "_CUDNN_QUERIES", queries)
        _, pull = jax.vjp(lambda *x: causal_attention(*x, ids, "cudnn"), *half)
        return [np.asarray(x, np.float32) for x in pull(g.astype(jnp.bfloat16))]

    for many, one in zip(gradients(4), gradients(LENGTH), strict=True):
        assert np.abs(many - one).max() <= 2**-7 * np.abs(one).max()


def lowered_gradient(policy: str, arrays, names: bool = False) -> str:
    """The gradient of attention rematerialized with `policy`, lowered for TPU."""
    q, k, v, ids, g = arrays
    attend = jax.checkpoint(lambda *x: causal_attention(*x, jnp.asarray(ids), "splash"), policy=remat_policy(policy))
    gradient = jax.jit(jax.grad(lambda *x: jnp.vdot(jnp.sin(attend(*x)), g), argnums=(0, 1, 2)))
    return gradient.trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text(debug_info=names)


@pytest.mark.parametrize(
    "policy, count",
    [("full", 3), ("attention", 2), ("projections", 2), ("mlp", 2), ("dots", 2), ("q:host,kv:host,attention_out:device", 2)],
)
def test_policies_that_keep_the_attention_do_not_run_its_kernel_again(arrays, monkeypatch, policy, count):
    monkeypatch.setattr(attention, "target_platform", lambda: "tpu")
    assert lowered_gradient(policy, arrays).count("@tpu_custom_call") == count


def test_parts_of_the_queries_gradient_are_added_up(arrays, monkeypatch):
    """The kernel leaves one for each block of keys; of a reduction over them nothing is left."""
    monkeypatch.setattr(attention, "target_platform", lambda: "tpu")
    monkeypatch.setattr(attention, "_BLOCK", 128)
    monkeypatch.setattr(attention, "_BLOCK_KEYS", 128)
    text = lowered_gradient("attention", [x if x.dtype == np.int32 else x.astype(jnp.bfloat16) for x in arrays])
    assert "stablehlo.reduce(" not in text
    parts = "x".join(map(str, (arrays[0].shape[0], 2, arrays[0].shape[2], LENGTH, 128)))
    assert f"tensor<{parts}xbf16>" in text and f"tensor<{parts}xf32>" not in text


def test_both_kernels_keep_their_names(arrays, monkeypatch):
    """The compiled program calls a kernel by the last of its scopes; profiles and training/hlo_cost.py go by that."""
    monkeypatch.setattr(attention, "target_platform", lambda: "tpu")
    text = lowered_gradient("attention", arrays, names=True)
    kernels = re.findall(r"stablehlo.custom_call @tpu_custom_call.* loc\((#loc\d+)\)", text)
    scopes = {re.search(rf'^{place} = loc\("(.*?)"', text, re.MULTILINE)[1].split("/")[-2][:14] for place in kernels}
    assert len(kernels) == 2 and scopes == {"splash_mha_fwd", "splash_mha_dkv"}


def test_splash_names_rows_it_cannot_take():
    q = jnp.zeros((1, 8, 2, HEAD_DIM))
    with pytest.raises(InputError, match="multiple of 128 positions a device, found 8"):
        causal_attention(q, q, q, jnp.zeros((1, 8), jnp.int32), "splash")


@pytest.mark.parametrize(
    "platform, dtype, length, expected",
    [
        ("tpu", "bfloat16", 256, "splash"),
        ("tpu", "bfloat16", 100, "xla"),
        ("cuda", "bfloat16", 100, "cudnn"),
        ("cuda", "float32", 100, "xla"),
        ("cpu", "bfloat16", 256, "xla"),
    ],
)
def test_auto_takes_what_the_platform_is_best_at(monkeypatch, platform, dtype, length, expected):
    monkeypatch.setattr(attention, "target_platform", lambda: platform)
    assert attention._choose("auto", jax.ShapeDtypeStruct((1, length, 4, 128), dtype)) == expected
    assert attention._choose("xla", jax.ShapeDtypeStruct((1, length, 4, 128), dtype)) == "xla"


def test_attention_scores_are_summed_in_float32():
    """Weights of bfloat16 queries and keys against float64 on the same numbers. Scores of 30 in bfloat16 are off by 0.06,
    and their weights by as many hundredths.
    """
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(2, 6, 2, 64)) * 3, jnp.bfloat16) for _ in range(2))
    mask = np.tril(np.ones((6, 6), bool))[None].repeat(2, 0)
    scores = np.einsum("BSNH,BTNH->BNST", np.asarray(q, np.float64), np.asarray(k, np.float64)) / 8
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    assert np.abs(scores[np.isfinite(scores)]).max() > 10
    found = attention_weights(q, k, jnp.asarray(mask))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found)[:, :, 0], weights, atol=1e-5)
