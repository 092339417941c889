"""The compiled image-token loop: transformer step -> flow head -> token -> transformer step.

Rows are the guidance branches of a batch side by side, [conditional; (image only;) unconditional], right-aligned, so that
every row writes the cache at the same slot. The last prompt id (begin-of-image) is kept back by `prefill` and becomes the
first input of the loop: n tokens take exactly n transformer steps and none is computed twice or in vain.

Letters: B images, M branches, R = M * B rows, P prompt length, T cache slots, C channels of a token, D width, n tokens,
E noise arrays of the sampler.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from nextstep_jax.batch import AnyArray
from nextstep_jax.config import NextStepConfig
from nextstep_jax.flow.guidance import guide, guided_times
from nextstep_jax.flow.samplers import jumps, num_noise_draws, sample, timesteps
from nextstep_jax.models.layers import layer_norm
from nextstep_jax.models.nextstep import NextStep, gen_pos_embed
from nextstep_jax.models.transformer import Cache, init_cache

Array = jax.Array

TOKEN_NORM_EPS = 1e-6  # of the LayerNorm that `normalize_tokens` applies (both releases)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """What the compiled loop is specialized to; guidance strengths are ordinary arguments.

    Attributes:
      branches: M, see `flow.guidance.num_branches`.
      sampler, steps, shift, noise_level: see `flow.samplers`.
      normalize_tokens: LayerNorm without parameters over the C numbers of each sampled token (the releases' use_norm).
      rescale: shrink the guided velocity to the conditional one's norm (February 2026).
      guidance_start, guidance_end: the flow times that are guided, see `flow.guidance.guided_times`; at others the conditional
        velocity alone is evaluated.
    """

    branches: int = 1
    sampler: str = "ode"
    steps: int = 20
    shift: float = 1.0
    noise_level: float = 0.8
    normalize_tokens: bool = False
    rescale: bool = False
    guidance_start: float = 0.0
    guidance_end: float = 1.0

    @property
    def num_noise_draws(self) -> int:
        """E: noise arrays one token takes."""
        return num_noise_draws(self.sampler, self.steps)

    def branches_along(self) -> list[tuple[int, int]]:
        """(stop, branches) of each piece of the sampler's evaluations: all branches in the guidance interval, else one."""
        inside = guided_times(timesteps(self.sampler, self.steps, self.shift), self.guidance_start, self.guidance_end)
        counts = np.where(inside, self.branches, 1)
        stops = [*(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(counts)]
        return [(stop, int(counts[stop - 1])) for stop in stops]


class EmbeddedTimes(NamedTuple):
    """Embeddings of the times at which the sampler asks for the velocity, [T, W], and for "map" of its jumps, [T, V]."""

    starts: Array
    jumps: Array | None = None


class Prompt(NamedTuple):
    """Right-aligned prompt rows: ids [R, P], image tokens [R, P, C], is_image [R, P] and lengths [R]."""

    text_ids: AnyArray
    image_tokens: AnyArray
    is_image: AnyArray
    lengths: AnyArray


class DecodeState(NamedTuple):
    """Where a sequence stands: everything the next step needs.

    Attributes:
      cache: keys and values of all layers.
      valid: [R, T] slots a row may see.
      positions: [R] the next input's RoPE position.
      embedding: [R, D] the next input.
      tokens: [B, n, C] float32 image tokens so far, zeros beyond `step`.
      step: how many there are.
    """

    cache: Cache
    valid: Array
    positions: Array
    embedding: Array
    tokens: Array
    step: Array


@jax.named_scope("prefill_cache")
def prefill_cache(config: NextStepConfig, params: dict, prompt: Prompt, slots: int) -> tuple[Cache, Array, Array, Array]:
    """Run the prompt but for its last position through the transformer.

    Returns:
      The cache with `slots` slots, valid [R, slots], the next positions [R] and the kept-back embedding [R, D].
    """
    rows, length = prompt.text_ids.shape
    model = NextStep(config)
    padding = length - prompt.lengths
    valid = jnp.arange(slots) >= padding[:, None]
    positions = jnp.maximum(jnp.arange(length) - padding[:, None], 0)
    x = model.apply({"params": params}, prompt.text_ids, prompt.image_tokens, prompt.is_image, method="embed")
    cache = init_cache(config.transformer, rows, slots)
    if length > 1:
        inputs = (x[:, :-1], positions[:, :-1], cache, valid)
        _, cache = model.apply({"params": params}, *inputs, method="extend")
    return cache, valid, positions[:, -1], x[:, -1]


@jax.named_scope("transformer_step")
def transformer_step(
    config: NextStepConfig,
    params: dict,
    embedding: Float[Array, "R D"],
    positions: Int[Array, " R"],
    cache: Cache,
    valid: Bool[Array, "R T"],
) -> tuple[Float[Array, "R D"], Cache]:
    """One position: embeddings [R, D] at positions [R] -> hidden states [R, D] and the longer cache."""
    inputs = (embedding[:, None], positions[:, None], cache, valid)
    hidden, cache = NextStep(config).apply({"params": params}, *inputs, method="extend")
    return hidden[:, 0], cache


@jax.named_scope("flow_step")
def flow_step(
    config: NextStepConfig,
    settings: SamplerConfig,
    params: dict,
    condition: Float[Array, "R D"],
    times: EmbeddedTimes,
    noise: Float[Array, "E B C"],
    cfg: Float[Array, "*strength"],
    image_cfg: Float[Array, "*strength"],
) -> Float[Array, "B C"]:
    """One image token [B, C] per image from conditions [R, D] and noise [E, B, C]; strengths are [] or [B, 1]."""
    model, variables = NextStep(config), {"params": params}
    modulations = model.apply(variables, times.starts, condition, method="modulations")
    if times.jumps is not None:
        of_text, *others = jnp.split(condition, settings.branches)
        strength = jnp.broadcast_to(jnp.reshape(jnp.asarray(cfg), (-1,)), (noise.shape[1],))
        conditions = (of_text, others[-1] if others else None, strength)
        bends = model.apply(variables, times.jumps, *conditions, method="jump_modulations")
        begin, end = jumps(settings.steps, settings.shift)
        durations = jnp.asarray(end - begin)

    def branch_velocities(x: Array, i: Array, branches: int) -> Array:
        now = jax.tree.map(lambda table: table[i, : branches * x.shape[0]], modulations)
        return model.apply(variables, jnp.tile(x, (branches, 1)), now, method="velocity_at")

    def velocity(x: Array, i: Array, branches: int) -> Array:
        return guide(branch_velocities(x, i, branches), cfg, image_cfg, branches, settings.rescale)

    def average_velocity(x: Array, i: Array) -> Array:
        v = branch_velocities(x, i, settings.branches)
        guided, bend = guide(v, cfg, image_cfg, settings.branches), jax.tree.map(lambda table: table[i], bends)
        return guided + durations[i] * model.apply(variables, x, guided, v[: len(x)], bend, method="acceleration_at")

    pieces = [(stop, functools.partial(velocity, branches=m)) for stop, m in settings.branches_along()]
    token = sample(
        average_velocity if settings.sampler == "map" else pieces,
        noise,
        sampler=settings.sampler,
        steps=settings.steps,
        shift=settings.shift,
        noise_level=settings.noise_level,
    )
    if not settings.normalize_tokens:
        return token
    with jax.named_scope("normalize_token"):
        return layer_norm(token, TOKEN_NORM_EPS)


@jax.named_scope("embed_times")
def embed_times(config: NextStepConfig, settings: SamplerConfig, params: dict) -> EmbeddedTimes:
    """Embeddings of the sampler's times: constants of the whole loop."""
    model, variables = NextStep(config), {"params": params}
    times = jnp.asarray(timesteps(settings.sampler, settings.steps, settings.shift))
    starts = model.apply(variables, times, method="embed_times")
    if settings.sampler != "map":
        return EmbeddedTimes(starts)
    ends = [jnp.asarray(grid) for grid in jumps(settings.steps, settings.shift)]
    return EmbeddedTimes(starts, model.apply(variables, *ends, method="embed_jumps"))


def next_condition(config: NextStepConfig, params: dict, state: DecodeState) -> tuple[Float[Array, "R D"], Cache]:
    """The condition [R, D] of the next token's flow, and the longer cache."""
    hidden, cache = transformer_step(config, params, state.embedding, state.positions, state.cache, state.valid)
    if config.use_gen_pos_embed:
        with jax.named_scope("gen_pos_embed"):
            table = jnp.asarray(gen_pos_embed(config.base_grid, config.transformer.width))
            hidden = (hidden + table[state.step]).astype(hidden.dtype)
    return NextStep(config).apply({"params": params}, hidden, method="project_out"), cache


@jax.named_scope("append_token")
def append_token(
    config: NextStepConfig, params: dict, state: DecodeState, cache: Cache, token: Float[Array, "B C"], branches: int
) -> DecodeState:
    """The state after a token [B, C] of each image, which all of its branches read next."""
    # Every branch embeds it for itself: on CPUs a product of one row adds up in another order than one of several, such as
    # those of the windows of Jacobi decoding.
    embedding = NextStep(config).apply({"params": params}, jnp.tile(token, (branches, 1)), method="embed_image")
    return DecodeState(
        cache=cache,
        valid=state.valid,
        positions=state.positions + 1,
        embedding=embedding,
        tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step, 0)),
        step=state.step + 1,
    )


