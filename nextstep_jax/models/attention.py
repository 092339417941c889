"""Grouped-query attention: masks, the key/value cache, and the choice of kernel.

Letters: B batch, S queries, T keys, N query heads, K key/value heads, H head dim. Query head n uses key head n // (N / K).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

_MASKED = -1e30  # finite, so that a row with no visible key averages instead of turning into NaN


class LayerCache(NamedTuple):
    """Keys and values of one layer, [B, T, K, H] each."""

    keys: Array
    values: Array


def segment_mask(segment_ids: Array) -> Array:
    """[B, S, S] bool: a query sees keys of its own segment that are not later than itself."""
    s = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & (jnp.arange(s)[:, None] >= jnp.arange(s)[None, :])


def cache_mask(valid: Array, index: Array, queries: int) -> Array:
    """[B, S, T] bool for S queries written at slots index, index + 1, …: earlier slots and their own, where valid [B, T]."""
    slots = jnp.arange(valid.shape[1])
    return valid[:, None, :] & (slots <= index + jnp.arange(queries)[:, None])


def write_cache(cache: LayerCache, keys: Array, values: Array, index: Array) -> LayerCache:
    """Put [B, S, K, H] keys and values at slots index, index + 1, …"""
    at = (0, index, 0, 0)
    return LayerCache(
        jax.lax.dynamic_update_slice(cache.keys, keys.astype(cache.keys.dtype), at),
        jax.lax.dynamic_update_slice(cache.values, values.astype(cache.values.dtype), at),
    )


def attention_weights(q: Array, k: Array, mask: Array) -> Array:
    """Softmax weights [B, K, N / K, S, T] in float32; mask is [B, S, T]."""
    b, s, n, h = q.shape
    grouped = q.reshape(b, s, k.shape[2], n // k.shape[2], h)
    scores = jnp.einsum("BSKGH,BTKH->BKGST", grouped, k, preferred_element_type=jnp.float32) * h**-0.5
    return jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1)


def masked_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Attention of q [B, S, N, H] over k, v [B, T, K, H] where mask [B, S, T]; returns [B, S, N, H]."""
    weights = attention_weights(q, k, mask).astype(v.dtype)
    return jnp.einsum("BKGST,BTKH->BSKGH", weights, v).reshape(q.shape)


def causal_attention(q: Array, k: Array, v: Array, segment_ids: Array, kernel: str = "auto") -> Array:
    """Segment-aware causal attention of whole rows: q [B, S, N, H], k and v [B, S, K, H], segment_ids [B, S].

    `kernel` is one of config.ATTENTION_KERNELS; "auto" takes what the platform is best at.
    """
    kernel = _choose(kernel, q)
    if kernel == "splash":
        return _splash(q, k, v, segment_ids)
    if kernel == "cudnn":
        mask = segment_mask(segment_ids)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    return masked_attention(q, k, v, segment_mask(segment_ids))


def _choose(kernel: str, q: Array) -> str:
    if kernel != "auto":
        return kernel
    platform = jax.default_backend()
    if platform == "tpu" and q.shape[1] % 128 == 0 and q.shape[-1] % 128 == 0:
        return "splash"
    if platform == "gpu" and q.dtype != jnp.float32:
        return "cudnn"
    return "xla"


def _splash(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    s, n, h = q.shape[1:]
    mask = masks.MultiHeadMask([masks.CausalMask((s, s)) for _ in range(n)])
    kernel = splash.make_splash_mqa if k.shape[2] == 1 else splash.make_splash_mha
    attend = kernel(mask, head_shards=1, q_seq_shards=1)

    def one_row(q, k, v, ids):
        # The kernel wants heads first and does not scale the scores.
        q, k, v = (jnp.swapaxes(x, 0, 1) for x in (q * h**-0.5, k, v))
        return jnp.swapaxes(attend(q, k, v, segment_ids=splash.SegmentIds(ids, ids)), 0, 1)

    return jax.vmap(one_row)(q, k, v, segment_ids)
