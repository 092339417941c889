"""What happens inside a generation: what each image token was sampled from, how, and which words it attended to.

Letters: B images, M branches, R = M * B rows, n image tokens of C numbers, D width, E noise draws, N heads, L layers, W words.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.batch import Batch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.sequence import ImageTokens, image_prefix
from nextstep_jax.flow.guidance import guide, guided_times
from nextstep_jax.flow.samplers import num_noise_draws, timesteps, trajectory
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import align_rows, frame_prompt, row_batch
from nextstep_jax.generation.token_loop import DecodeState, SamplerConfig
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.seeds import seed_key

Array = jax.Array


class Trace(NamedTuple):
    """A generation, token by token.

    Attributes:
      tokens: [B, n, C] as the transformer reads them and the image tokenizer decodes them.
      sampled: [B, n, C] as the sampler left them; equal to `tokens` without per-token normalization.
      conditions: [n, R, D] what the flow head was given.
      h, w: the grid, h * w = n.
    """

    tokens: np.ndarray
    sampled: np.ndarray
    conditions: np.ndarray
    h: int
    w: int


def trace(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    settings: GenerationConfig | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Trace:
    """Generate one image of each prompt and keep the steps on the way; tokens as `Pipeline.generate` makes them."""
    settings = settings or pipeline.settings()
    h, w = pipeline.grid(settings, height, width)
    sampler = settings.sampler_config(has_image=False)
    prefix, count = image_prefix(pipeline.special, h, w), len(prompts)
    texts = [f"{prompt} {settings.prompt_suffix}".strip() for prompt in prompts]
    texts += [settings.negative_prompt] * count * (sampler.branches - 1)
    rows = [frame_prompt([text, prefix], pipeline.special, pipeline.config, pipeline.vocabulary) for text in texts]
    key = jax.random.fold_in(seed_key(seed), 0)
    noise = token_loop.draw_noise(
        jnp.broadcast_to(key, (count,)), h * w, sampler.num_noise_draws, pipeline.config.token_channels
    )
    state = token_loop.prefill(pipeline.config, pipeline.params, align_rows(rows), sampler.branches, h * w)
    found = _generate_with_traces(pipeline.config, sampler, pipeline.params, state, noise, settings.guidance(h * w))
    tokens, sampled, conditions = map(np.asarray, found)
    return Trace(tokens, sampled, conditions, h, w)


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def _generate_with_traces(
    config: NextStepConfig, sampler: SamplerConfig, params: dict, state: DecodeState, noise: Array, guidance: Array
) -> tuple[Array, Array, Array]:
    """(tokens, sampled, conditions) of a `Trace`."""
    times = token_loop.embed_times(config, sampler, params)
    raw = dataclasses.replace(sampler, normalize_tokens=False)

    def step(state, inputs):
        noise, guidance = inputs
        state, condition = token_loop.sample_step(config, sampler, params, times, state, noise, guidance)
        return state, (token_loop.flow_step(config, raw, params, condition, times, noise, *guidance), condition)

    state, (sampled, conditions) = jax.lax.scan(step, state, (noise, guidance))
    return state.tokens, jnp.moveaxis(sampled, 0, 1), conditions


def token_statistics(tokens: Float[np.ndarray, "B n C"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean and variance over the C numbers of each of tokens [B, n, C], averaged over the images: two [n] (paper Figure 5)."""
    tokens = np.asarray(tokens, np.float64)
    return tokens.mean(-1).mean(0), tokens.var(-1).mean(0)


def token_trajectories(
    pipeline: Pipeline, condition: Float[np.ndarray, "M D"], settings: GenerationConfig, *, draws: int = 8, seed: int = 0
) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, "times draws C"]]:
    """How the flow head carries several noises to one image token.

    Args:
      condition: [M, D] of one image and token, `trace(...).conditions[k, b::B]`.
      settings: cfg, sampler and steps. With one seed every sampler starts from the same noises.

    Returns:
      times [steps + 1] and states [steps + 1, draws, C], before per-token normalization.
    """
    sampler = settings.sampler_config(has_image=False)
    shape = (num_noise_draws(sampler.sampler, sampler.steps), draws, pipeline.config.token_channels)
    # One key per draw, so that the starting noise does not depend on how many draws a sampler takes.
    keys = jax.random.split(seed_key(seed), 1 + shape[0])
    noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys[1:]).at[0].set(jax.random.normal(keys[0], shape[1:]))
    times, states = _trajectories(pipeline.config, sampler, pipeline.params, jnp.asarray(condition), noise, settings.cfg)
    return np.asarray(times), np.asarray(states)


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def _trajectories(
    config: NextStepConfig, sampler: SamplerConfig, params: dict, condition: Array, noise: Array, cfg: Array
) -> tuple[np.ndarray | Array, Array]:
    model, variables, draws = NextStep(config), {"params": params}, noise.shape[1]
    times = timesteps(sampler.sampler, sampler.steps, sampler.shift)
    moments, guided = map(jnp.asarray, (times, guided_times(times, sampler.guidance_start, sampler.guidance_end)))

    def velocity(x: Array, i: Array) -> Array:
        rows, conditions = jnp.tile(x, (sampler.branches, 1)), jnp.repeat(condition, draws, axis=0)
        t = jnp.full(rows.shape[0], moments[i])
        v: Any = model.apply(variables, rows, t, conditions, method="velocity")
        return jnp.where(guided[i], guide(v, cfg, 1.0, sampler.branches, sampler.rescale), v[:draws])

    return trajectory(
        velocity, noise, sampler=sampler.sampler, steps=sampler.steps, shift=sampler.shift, noise_level=sampler.noise_level
    )


def word_attention(
    pipeline: Pipeline, prompt: str, tokens: Float[np.ndarray, "n C"], h: int, w: int
) -> tuple[list[str], Float[np.ndarray, "L N n W"]]:
    """How much each image token attends to each word of its prompt.

    Args:
      tokens: [h * w, C] of an image drawn from the prompt, without the settings' prompt suffix.

    Returns:
      The prompt's W words (text ids, decoded one by one) and the weights [L, N, h * w, W] of the position that *predicts* each
      token. The rest of a position's attention, up to a sum of 1, goes to the image's markers and earlier tokens.
    """
    writing = pipeline.special, pipeline.config, pipeline.vocabulary
    words = frame_prompt([prompt], *writing).text_ids
    row = frame_prompt([prompt, ImageTokens(tokens, h, w)], *writing)
    batch, places = row_batch(row), np.flatnonzero(row.is_image)
    maps = np.stack([np.asarray(weights)[0] for weights in _attention_maps(pipeline.config, pipeline.params, batch)])
    return [pipeline.text([i]) for i in words], maps[:, :, places - 1, : len(words)]


@functools.partial(jax.jit, static_argnames=("config",))
def _attention_maps(config: NextStepConfig, params: dict, batch: Batch) -> list[Array]:
    maps: Any = NextStep(config).apply({"params": params}, batch, method="attention_maps")
    return maps
