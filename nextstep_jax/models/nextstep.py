"""NextStep-1: mixed-sequence embedding, one causal decoder, a language head and a flow head (paper section 4.2).

Letters: B batch (R rows when decoding), S sequence, T cache slots, D width, C channels of an image token, V vocabulary,
P gathered positions.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from nextstep_jax.batch import Batch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.models.flow_head import FlowHead, JumpModulations, MapHead, Modulations
from nextstep_jax.models.layers import Projection
from nextstep_jax.models.transformer import Cache, Decoder
from nextstep_jax.sharding.rules import constrain

Array = jax.Array


def gen_pos_embed(grid: int, width: int) -> np.ndarray:
    """The releases' fixed table [grid * grid, width] float32: the first half of the width encodes the column, the second the
    row; each is sines, then cosines.

    The releases index it with the running token number, as if every image were `grid` tokens wide.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = np.arange(grid, dtype=np.float64)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embedding_lookup(table: Array, ids: Array, dtype: str) -> Array:
    """Rows [..., D] in `dtype` of a float32 table [V, D], at ids [...].

    On a mesh the table is gathered along D, in `dtype`: split along D, the lookup would give every device a strip of all rows'
    embeddings, and the partitioner would copy them whole on the way to where they belong. Gradients add up in float32.
    """
    return jnp.take(constrain(table.astype(dtype), "vocab", "width"), ids, axis=0)


def _embedding_lookup_forward(table: Array, ids: Array, dtype: str):
    return embedding_lookup(table, ids, dtype), (table, ids)


def _embedding_lookup_backward(dtype: str, saved, gradient: Array):
    table, ids = saved
    sums = jnp.zeros(table.shape, jnp.float32).at[ids].add(gradient.astype(jnp.float32))
    return constrain(sums, "vocab", "embed").astype(table.dtype), None


embedding_lookup.defvjp(_embedding_lookup_forward, _embedding_lookup_backward)


class Embedding(nn.Module):
    """The token table [V, D], read by id and, when tied, by the language head."""

    vocab_size: int
    width: int
    dtype: str

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (self.vocab_size, self.width))

    def __call__(self, ids: Array) -> Array:
        return embedding_lookup(self.embedding, ids, self.dtype)


class LanguageHead(nn.Module):
    """The kernel [D, V] of the language head."""

    width: int
    vocab_size: int

    def setup(self):
        self.kernel = self.param("kernel", nn.initializers.normal(0.02), (self.width, self.vocab_size))

    def __call__(self) -> Array:
        return self.kernel


