"""Fixed-noise Jacobi decoding: several image tokens a transformer step, and the same image.

With all noise drawn beforehand a sampler is a function, and an image the one solution of x_i = F(x_1, ..., x_{i-1}; noise_i).
A sweep evaluates F for a window of W tokens at once, each from the current estimates of those before it. The first of them
stands on accepted tokens alone and is final; so is every further one whose predecessors came out as the sweep had assumed
them, to within a tolerance. These are accepted and the window moves on behind them, keeping its estimates. A sweep reads the
weights once, as a single token does, and there are never more sweeps than tokens.

With tolerance 0 the result is that of `token_loop.decode_tokens` to rounding: what is computed for many rows may add up in
another order than for few. With guidance and windows of two tokens it is the same on CPUs bit for bit. (The first Jacobi
decoding of a language model: Santilli et al. 2023; there is none of continuous tokens that we know of.)

Letters: B images, M branches, R = M * B rows, W tokens of a window, T cache slots, C channels of a token, D width, n tokens,
E noise arrays of the sampler.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from nextstep_jax.config import NextStepConfig
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.token_loop import DecodeState, Prompt, SamplerConfig
from nextstep_jax.models.nextstep import NextStep, gen_pos_embed

Array = jax.Array

FIRST_GUESSES = ("zero", "last", "shift", "above", "extrapolate")


@dataclasses.dataclass(frozen=True)
class JacobiConfig:
    """What the compiled loop is specialized to, beside the sampler.

    Attributes:
      window: W.
      first_guess: what a token is taken for when the window first reaches it: "zero", the last token that there is an estimate
        of ("last"), the one as far back as the window moved ("shift"), the one in the row above ("above", where there is one),
        or the line through the last two ("extrapolate").
      row: tokens in a row of the image.
    """

    window: int
    row: int
    first_guess: str = "last"


class WindowState(NamedTuple):
    """Where B sequences stand, each at a place of its own.

    Attributes:
      decode: `tokens` are [B, n + W, C], estimates behind the accepted ones; `step` is [B], and the cache's index [R].
      known: [B] tokens of which there are estimates.
      sweeps: [] so far.
    """

    decode: DecodeState
    known: Array
    sweeps: Array

    @property
    def tokens(self) -> Array:
        """[B, n + W, C]"""
        return self.decode.tokens


@functools.partial(jax.jit, static_argnames=("config", "branches", "tokens", "jacobi"))
def prefill(
    config: NextStepConfig, params: dict, prompt: Prompt, branches: int, tokens: int, jacobi: JacobiConfig
) -> WindowState:
    """As `token_loop.prefill`, for windows of W tokens."""
    state = token_loop.prefill(config, params, prompt, branches, tokens + jacobi.window)
    rows, images = state.positions.shape[0], state.tokens.shape[0]
    cache, none = state.cache._replace(index=jnp.full((rows,), state.cache.index)), jnp.zeros((images,), jnp.int32)
    return WindowState(state._replace(cache=cache, step=none), none, jnp.zeros((), jnp.int32))


def first_guess(
    how: str, tokens: Float[Array, "B m C"], known: Int[Array, " B"], at: Int[Array, "B W"], row: int
) -> Float[Array, "B W C"]:
    """Estimates of tokens `at` (counted from 0) of which there are none yet, from the `known` first ones of `tokens`.

    Where there is nothing to go by, zeros; a token of the first row has the one before in place of the one above.
    """

    def take(places: Array) -> Array:
        found = jnp.take_along_axis(tokens, jnp.maximum(places, 0)[..., None], axis=1, mode="clip")
        return jnp.where((places >= 0)[..., None], found, 0)

    last = jnp.broadcast_to(known[:, None] - 1, at.shape)
    if how == "zero":
        return jnp.zeros((*at.shape, tokens.shape[-1]))
    if how == "shift":
        return take(at - (at[:, -1:] - last))
    if how == "extrapolate":
        return jnp.where((last >= 1)[..., None], 2 * take(last) - take(last - 1), take(last))
    if how == "above":
        above = at - row * jnp.maximum(1, -(-(at - last) // row))  # as many rows up as it takes to meet a known one
        return take(jnp.where(above >= 0, above, last))
    return take(last)


def count_accepted(
    found: Float[Array, "B W C"], assumed: Float[Array, "B W C"], tolerance: float | Float[Array, ""]
) -> Int[Array, " B"]:
    """How many of a window's tokens [B] are final: one more than there are leading ones that came out as assumed, to within
    `tolerance` of their norm.
    """
    change, size = (jnp.linalg.norm(x, axis=-1) for x in (found - assumed, found))
    settled = jnp.all(found == assumed, axis=-1) | (change <= tolerance * size) & (tolerance > 0)
    return 1 + jnp.sum(jnp.cumprod(settled[:, :-1], axis=1, dtype=jnp.int32), axis=1)


def sweep(
    config: NextStepConfig,
    settings: SamplerConfig,
    params: dict,
    times: token_loop.EmbeddedTimes,
    state: WindowState,
    noise: Float[Array, "n E B C"],
    guidance: Float[Array, "n 2"],
    stop: Int[Array, ""],
    tolerance: float | Float[Array, ""],
    jacobi: JacobiConfig,
) -> WindowState:
    """Evaluate the window of every image once, and accept what is final before token `stop`."""
    now, branches = state.decode, settings.branches
    images, width = now.step.shape[0], jacobi.window
    model, variables = NextStep(config), {"params": params}
    at = now.step[:, None] + jnp.arange(width)
    with jax.named_scope("assume"):
        estimates = jnp.take_along_axis(now.tokens, at[..., None], axis=1)
        guesses = first_guess(jacobi.first_guess, now.tokens, state.known, at, jacobi.row)
        assumed = jnp.where((at < state.known[:, None])[..., None], estimates, guesses)

    with jax.named_scope("transformer_step"):
        before = jnp.tile(assumed[:, :-1], (branches, 1, 1))
        embedded = model.apply(variables, before, method="embed_image").astype(now.embedding.dtype)
        inputs = jnp.concatenate([now.embedding[:, None], embedded], axis=1)
        positions = now.positions[:, None] + jnp.arange(width)
        hidden, cache = model.apply(variables, inputs, positions, now.cache, now.valid, method="extend")
    if config.use_gen_pos_embed:
        with jax.named_scope("gen_pos_embed"):
            table = jnp.asarray(gen_pos_embed(config.base_grid, config.transformer.width))
            hidden = (hidden + jnp.tile(jnp.take(table, at, axis=0, mode="clip"), (branches, 1, 1))).astype(hidden.dtype)
    condition = model.apply(variables, hidden, method="project_out")

    own = jnp.minimum(at, noise.shape[0] - 1)  # a window may reach beyond the image; what it finds there is never accepted
    draws = jnp.moveaxis(noise[own, :, jnp.arange(images)[:, None]], 2, 0).reshape(noise.shape[1], images * width, -1)
    strengths = guidance[own.reshape(-1)]
    flat = condition.reshape(-1, condition.shape[-1])
    found = token_loop.flow_step(config, settings, params, flat, times, draws, strengths[:, :1], strengths[:, 1:])
    found = found.reshape(images, width, -1)

    with jax.named_scope("accept"):
        accepted = count_accepted(found, assumed, tolerance)
        accepted = jnp.clip(accepted, 0, jnp.maximum(stop - now.step, 0))
        tokens = jax.vmap(lambda row, new, to: jax.lax.dynamic_update_slice(row, new, (to, 0)))(now.tokens, found, now.step)
        last = jnp.take_along_axis(found, jnp.maximum(accepted - 1, 0)[:, None, None], axis=1)[:, 0]
        embedding = model.apply(variables, jnp.tile(last, (branches, 1)), method="embed_image").astype(now.embedding.dtype)
        moved = jnp.tile(accepted, branches)
        embedding = jnp.where((moved > 0)[:, None], embedding, now.embedding)
    decode = DecodeState(
        cache=cache._replace(index=now.cache.index + moved),
        valid=now.valid,
        positions=now.positions + moved,
        embedding=embedding,
        tokens=tokens,
        step=now.step + accepted,
    )
    return WindowState(decode, jnp.maximum(state.known, now.step + width), state.sweeps + 1)


@functools.partial(jax.jit, static_argnames=("config", "settings", "jacobi"), donate_argnames=("state",))
def decode_windows(
    config: NextStepConfig,
    settings: SamplerConfig,
    params: dict,
    state: WindowState,
    noise: Float[Array, "n E B C"],
    guidance: Float[Array, "n 2"],
    stop: Array,
    tolerance: Array | float,
    jacobi: JacobiConfig,
) -> WindowState:
    """Sweep until every image has `stop` tokens; arguments as of `token_loop.decode_tokens`.

    Args:
      tolerance: the largest change of a token, relative to its norm, with which those after it are accepted; traced.
    """
    times = token_loop.embed_times(config, settings, params)
    guidance = jnp.asarray(guidance)

    def body(state: WindowState) -> WindowState:
        return sweep(config, settings, params, times, state, noise, guidance, jnp.asarray(stop), tolerance, jacobi)

    return jax.lax.while_loop(lambda state: jnp.any(state.decode.step < stop), body, state)
