"""Rollouts: several images of each prompt, with everything that a training step needs to know of how they came about.

They are drawn without guidance by the token loop's own steps. Of a token's sampler steps some may be `trained`: those are
normal distributions (`flow.likelihood`) whose states and noise are kept, while all others follow the plain ODE. Which steps are
trained is an argument, as are the keys, so that one compiled program serves a whole run; on a mesh the rows lie as those of a
batch do.

Everything depends on a run's key, the step, the number of the prompt and that of the image alone: the same rollouts come again
after an interruption, and no other row of the batch has a part in them.

Letters: P prompts, G images of a prompt, R = P * G rows, L prompt length, n tokens, K trained steps, E sampler evaluations,
C channels of a token.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nextstep_jax.batch import AnyArray, Batch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.sequence import Segment
from nextstep_jax.errors import InputError
from nextstep_jax.flow.likelihood import has_density
from nextstep_jax.flow.samplers import integrate_recording, step_table, timesteps
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.prompts import LENGTH_BUCKET
from nextstep_jax.generation.token_loop import TOKEN_NORM_EPS, Prompt, SamplerConfig
from nextstep_jax.models.layers import layer_norm
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.schema import NonNegative, Positive, at_least
from nextstep_jax.sharding.rules import constrain

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How rollouts are drawn.

    Attributes:
      images: G, of each prompt.
      image_size: side in pixels; 0: that of the model's generation settings.
      sampler, steps: the flow sampler, see flow.samplers.
      trained_steps: K, how many steps of each token have a density; 0: none has, and the sampler may be any.
      window: the trained steps are among this many first ones; 0: among the first half.
      density: what the trained steps are instead of the ODE's, "cps" or "sde" (flow.samplers).
      noise_level: of `density`.
      shared_noise: the images of a prompt begin with the same noise, so that the trained steps alone set them apart.

    Raises:
      InputError: a sampler with trained steps that is not "ode", or a window with a step that has no density.
    """

    images: Annotated[int, at_least(2)] = 16
    image_size: NonNegative = 0
    sampler: Literal["ode", "ab2", "heun", "cps", "sde"] = "ode"
    steps: Positive = 10
    trained_steps: NonNegative = 0
    window: NonNegative = 0
    density: Literal["cps", "sde"] = "cps"
    noise_level: Annotated[float, at_least(0)] = 0.8
    shared_noise: bool = False

    def __post_init__(self) -> None:
        step_table(self.sampler, self.steps, noise_level=self.noise_level)
        if not self.trained_steps:
            return
        if self.sampler != "ode":
            raise InputError(f"sampler must be ode where steps are trained, found {self.sampler!r}")
        size = self.window or self.steps // 2
        if not self.trained_steps <= size <= self.steps:
            raise InputError(f"window must hold the {self.trained_steps} trained of {self.steps} steps, found {size}")
        without = np.flatnonzero(~has_density(step_table(self.density, self.steps, noise_level=self.noise_level))[:size])
        if len(without):
            raise InputError(f"window of {size} steps holds step {without[0]} of {self.density!r}, which has no density")

    def sampler_config(self, shift: float, normalize_tokens: bool) -> SamplerConfig:
        """What the loop is specialized to; the last two are the model's, not a choice."""
        return SamplerConfig(1, self.sampler, self.steps, shift, self.noise_level, normalize_tokens)


class PromptRows(NamedTuple):
    """Prompts as arrays of one length.

    Attributes:
      text_ids: [P, L] int32, from the left: everything up to begin-of-image, thoughts included; then padding.
      lengths: [P] int32.
      numbers: [P] int32, which of the run's prompts each is.
    """

    text_ids: AnyArray
    lengths: AnyArray
    numbers: AnyArray


class Rollouts(NamedTuple):
    """What was drawn.

    Attributes:
      tokens: [R, n, C] as the sampler left them. With `normalize_tokens` the transformer read others (`read_tokens`), which
        have no density.
      states: [R, n, K, C] before each trained step.
      noise: [R, n, K, C] that each trained step was taken with.
    """

    tokens: Array
    states: Array
    noise: Array


