"""The flow head: an AdaLN MLP that predicts the velocity of one image token (paper section 4.2, Table 6).

The modulations (shift, scale, gate) hold 60 % of its parameters and depend on the time and the condition alone, never on
the point x. Sampling therefore computes those of all T times in one product (`modulations`) and follows the ODE with
`velocity_at`; training, where every token has its own time, calls `velocity`.

It starts as in both training releases: Xavier-uniform kernels, N(0, 0.02^2) in the time embedding, zeros in the modulations and
the last layer, so that the first velocity is 0.

`MapHead` is a second head of the same blocks that takes a second time: distilled from the first (objectives/few_step.py), it
jumps along the guided flow instead of following it.

Letters: P tokens, R rows, T times, C channels of a token, D condition width, W head width, M hidden width, L blocks.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from nextstep_jax.config import NextStepConfig
from nextstep_jax.models.layers import Projection, layer_norm
from nextstep_jax.sharding.rules import constrain

Array = jax.Array

TIME_FEATURES = 256
NORM_EPS = 1e-6


class Modulations(NamedTuple):
    """AdaLN modulations at given times: per block [..., 3W] (shift, scale, gate), at the end [..., 2W] (shift, scale)."""

    blocks: tuple[Array, ...]
    final: Array


def time_features(t: Float[Array, "*n"]) -> Float[Array, "*n 256"]:
    """[..., 256] float32: 128 cosines then 128 sines of t, periods 2 pi to 2 pi * 10000; t in [0, 1] is not rescaled."""
    half = TIME_FEATURES // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """Two-layer MLP over `time_features`; `stddev` is of the last kernel's initializer."""

    width: int
    dtype: str
    stddev: float = 0.02

    @nn.compact
    def __call__(self, t: Array) -> Array:
        w = self.width
        y = Projection("...I,IO->...O", (TIME_FEATURES, w), 1, self.dtype, name="in")(time_features(t))
        y = nn.silu(constrain(y, "positions", "width"))  # else the partitioner spreads the width and sees every position
        return Projection("...I,IO->...O", (w, w), 1, self.dtype, stddev=self.stddev, name="out")(y)


class FlowBlock(nn.Module):
    """Residual MLP block with an affine norm, modulated and gated."""

    width: int
    hidden: int
    dtype: str

    def setup(self):
        w, m = self.width, self.hidden
        self.norm = LayerNorm(NORM_EPS)
        self.mlp_in = Projection("...I,IO->...O", (w, m), 1, self.dtype, stddev=None)
        self.mlp_out = Projection("...I,IO->...O", (m, w), 1, self.dtype, stddev=None)
        self.modulation = Projection("...I,IO->...O", (w, 3 * w), 1, self.dtype, stddev=0.0)

    def __call__(self, x: Array, cond: Array) -> tuple[Array, None]:
        """x [P, W] after the block, modulated by cond = silu(time + condition) [P, W]."""
        return self.apply_modulation(x, self.modulation(cond)), None

    def modulate(self, cond: Array) -> Array:
        return self.modulation(cond, apart=True)

    def apply_modulation(self, x: Array, modulation: Array) -> Array:
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        y = self.mlp_out(nn.silu(self.mlp_in(_modulate(self.norm(x), shift, scale))))
        return x + gate * y


