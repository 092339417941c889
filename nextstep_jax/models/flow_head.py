"""The flow head: an AdaLN MLP that predicts the velocity of one image token (paper section 4.2, Table 6).

The modulations (shift, scale, gate) hold 60 % of its parameters and depend on the time and the condition alone, never on
the point x. Sampling therefore computes those of all T times in one product (`modulations`) and follows the ODE with
`velocity_at`; training, where every token has its own time, calls `velocity`.

It starts as in both training releases: Xavier-uniform kernels, N(0, 0.02^2) in the time embedding, zeros in the modulations and
the last layer, so that the first velocity is 0.

`MapHead` is a smaller head of the same blocks that takes a second time: it tells how the guided flow bends between the two
(objectives/few_step.py), so that one evaluation of both heads jumps along it.

Letters: P points, Q times of them, R conditions, T times of a table, C channels of a token, D condition width, W head width,
M hidden width, L blocks. Where there are fewer times or conditions than points, each is for the next P / Q, or P / R, points.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from nextstep_jax.config import NextStepConfig
from nextstep_jax.models.layers import NORM_STATISTICS, Projection, layer_norm
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


def _spread(rows: Array, points: Array) -> Array:
    """Rows [Q, ...] for points [P, ...]."""
    each = points.shape[0] // rows.shape[0]
    return rows if each == 1 else jnp.repeat(rows, each, axis=0)


class JumpModulations(NamedTuple):
    """What a `MapHead` is modulated by: its blocks, and gates [..., 3C] on its inputs."""

    blocks: Modulations
    gates: Array


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
        """x [P, W] after the block, modulated by cond = silu(time + condition) [Q, W]."""
        return self.apply_modulation(x, self.modulation(cond)), None

    def modulate(self, cond: Array) -> Array:
        return self.modulation(cond, apart=True)

    def apply_modulation(self, x: Array, modulation: Array) -> Array:
        shift, scale, gate = jnp.split(_spread(modulation, x), 3, axis=-1)
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
        shift, scale = jnp.split(_spread(modulation, x), 2, axis=-1)
        return self.output(_modulate(layer_norm(x, NORM_EPS), shift, scale))

    def modulate(self, cond: Array) -> Array:
        return self.modulation(cond, apart=True)


class ModulatedHead(nn.Module):
    """What both heads have: an input projection, AdaLN blocks and the final layer."""

    config: NextStepConfig

    def build(self, inputs: int, width: int, hidden: int, layers: int) -> None:
        """Submodules from `inputs` numbers a point to C; for `setup`."""
        t, channels = self.config.transformer, self.config.token_channels
        self.input = Projection("...C,CW->...W", (inputs, width), 1, t.dtype, stddev=None)
        policy = jax.checkpoint_policies.save_only_these_names(NORM_STATISTICS)
        block = FlowBlock if t.remat == "none" else nn.remat(FlowBlock, policy=policy, prevent_cse=not t.scan_layers)
        arguments = (width, hidden, t.dtype)
        if t.scan_layers:
            scanned = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=layers
            )
            self.blocks = scanned(*arguments)
        else:
            self.blocks = [block(*arguments) for _ in range(layers)]
        self.final = FinalLayer(width, channels, t.dtype)

    def predict(self, x: Float[Array, "P I"], cond: Float[Array, "Q W"]) -> Float[Array, "P C"]:
        """What the blocks make of inputs x [P, I], modulated by cond [Q, W]: [P, C] float32."""
        y = constrain(self.input(x), "positions", "width")
        if self.config.transformer.scan_layers:
            y, _ = self.blocks(y, cond)
        else:
            for block in self.blocks:
                y, _ = block(y, cond)
        return self.final(y, cond).astype(jnp.float32)

    def modulate(self, cond: Float[Array, "T R W"]) -> Modulations:
        """Modulations of cond, leading axes [T, R] (unrolled form only)."""
        return Modulations(tuple(block.modulate(cond) for block in self.blocks), self.final.modulate(cond))

    def predict_at(self, x: Float[Array, "R I"], modulations: Modulations) -> Float[Array, "R C"]:
        """As `predict`, under modulations of one time, [R, ...] (unrolled form only)."""
        y = self.input(x)
        for block, modulation in zip(self.blocks, modulations.blocks, strict=True):
            y = block.apply_modulation(y, modulation)
        return self.final.apply_modulation(y, modulations.final).astype(jnp.float32)


class FlowHead(ModulatedHead):
    """Velocity field v(x, t | condition) over image tokens."""

    def setup(self):
        c, t = self.config.flow_head, self.config.transformer
        self.time_embed = TimeEmbedding(c.width, t.dtype)
        self.condition = Projection("...D,DW->...W", (t.width, c.width), 1, t.dtype, stddev=None)
        self.build(self.config.token_channels, c.width, c.hidden, c.layers)

    def velocity(self, x: Float[Array, "P C"], t: Float[Array, " Q"], condition: Float[Array, "R D"]) -> Float[Array, "P C"]:
        """Velocity [P, C] float32 at points x [P, C], times t [Q] and conditions [R, D], Q a multiple of R."""
        times = constrain(self.time_embed(constrain(t, "positions")), "positions", "width")
        conditions = constrain(self.condition(condition), "positions", "width")
        return self.predict(x, nn.silu(times + _spread(conditions, times)))

    def embed_times(self, times: Float[Array, " T"]) -> Float[Array, "T W"]:
        """Embeddings [T, W] of times [T]; a fixed schedule needs them once for all tokens."""
        return self.time_embed(times)

    def modulations(self, time_embeddings: Float[Array, "T W"], condition: Float[Array, "R D"]) -> Modulations:
        """Modulations at T embedded times [T, W] for R conditions [R, D], leading axes [T, R] (unrolled form only)."""
        return self.modulate(nn.silu(time_embeddings[:, None] + self.condition(condition)[None]))

    def velocity_at(self, x: Float[Array, "R C"], modulations: Modulations) -> Float[Array, "R C"]:
        """Velocity [R, C] float32 at points x [R, C] under modulations of one time, [R, ...] (unrolled form only)."""
        return self.predict_at(x, modulations)


JUMP_FREQUENCIES = 4


def jump_features(s: Float[Array, "*n"], t: Float[Array, "*n"]) -> Float[Array, "*n 16"]:
    """[..., 16] float32: cosines and sines of k pi s and of k pi (t - s), k from 1 to 4."""
    angles = jnp.stack([s, t - s], axis=-1).astype(jnp.float32)[..., None] * (jnp.pi * jnp.arange(1, JUMP_FREQUENCIES + 1))
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1).reshape(*s.shape, 4 * JUMP_FREQUENCIES)


class MapHead(ModulatedHead):
    """How the guided flow bends on its way from time s to time t >= s. With b the guided velocity at the point x where it
    begins, and w the guidance, the flow carries x to

        x + (t - s) u,   u = b + (t - s) a(x, s, t | b, conditions, w).

    u is an average velocity as in MeanFlow (Geng et al. 2025) and flow map matching (Boffi et al. 2025); u(x, t, t) is b by
    construction. a is this head's, 0 at first: a jump then is a step of Euler's.

    Besides what its blocks make of x, b and the part of b that is guidance, a has these three themselves, each channel by a
    gate: most of what there is to learn is how much of the guidance a jump of some length keeps.
    """

    def setup(self):
        c, t = self.config, self.config.transformer
        width = c.flow_head.of_map.width
        self.jump_in = Projection("...I,IO->...O", (4 * JUMP_FREQUENCIES, width), 1, t.dtype, stddev=None)
        self.jump_out = Projection("...I,IO->...O", (width, width), 1, t.dtype, stddev=None)
        self.condition = Projection("...D,DW->...W", (t.width, width), 1, t.dtype, stddev=None)
        self.unconditional = Projection("...D,DW->...W", (t.width, width), 1, t.dtype, stddev=None)
        self.gates = Projection("...I,IO->...O", (width, 3 * c.token_channels), 1, t.dtype, stddev=0.0)
        self.build(3 * c.token_channels, width, width, c.flow_head.of_map.layers)

    def acceleration(
        self,
        x: Float[Array, "P C"],
        guided: Float[Array, "P C"],
        conditional: Float[Array, "P C"],
        s: Float[Array, " Q"],
        t: Float[Array, " Q"],
        condition: Float[Array, "R D"],
        unconditional: Float[Array, "R D"],
        guidance: Float[Array, " R"],
    ) -> Float[Array, "P C"]:
        """a [P, C] float32 of jumps from x at times s to t [Q], Q a multiple of R, with the guided and the conditional velocity
        there; guidance w [R].
        """
        jumps = constrain(self.embed_jumps(constrain(s, "positions"), constrain(t, "positions")), "positions", "width")
        conditions = constrain(self._conditions(condition, unconditional, guidance), "positions", "width")
        cond, inputs = nn.silu(jumps + _spread(conditions, jumps)), _inputs(x, guided, conditional)
        return self.predict(inputs, cond) + _gated(inputs, self.gates(cond))

    def embed_jumps(self, s: Float[Array, " T"], t: Float[Array, " T"]) -> Float[Array, "T W"]:
        """Embeddings [T, W] of the jumps from s [T] to t [T]."""
        return self.jump_out(nn.silu(self.jump_in(jump_features(s, t))))

    def jump_modulations(
        self,
        embeddings: Float[Array, "T W"],
        condition: Float[Array, "R D"],
        unconditional: Float[Array, "R D"] | None,
        guidance: Float[Array, " R"],
    ) -> JumpModulations:
        """Modulations of T embedded jumps [T, W], leading axes [T, R], as of `FlowHead.modulations`. Guidance 1 needs no
        unconditional state.
        """
        cond = nn.silu(embeddings[:, None] + self._conditions(condition, unconditional, guidance)[None])
        return JumpModulations(self.modulate(cond), self.gates(cond, apart=True))

    def acceleration_at(
        self,
        x: Float[Array, "R C"],
        guided: Float[Array, "R C"],
        conditional: Float[Array, "R C"],
        modulations: JumpModulations,
    ) -> Float[Array, "R C"]:
        """As `acceleration`, under modulations of one jump, [R, ...] (unrolled form only)."""
        inputs = _inputs(x, guided, conditional)
        return self.predict_at(inputs, modulations.blocks) + _gated(inputs, modulations.gates)

    def _conditions(self, condition: Array, unconditional: Array | None, guidance: Array) -> Array:
        """Of the unconditional state nothing remains at w = 1, where there is no guidance."""
        of_text = self.condition(condition)
        if unconditional is None:
            return of_text
        share = (1 - 1 / guidance.astype(jnp.float32))[:, None].astype(of_text.dtype)
        return of_text + share * self.unconditional(unconditional)


def _inputs(x: Array, guided: Array, conditional: Array) -> Array:
    """What `MapHead` sees of a point: where it is, where it goes, and what of that is guidance."""
    return jnp.concatenate([x, guided, guided - conditional], axis=-1)


def _gated(inputs: Array, gates: Array) -> Array:
    """The sum [P, C] of the parts of inputs [P, 3C] under gates [Q, 3C], float32."""
    parts = inputs * _spread(gates, inputs).astype(jnp.float32)
    return jnp.sum(parts.reshape(len(parts), 3, -1), axis=1)