def prompt_rows(rows: Sequence[Segment], pad_id: int) -> PromptRows:
    """All prompts of a run, padded to one length; NumPy arrays.

    Raises:
      InputError: a prompt that holds an image.
    """
    if any(row.is_image.any() for row in rows):
        raise InputError("a prompt of rollouts is text, found one with an image")
    lengths = np.asarray([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), -(-int(lengths.max()) // LENGTH_BUCKET) * LENGTH_BUCKET), pad_id, np.int32)
    for row, segment in zip(ids, rows, strict=True):
        row[: len(segment)] = segment.text_ids
    return PromptRows(ids, lengths, np.arange(len(rows), dtype=np.int32))


def repeat_prompts(prompts: PromptRows, images: int) -> PromptRows:
    """Each prompt `images` times, one after the other: P rows become R."""
    return jax.tree.map(lambda array: _rows(jnp.repeat(array, images, axis=0)), prompts)


def draw_keys(key: Array, step: Array, numbers: Int[Array, " P"], images: int, shared_noise: bool) -> tuple[Array, Array]:
    """The keys [R] of the noise that each row begins with, and [R] of that of its trained steps."""
    key = jax.random.fold_in(key, step)

    def of_prompt(number: Array) -> tuple[Array, Array]:
        mine = jax.random.fold_in(key, number)
        begin, during = jax.random.split(mine)
        each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        places = jnp.arange(images)
        return each(begin, jnp.zeros_like(places) if shared_noise else places), each(during, places)

    begin, during = jax.vmap(of_prompt)(numbers)
    return begin.reshape(-1), during.reshape(-1)


def choose_steps(config: RolloutConfig, key: Array) -> Int[Array, " K"]:
    """K different steps of the window, in order."""
    size = config.window or max(1, config.steps // 2)
    return jnp.sort(jax.random.permutation(key, size)[: config.trained_steps])


def rollout_table(config: RolloutConfig, shift: float, trained: Int[Array, " K"]) -> Float[Array, "E 4"]:
    """The sampler's step table with the rows of `density` at the trained steps."""
    table = jnp.asarray(step_table(config.sampler, config.steps, shift, config.noise_level))
    if not config.trained_steps:
        return table
    noisy = jnp.asarray(step_table(config.density, config.steps, shift, config.noise_level))
    return table.at[trained].set(noisy[trained])


def draw_rollouts(
    model: NextStepConfig,
    config: RolloutConfig,
    sampler: SamplerConfig,
    params: dict,
    prompts: PromptRows,
    keys: tuple[Array, Array],
    trained: Int[Array, " K"],
    tokens: int,
) -> Rollouts:
    """Images of R rows. To be jitted with `model`, `config`, `sampler` and `tokens` static.

    Args:
      model: in decoding form, unrolled; `params` in the same.
      sampler: `config.sampler_config(...)`.
      prompts: R rows, see `repeat_prompts`.
      keys: see `draw_keys`.
      trained: see `choose_steps`.
      tokens: n.
    """
    begin, during = keys
    channels, count = model.token_channels, config.trained_steps
    # Samplers that are noisy throughout take all of their noise from the first keys.
    start = token_loop.draw_noise(begin, tokens, sampler.num_noise_draws, channels)
    fresh = token_loop.draw_noise(during, tokens, count, channels)
    table = rollout_table(config, sampler.shift, trained)
    times = jnp.asarray(timesteps(sampler.sampler, sampler.steps, sampler.shift))
    times = NextStep(model).apply({"params": params}, times, method="embed_times")
    variables = {"params": params}

    def body(state: token_loop.DecodeState, draws: tuple[Array, Array]):
        start, fresh = (_rows(array, axis=1) for array in draws)
        condition, cache = token_loop.next_condition(model, params, state)
        modulations = NextStep(model).apply(variables, times, condition, method="modulations")

        def velocity(x: Array, i: Array) -> Array:
            now = jax.tree.map(lambda table: table[i], modulations)
            return NextStep(model).apply(variables, x, now, method="velocity_at")

        if count:
            quiet = jnp.zeros((table.shape[0], *start.shape[1:]))
            start = jnp.concatenate([start, quiet.at[trained].set(fresh)])
        token, states = integrate_recording(velocity, start, table, trained)
        state = token_loop.append_token(model, params, state, cache, read_tokens(sampler, token), 1)
        return state, (token, states)

    state = token_loop.prefill(model, params, right_align(prompts, channels), 1, tokens)
    _, (drawn, states) = jax.lax.scan(body, state, (start, fresh))
    drawn, states, fresh = jnp.moveaxis(drawn, 0, 1), jnp.moveaxis(states, (0, 1), (1, 2)), jnp.moveaxis(fresh, (0, 1), (1, 2))
    return Rollouts(*map(_rows, (drawn, states, fresh)))


jit_rollouts = functools.partial(jax.jit, static_argnames=("model", "config", "sampler", "tokens"))(draw_rollouts)


def read_tokens(sampler: SamplerConfig, tokens: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """Sampled tokens as transformer and image tokenizer read them."""
    return layer_norm(tokens, TOKEN_NORM_EPS) if sampler.normalize_tokens else tokens


def right_align(prompts: PromptRows, channels: int) -> Prompt:
    """The rows as the token loop takes them."""
    rows, length = prompts.text_ids.shape
    places = jnp.arange(length) - (length - prompts.lengths[:, None])
    ids = jnp.where(places >= 0, jnp.take_along_axis(prompts.text_ids, jnp.maximum(places, 0), axis=1), 0)
    return Prompt(ids, jnp.zeros((rows, length, channels)), jnp.zeros((rows, length), bool), prompts.lengths)


def rollout_batch(model: NextStepConfig, prompts: PromptRows, tokens: Float[Array, "R n C"]) -> Batch:
    """Prompts and the images drawn after them as rows of L + n positions, one segment each; every image token is a target.

    Args:
      tokens: as the transformer reads them.
    """
    count, length = tokens.shape[1], prompts.text_ids.shape[1]
    places = jnp.broadcast_to(jnp.arange(length + count), (tokens.shape[0], length + count))
    since = places - prompts.lengths[:, None]
    is_image, inside = (since >= 0) & (since < count), since < count
    at = jnp.clip(since, 0, count - 1)[..., None]
    ids = jnp.pad(prompts.text_ids, ((0, 0), (0, count)), constant_values=model.pad_id)
    return Batch(
        text_ids=jnp.where(is_image, model.image_placeholder_id, jnp.where(inside, ids, model.pad_id)),
        image_tokens=jnp.where(is_image[..., None], jnp.take_along_axis(tokens, at, axis=1), 0.0),
        is_image=is_image,
        positions=jnp.where(inside, places, 0),
        segment_ids=inside.astype(jnp.int32),
        text_weight=jnp.zeros(places.shape),
        image_weight=is_image.astype(jnp.float32),
    )


def _rows(array: Array, axis: int = 0) -> Array:
    """An array one of whose axes is that of the rows, which lie as those of a batch do."""
    return constrain(array, *("batch" if i == axis else None for i in range(array.ndim)))