class LayerNorm(nn.Module):
    """`layer_norm` with its gain and bias."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        return layer_norm(x, self.eps, scale, bias)


class FinalLayer(nn.Module):
    """Modulated norm without parameters, then W -> C."""

    width: int
    channels: int
    dtype: str

    def setup(self):
        self.modulation = Projection("...I,IO->...O", (self.width, 2 * self.width), 1, self.dtype, stddev=0.0)
        self.output = Projection("...I,IO->...O", (self.width, self.channels), 1, self.dtype, stddev=0.0)

    def __call__(self, x: Array, cond: Array) -> Array:
        """Velocities [P, C] of x [P, W], modulated as a block."""
        return self.apply_modulation(x, self.modulation(cond))

    def apply_modulation(self, x: Array, modulation: Array) -> Array:
        shift, scale = jnp.split(modulation, 2, axis=-1)
        return self.output(_modulate(layer_norm(x, NORM_EPS), shift, scale))

    def modulate(self, cond: Array) -> Array:
        return self.modulation(cond, apart=True)


class FlowHead(nn.Module):
    """Velocity field v(x, t | condition) over image tokens."""

    config: NextStepConfig

    def setup(self):
        c, t = self.config.flow_head, self.config.transformer
        self.time_embed = TimeEmbedding(c.width, t.dtype)
        self.condition = Projection("...D,DW->...W", (t.width, c.width), 1, t.dtype, stddev=None)
        self.input = Projection("...C,CW->...W", (self.config.token_channels, c.width), 1, t.dtype, stddev=None)
        block = FlowBlock if t.remat == "none" else nn.remat(FlowBlock, prevent_cse=not t.scan_layers)
        arguments = (c.width, c.hidden, t.dtype)
        if t.scan_layers:
            scanned = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=c.layers
            )
            self.blocks = scanned(*arguments)
        else:
            self.blocks = [block(*arguments) for _ in range(c.layers)]
        self.final = FinalLayer(c.width, self.config.token_channels, t.dtype)

    def velocity(self, x: Float[Array, "P C"], t: Float[Array, " P"], condition: Float[Array, "R D"]) -> Float[Array, "P C"]:
        """Velocity [P, C] float32 at points x [P, C], times t [P]; of R conditions [R, D] each is for the next P / R points."""
        times = constrain(self.time_embed(constrain(t, "positions")), "positions", "width")
        conditions = constrain(self.condition(condition), "positions", "width")
        return self.predict(x, nn.silu(times + jnp.repeat(conditions, t.shape[0] // condition.shape[0], axis=0)))

    def predict(self, x: Float[Array, "P C"], cond: Float[Array, "P W"]) -> Float[Array, "P C"]:
        """What the blocks make of points x [P, C], modulated by cond [P, W]: [P, C] float32."""
        y = constrain(self.input(x), "positions", "width")
        if self.config.transformer.scan_layers:
            y, _ = self.blocks(y, cond)
        else:
            for block in self.blocks:
                y, _ = block(y, cond)
        return self.final(y, cond).astype(jnp.float32)

    def embed_times(self, times: Float[Array, " T"]) -> Float[Array, "T W"]:
        """Embeddings [T, W] of times [T]; a fixed schedule needs them once for all tokens."""
        return self.time_embed(times)

    def modulations(self, time_embeddings: Float[Array, "T W"], condition: Float[Array, "R D"]) -> Modulations:
        """Modulations at T embedded times [T, W] for R conditions [R, D], leading axes [T, R] (unrolled form only)."""
        cond = nn.silu(time_embeddings[:, None] + self.condition(condition)[None])
        return Modulations(tuple(block.modulate(cond) for block in self.blocks), self.final.modulate(cond))

    def velocity_at(self, x: Float[Array, "R C"], modulations: Modulations) -> Float[Array, "R C"]:
        """Velocity [R, C] float32 at points x [R, C] under modulations of one time, [R, ...] (unrolled form only)."""
        y = self.input(x)
        for block, modulation in zip(self.blocks, modulations.blocks, strict=True):
            y = block.apply_modulation(y, modulation)
        return self.final.apply_modulation(y, modulations.final).astype(jnp.float32)


class MapHead(FlowHead):
    """Average velocity u(x, s, t | conditions, guidance w) of the guided flow from time s to time t >= s, so that
    x + (t - s) u is where the flow carries x. Two times as in MeanFlow (Geng et al. 2025) and flow map matching (Boffi et al.).

    It has `FlowHead`'s parameters and three additions, all 0 at first: u then is the velocity of the head that it is a copy of.
    """

    def setup(self):
        super().setup()
        c, t = self.config.flow_head, self.config.transformer
        self.duration_embed = TimeEmbedding(c.width, t.dtype, stddev=0.0)
        self.guidance_embed = TimeEmbedding(c.width, t.dtype, stddev=0.0)
        self.unconditional = Projection("...D,DW->...W", (t.width, c.width), 1, t.dtype, stddev=0.0)

    def average_velocity(
        self,
        x: Float[Array, "P C"],
        s: Float[Array, " P"],
        t: Float[Array, " P"],
        condition: Float[Array, "R D"],
        unconditional: Float[Array, "R D"],
        guidance: Float[Array, " P"],
    ) -> Float[Array, "P C"]:
        """u [P, C] float32 from s [P] to t [P]; of R pairs of conditions each is for the next P / R points."""
        draws = s.shape[0] // condition.shape[0]
        of_text, of_none = (
            jnp.repeat(y, draws, axis=0) for y in (self.condition(condition), self.unconditional(unconditional))
        )
        cond = self.embed_durations(s, t) + of_text + self._guide(of_none, guidance)
        return self.predict(x, nn.silu(cond))

    def embed_durations(self, s: Float[Array, " T"], t: Float[Array, " T"]) -> Float[Array, "T W"]:
        """Embeddings [T, W] of the jumps from s [T] to t [T]."""
        return self.time_embed(s) + self.duration_embed(t - s)

    def map_modulations(
        self,
        embeddings: Float[Array, "T W"],
        condition: Float[Array, "R D"],
        unconditional: Float[Array, "R D"] | None,
        guidance: Float[Array, " R"],
    ) -> Modulations:
        """Modulations of T embedded jumps [T, W], leading axes [T, R], as of `FlowHead.modulations`. Guidance 1 needs no
        unconditional state.
        """
        of_none = jnp.zeros(()) if unconditional is None else self.unconditional(unconditional)
        cond = nn.silu(embeddings[:, None] + (self.condition(condition) + self._guide(of_none, guidance))[None])
        return Modulations(tuple(block.modulate(cond) for block in self.blocks), self.final.modulate(cond))

    def _guide(self, unconditional: Array, guidance: Array) -> Array:
        """What guidance of strength w adds; of the unconditional state nothing remains at w = 1, where there is no guidance."""
        w = guidance.astype(jnp.float32)
        share = (1 - 1 / w)[:, None].astype(self.config.transformer.dtype)
        return self.guidance_embed(jnp.log(w)) + share * unconditional
