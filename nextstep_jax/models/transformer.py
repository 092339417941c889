"""The causal decoder: pre-norm blocks of grouped-query attention and SwiGLU (paper section 4.2; Qwen2.5's architecture).

Letters: B batch (R rows when decoding), S sequence, T cache slots, D width, N/K query and key/value heads, H head dim,
F MLP width, L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from nextstep_jax.config import TransformerConfig, kept_values
from nextstep_jax.models.attention import (
    ATTENTION_OUT,
    LayerCache,
    attention_weights,
    cache_mask,
    cached_attention,
    causal_attention,
    mean_attention_weights,
    segment_mask,
    shard_cache,
    write_cache,
)
from nextstep_jax.models.layers import NORM_STATISTICS, Projection, RMSNorm, apply_rope, rope_table
from nextstep_jax.sharding.rules import constrain, row_major

Array = jax.Array
RopeTable = tuple[Array, Array]


class Cache(NamedTuple):
    """Keys and values of every layer and the next slot to write, of all rows or of each [R]; an explicit argument and result of
    decoding.
    """

    layers: tuple[LayerCache, ...]
    index: Array  # type: ignore[assignment]  # hides tuple.index, which a cache has no use for


def init_cache(config: TransformerConfig, rows: int, slots: int) -> Cache:
    """An empty cache for `rows` sequences of at most `slots` positions, in the compute dtype."""
    shape = (rows, slots, config.kv_heads, config.head_dim)

    def layer():
        return LayerCache(*(shard_cache(jnp.zeros(shape, config.dtype)) for _ in range(2)))

    return Cache(tuple(layer() for _ in range(config.layers)), jnp.zeros((), jnp.int32))


class Attention(nn.Module):
    """q, k, v projections, rotary positions, attention and the output projection."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        bias = 2 if c.qkv_bias else 0
        if c.fused_projections:
            shape = (c.width, c.heads + 2 * c.kv_heads, c.head_dim)
            self.qkv = Projection("BSD,DNH->BSNH", shape, bias, c.dtype)
        else:
            self.q = Projection("BSD,DNH->BSNH", (c.width, c.heads, c.head_dim), bias, c.dtype)
            self.k = Projection("BSD,DKH->BSKH", (c.width, c.kv_heads, c.head_dim), bias, c.dtype)
            self.v = Projection("BSD,DKH->BSKH", (c.width, c.kv_heads, c.head_dim), bias, c.dtype)
        self.o = Projection("BSNH,NHD->BSD", (c.heads, c.head_dim, c.width), 1 if c.o_bias else 0, c.dtype)

    def project(self, x: Array, rope: RopeTable) -> tuple[Array, Array, Array]:
        """Rotated queries [B, S, N, H] and keys [B, S, K, H], and values [B, S, K, H]."""
        c = self.config
        if c.fused_projections:
            q, k, v = jnp.split(self.qkv(x), (c.heads, c.heads + c.kv_heads), axis=2)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        return apply_rope(q, rope), apply_rope(k, rope), v

    def __call__(self, x: Array, rope: RopeTable, segment_ids: Array) -> Array:
        q, k, v = self.project(x, rope)
        y = causal_attention(q, k, v, segment_ids, self.config.attention_kernel)
        return self.o(y)

    def weights(self, x: Array, rope: RopeTable, segment_ids: Array) -> Array:
        """How much each position looks at which: [B, N, S, S] float32, rows sum to 1."""
        q, k, _ = self.project(x, rope)
        weights = attention_weights(q, k, segment_mask(segment_ids))
        return weights.reshape(q.shape[0], self.config.heads, *weights.shape[-2:])

    def mean_weights(self, x: Array, rope: RopeTable, valid: Array, first: int, count: int) -> Array:
        """What `count` positions from `first` on look at, averaged over heads: [B, count, S] float32."""
        q, k, _ = self.project(x, rope)
        return mean_attention_weights(q[:, first : first + count], k, cache_mask(valid, jnp.asarray(first), count))

    def extend(self, x: Array, rope: RopeTable, cache: LayerCache, index: Array, valid: Array) -> tuple[Array, LayerCache]:
        q, k, v = self.project(x, rope)
        cache = write_cache(cache, k, v, index)
        return self.o(cached_attention(q, cache, valid, index)), cache


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        if c.fused_projections:
            gate_up = Projection("BSD,DIF->BSIF", (c.width, 2, c.mlp_width), dtype=c.dtype, name="gate_up")(x)
            gate, up = gate_up[:, :, 0], gate_up[:, :, 1]
        else:
            gate = Projection("BSD,DF->BSF", (c.width, c.mlp_width), dtype=c.dtype, name="gate")(x)
            up = Projection("BSD,DF->BSF", (c.width, c.mlp_width), dtype=c.dtype, name="up")(x)
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        return Projection("BSF,FD->BSD", (c.mlp_width, c.width), dtype=c.dtype, name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """One decoder layer. `__call__` sees whole rows (training); `extend` appends to a cache."""

    config: TransformerConfig

    def setup(self):
        eps = self.config.rms_norm_eps
        self.attention_norm = RMSNorm(eps)
        self.attention = Attention(self.config)
        self.mlp_norm = RMSNorm(eps)
        self.mlp = SwiGLU(self.config)

    def __call__(self, x: Array, rope: RopeTable, segment_ids: Array) -> tuple[Array, None]:
        x = constrain(checkpoint_name(self._lay_out(x), "block_in"), "batch", "sequence", "width")
        x = checkpoint_name(self._lay_out(x + self.attention(self.attention_norm(x), rope, segment_ids)), "block_middle")
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(self._lay_out(x), "batch", "sequence", "width"), None

    def _lay_out(self, x: Array) -> Array:
        """The stream [B, S, D], row-major where it is kept on the device while other values go to the host.

        The TPU compiler takes the first and last run out of a loop with copies to the host, and chooses a layout for each by
        itself: the stack of all layers' streams, 7.5 GiB a chip for 14B and 16,384 positions, would be there in two layouts.
        """
        kept = {"block_in": "device"} | (kept_values(self.config.remat) or {})
        if "host" in kept.values() and "device" in (kept["block_in"], kept.get("block_middle")):
            return row_major(x, "batch", "sequence", "width")
        return x

    def attention_map(self, x: Array, rope: RopeTable, segment_ids: Array) -> Array:
        return self.attention.weights(self.attention_norm(x), rope, segment_ids)

    def mean_weights(self, x: Array, rope: RopeTable, valid: Array, first: int, count: int) -> Array:
        return self.attention.mean_weights(self.attention_norm(x), rope, valid, first, count)

    def extend(self, x: Array, rope: RopeTable, cache: LayerCache, index: Array, valid: Array) -> tuple[Array, LayerCache]:
        y, cache = self.attention.extend(self.attention_norm(x), rope, cache, index, valid)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


def remat_policy(remat: str):
    """The `jax.checkpoint` policy of a TransformerConfig.remat other than "none". It always keeps the norms' statistics."""
    policies = jax.checkpoint_policies
    kept = kept_values(remat)
    if kept is None:
        names = policies.save_only_these_names(ATTENTION_OUT, NORM_STATISTICS)
        return policies.save_from_both_policies(policies.checkpoint_dots_with_no_batch_dims, names)
    on_device, on_host = ([value for value, at in kept.items() if at == place] for place in ("device", "host"))
    on_device.append(NORM_STATISTICS)
    if not on_host:
        return policies.save_only_these_names(*on_device)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=on_device,
        names_which_can_be_offloaded=on_host,
        offload_src="device",
        offload_dst="pinned_host",
    )