class NextStep(nn.Module):
    """The model as pure functions of `params`: `apply({"params": params}, ..., method="logits")` and so on."""

    config: NextStepConfig

    def setup(self):
        c, t = self.config, self.config.transformer
        self.embedding = Embedding(t.vocab_size, t.width, t.dtype)
        self.image_in_projector = Projection("...C,CD->...D", (c.token_channels, t.width), 1, t.dtype)
        self.decoder = Decoder(t)
        if not t.tie_embeddings:
            self.lm_head = LanguageHead(t.width, t.vocab_size)
        self.image_out_projector = Projection("...D,DE->...E", (t.width, t.width), 1, t.dtype)
        self.flow_head = FlowHead(c)
        if c.map_head:
            self.map_head = MapHead(c)

    def embed(
        self, text_ids: Int[Array, "B S"], image_tokens: Float[Array, "B S C"], is_image: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """Embeddings [B, S, D]: of ids [B, S] where text, of tokens [B, S, C] where image."""
        text = self.embed_text(text_ids)
        return jnp.where(is_image[..., None], self.embed_image(image_tokens), text)

    def embed_text(self, text_ids: Int[Array, "*n"]) -> Float[Array, "*n D"]:
        """Embeddings [..., D] of ids [...]."""
        return self.embedding(text_ids)

    def embed_image(self, image_tokens: Float[Array, "*n C"]) -> Float[Array, "*n D"]:
        """Embeddings [..., D] of image tokens [..., C]."""
        return self.image_in_projector(image_tokens)

    def __call__(self, batch: Batch) -> Float[Array, "B S D"]:
        """Hidden states [B, S, D] after the final norm; the state at s predicts position s + 1."""
        x = self.embed(batch.text_ids, batch.image_tokens, batch.is_image)
        x = constrain(x, "batch", "sequence", "width")
        return self.decoder(x, batch.positions, batch.segment_ids)

    def layer_outputs(self, batch: Batch) -> list[Array]:
        """What each decoder block gives, before the final norm (unrolled form only)."""
        x = self.embed(batch.text_ids, batch.image_tokens, batch.is_image)
        return self.decoder.layer_outputs(x, batch.positions, batch.segment_ids)

    def attention_maps(self, batch: Batch) -> list[Array]:
        """Attention weights [B, N, S, S] of each decoder block: query position, then key position (unrolled form only)."""
        x = self.embed(batch.text_ids, batch.image_tokens, batch.is_image)
        return self.decoder.attention_maps(x, batch.positions, batch.segment_ids)

    def mean_attention(
        self,
        text_ids: Int[Array, "B S"],
        image_tokens: Float[Array, "B S C"],
        is_image: Bool[Array, "B S"],
        positions: Int[Array, "B S"],
        valid: Bool[Array, "B S"],
        layers: Sequence[int],
        first: int,
        count: int,
    ) -> Float[Array, "B n S"]:
        """What `count` positions from `first` on attend to; see `Decoder.mean_attention`."""
        x = self.embed(text_ids, image_tokens, is_image)
        return self.decoder.mean_attention(x, positions, valid, layers, first, count)

    def extend(
        self, embeddings: Float[Array, "R S D"], positions: Int[Array, "R S"], cache: Cache, valid: Bool[Array, "R T"]
    ) -> tuple[Float[Array, "R S D"], Cache]:
        """Append [R, S, D] embeddings at [R, S] positions to the cache; see `Decoder.extend`."""
        return self.decoder.extend(embeddings, positions, cache, valid)

    def language_kernel(self) -> Array:
        """The language head's kernel [D, V]; the transposed embedding when tied."""
        if self.config.transformer.tie_embeddings:
            return self.embedding.embedding.T
        return self.lm_head()

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Next-id logits [..., V] float32 of hidden states [..., D]."""
        kernel = self.language_kernel().astype(hidden.dtype)
        return jnp.einsum("...D,DV->...V", hidden, kernel, preferred_element_type=jnp.float32)

    def project_out(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """The flow head's condition [..., D] of hidden states [..., D]."""
        return self.image_out_projector(hidden)

    def velocity(self, x: Array, t: Array, condition: Array) -> Array:
        """Velocity [P, C] of points [P, C] at times [Q] under conditions [R, D]; see `FlowHead`."""
        return self.flow_head.velocity(x, t, condition)

    def embed_times(self, times: Array) -> Array:
        """Embeddings [T, W] of flow times [T]; see `FlowHead`."""
        return self.flow_head.embed_times(times)

    def modulations(self, time_embeddings: Array, condition: Array) -> Modulations:
        """All modulations at T embedded times for R conditions; see `FlowHead`."""
        return self.flow_head.modulations(time_embeddings, condition)

    def velocity_at(self, x: Array, modulations: Modulations) -> Array:
        """Velocity [R, C] under the modulations of one time; see `FlowHead`."""
        return self.flow_head.velocity_at(x, modulations)

    def acceleration(
        self,
        x: Array,
        guided: Array,
        conditional: Array,
        s: Array,
        t: Array,
        condition: Array,
        unconditional: Array,
        guidance: Array,
    ) -> Array:
        """How the guided flow bends between times s and t; see `MapHead`."""
        return self.map_head.acceleration(x, guided, conditional, s, t, condition, unconditional, guidance)

    def embed_jumps(self, s: Array, t: Array) -> Array:
        """Embeddings [T, W] of jumps in flow time; see `MapHead`."""
        return self.map_head.embed_jumps(s, t)

    def jump_modulations(
        self, embeddings: Array, condition: Array, unconditional: Array | None, guidance: Array
    ) -> JumpModulations:
        """All modulations of T embedded jumps for R pairs of conditions; see `MapHead`."""
        return self.map_head.jump_modulations(embeddings, condition, unconditional, guidance)

    def acceleration_at(self, x: Array, guided: Array, conditional: Array, modulations: JumpModulations) -> Array:
        """How the guided flow bends under the modulations of one jump; see `MapHead`."""
        return self.map_head.acceleration_at(x, guided, conditional, modulations)

    def initialize(self, batch: Batch) -> Array:
        """Touch every parameter once; the method to call `init` with."""
        hidden = self(batch)[:, 0]
        x = jnp.zeros((hidden.shape[0], self.config.token_channels))
        t, condition = jnp.zeros(x.shape[0]), self.project_out(hidden)
        velocity = self.velocity(x, t, condition)
        if self.config.map_head:
            velocity += self.acceleration(x, velocity, velocity, t, t, condition, condition, t + 1)
        return velocity.sum() + self.logits(hidden).sum()


def empty_batch(config: NextStepConfig, rows: int = 1, length: int = 2) -> Batch:
    """A Batch of zeros, for shapes and initialization."""
    ids, weights = jnp.zeros((rows, length), jnp.int32), jnp.zeros((rows, length), jnp.float32)
    tokens = jnp.zeros((rows, length, config.token_channels))
    return Batch(ids, tokens, ids.astype(bool), ids, ids, weights, weights)


def init_params(config: NextStepConfig, key: Array) -> dict:
    """Randomly initialized parameters in the form `config` asks for (unrolled, scanned, fused)."""
    model = NextStep(config.with_transformer(attention_kernel="xla"))  # others want longer rows than this one
    return model.init(key, empty_batch(config), method="initialize")["params"]