def sample_step(
    config: NextStepConfig,
    settings: SamplerConfig,
    params: dict,
    times: EmbeddedTimes,
    state: DecodeState,
    noise: Float[Array, "E B C"],
    guidance: Float[Array, " 2"],
) -> tuple[DecodeState, Float[Array, "R D"]]:
    """The step that the compiled loop, previews and tests share.

    Args:
      noise: [E, B, C] of this token.
      guidance: [2] this token's cfg and image_cfg.

    Returns:
      The next state, and the condition [R, D] the flow head was given.
    """
    condition, cache = next_condition(config, params, state)
    token = flow_step(config, settings, params, condition, times, noise, guidance[0], guidance[1])
    return append_token(config, params, state, cache, token, settings.branches), condition


@functools.partial(jax.jit, static_argnames=("config", "branches", "tokens"))
def prefill(config: NextStepConfig, params: dict, prompt: Prompt, branches: int, tokens: int) -> DecodeState:
    """Prefill and an empty canvas of `tokens` image tokens per image."""
    rows, length = prompt.text_ids.shape
    cache, valid, positions, embedding = prefill_cache(config, params, prompt, length + tokens)
    canvas = jnp.zeros((rows // branches, tokens, config.token_channels), jnp.float32)
    return DecodeState(cache, valid, positions, embedding, canvas, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("config", "settings"), donate_argnames=("state",))
def decode_tokens(
    config: NextStepConfig,
    settings: SamplerConfig,
    params: dict,
    state: DecodeState,
    noise: Float[Array, "n E B C"],
    guidance: Float[Array, "n 2"],
    stop: Array,
) -> DecodeState:
    """Sample tokens until `stop` of them are there, without leaving the device; call again with a later stop to go on.

    Args:
      noise: [n, E, B, C] of all tokens.
      guidance: [n, 2] cfg and image_cfg of each token.
      stop: traced, so that chunks of any length share one program.
    """
    times = embed_times(config, settings, params)

    def body(state: DecodeState) -> DecodeState:
        k = state.step
        return sample_step(config, settings, params, times, state, noise[k], guidance[k])[0]

    return jax.lax.while_loop(lambda state: state.step < stop, body, state)


@functools.partial(jax.jit, static_argnames=("tokens", "arrays", "channels"))
def draw_noise(keys: Array, tokens: int, arrays: int, channels: int) -> Float[Array, "n E B C"]:
    """Noise [n, E, B, C] of B images, each from its own key, so that an image never depends on its neighbours."""
    each = jax.vmap(lambda key: jax.random.normal(key, (tokens, arrays, channels)))(keys)
    return jnp.moveaxis(each, 0, 2)