class Decoder(nn.Module):
    """The stack of blocks and the final norm."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        block = Block if c.remat == "none" else nn.remat(Block, policy=remat_policy(c.remat), prevent_cse=not c.scan_layers)
        if c.scan_layers:
            scanned = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=c.layers
            )
            self.layers = scanned(c)
        else:
            self.layers = [block(c) for _ in range(c.layers)]
        self.final_norm = RMSNorm(c.rms_norm_eps)

    def _rope(self, positions: Array) -> RopeTable:
        return rope_table(positions, self.config.head_dim, self.config.rope_theta)

    def __call__(
        self, x: Float[Array, "B S D"], positions: Int[Array, "B S"], segment_ids: Int[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """Hidden states [B, S, D] after the final norm, of embeddings [B, S, D] at positions [B, S]."""
        x, rope = x.astype(self.config.dtype), self._rope(positions)
        if self.config.scan_layers:
            x, _ = self.layers(x, rope, segment_ids)
        else:
            for layer in self.layers:
                x, _ = layer(x, rope, segment_ids)
        return self.final_norm(x)

    def layer_outputs(self, x: Array, positions: Array, segment_ids: Array) -> list[Array]:
        """What each block gives, before the final norm (unrolled form only)."""
        x, rope, outputs = x.astype(self.config.dtype), self._rope(positions), []
        for layer in self.layers:
            x, _ = layer(x, rope, segment_ids)
            outputs.append(x)
        return outputs

    def attention_maps(self, x: Array, positions: Array, segment_ids: Array) -> list[Array]:
        """Attention weights [B, N, S, S] of each block (unrolled form only)."""
        x, rope, maps = x.astype(self.config.dtype), self._rope(positions), []
        for layer in self.layers:
            maps.append(layer.attention_map(x, rope, segment_ids))
            x, _ = layer(x, rope, segment_ids)
        return maps

    def mean_attention(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "B S"],
        valid: Bool[Array, "B S"],
        layers: Sequence[int],
        first: int,
        count: int,
    ) -> Float[Array, "B n S"]:
        """Attention weights of `count` positions from `first` on, averaged over heads and over the blocks numbered in `layers`
        (unrolled form only). Memory follows S, not its square.
        """
        x, rope, found = x.astype(self.config.dtype), self._rope(positions), []
        cache = init_cache(self.config, *positions.shape)
        for i, (layer, empty) in enumerate(zip(self.layers, cache.layers, strict=True)):
            if i in layers:
                found.append(layer.mean_weights(x, rope, valid, first, count))
            x, _ = layer.extend(x, rope, empty, cache.index, valid)
        return jnp.stack(found).mean(0)

    def extend(
        self, x: Float[Array, "R S D"], positions: Int[Array, "R S"], cache: Cache, valid: Bool[Array, "R T"]
    ) -> tuple[Float[Array, "R S D"], Cache]:
        """Append embeddings [R, S, D] to the cache and return their hidden states [R, S, D] (unrolled form only).

        valid [R, T] says which slots, old and new, a row may see.
        """
        x, rope = x.astype(self.config.dtype), self._rope(positions)
        layers = []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x, layer_cache = layer.extend(x, rope, layer_cache, cache.index, valid)
            layers.append(layer_cache)
        return self.final_norm(x), Cache(tuple(layers), cache.index + x.shape[1])
