"""The few-step stage: a second head learns how the guided flow of the first one bends.

The transformer and the first head are frozen. Every image token is seen with its caption and without, as generation's two
branches see it, and both hidden states go to both heads. The draws of a token share its guidance and times.

Letters: B rows, S positions, n slots of the image head, R = B * n tokens, M draws, P = R * M points, J jumps, C channels of an
image token, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nextstep_jax.batch import Batch
from nextstep_jax.flow.guidance import guide
from nextstep_jax.flow.paths import interpolate
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.objectives import few_step
from nextstep_jax.objectives.multitask import gather_positions, target_weights
from nextstep_jax.training import multitask
from nextstep_jax.training.flops import flow_head_forward, transformer_forward, work_of
from nextstep_jax.training.post_training_settings import FewStepConfig, FewStepLossConfig
from nextstep_jax.training.stage import Stage
from nextstep_jax.training.step import Objective, WeightedMean
from nextstep_jax.training.vocabulary import open_vocabulary

Array = jax.Array

# Points at which a draw asks for the flow's velocity, and forward passes of the map head with what their gradient takes.
_PASSES = {
    "regression": (few_step.SOLUTION_STEPS, 3 * (sum(few_step.FEWEST) + 1)),
    "lagrangian": (2, 6),
    "shortcut": (2, 5),
}


def make_stage(config: FewStepConfig) -> Stage:
    """The stage a config describes. InputError names an option whose model, vocabulary or data does not fit the others."""
    model = config.model
    vocabulary = open_vocabulary(config.data.vocabulary, config.init.checkpoint)
    vocabulary.require_match(model)
    validation = functools.partial(multitask.open_validation_data, config, model, vocabulary)
    return Stage(
        objective=make_objective(config),
        training_data=functools.partial(multitask.open_data, config, model, vocabulary),
        validation_data=validation if config.data.validation else None,
        inference=functools.partial(multitask.inference, config, vocabulary),
        draw_samples=functools.partial(multitask.draw_samples, config, vocabulary),
        export=functools.partial(multitask.export, config, model, vocabulary),
    )


def make_objective(config: FewStepConfig) -> Objective:
    """Parameters and loss. Batches are (Batch, kinds [B, S])."""
    model, slots = NextStep(config.model), multitask.max_targets(config)["max_image_targets"]

    def init(key: Array) -> dict:
        return {"model": init_params(config.model, key)}

    def normalizers(batch):
        _, mask, _ = gather_positions(target_weights(batch[0])[1], slots)
        return jnp.sum(mask)

    def loss(params, batch, key: Array, normalizers):
        values, error, mask = few_step_losses(model, params["model"], batch[0], key, slots, config.loss)
        mean = WeightedMean(jnp.sum(mask[..., None] * error), jnp.sum(mask) * config.loss.draws)
        total = jnp.sum(mask * jnp.mean(values, axis=-1))
        return total / jnp.maximum(normalizers, 1), {"few_step/error": mean}

    def counts(batch):
        batch, _ = batch
        work, m = work_of(batch), config.model
        velocities, passes = (config.loss.draws * count for count in _PASSES[config.loss.method])
        first = dataclasses.replace(m.flow_head, batch_mul=2 * velocities)
        second = dataclasses.replace(m.flow_head.of_map, batch_mul=passes)
        flops = 2 * transformer_forward(m.transformer, work)
        for head, channels in ((first, m.token_channels), (second, 3 * m.token_channels)):
            flops += flow_head_forward(head, channels, m.transformer.width, work.image_targets)
        starts = (batch.text_ids == m.begin_of_image_id) & (batch.segment_ids > 0)
        return {
            "positions": jnp.float32(batch.text_ids.size),
            "tokens": jnp.float32(work.tokens),
            "images": jnp.float32(starts.sum()),
            "flops": jnp.float32(flops),
        }

    return Objective(init, normalizers, loss, counts, batch_axes=("batch", "sequence"))


def few_step_losses(
    model: NextStep, params: dict, batch: Batch, key: Array, slots: int, settings: FewStepLossConfig
) -> tuple[Array, Array, Array]:
    """Loss and error [B, n, M] of every image target, and which slots are taken [B, n]."""

    def call(method: str, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    _, weights = target_weights(batch)
    indices, mask, _ = gather_positions(weights, slots)

    def gather(values: Array) -> Array:
        return jnp.take_along_axis(values, indices[..., None], axis=1).reshape(-1, values.shape[-1])

    with jax.named_scope("transformer"):
        states = [call("__call__", seen) for seen in (batch, without_text(batch, model.config.image_area_id))]
        conditions = [jax.lax.stop_gradient(call("project_out", gather(hidden))) for hidden in states]
    tokens, draws = indices.size, settings.draws
    of_times, of_noise, of_strength = jax.random.split(key, 3)
    noise = jax.random.normal(of_noise, (tokens * draws, model.config.token_channels))
    low, high = jnp.log(settings.min_guidance), jnp.log(settings.max_guidance)
    guidance = jnp.exp(jax.random.uniform(of_strength, (tokens,), minval=low, maxval=high))

    def velocity(x: Array, t: Array) -> few_step.Velocities:
        """The first head's at points [P, C]."""
        both = call("velocity", jnp.tile(x, (2, 1)), jnp.tile(t[::draws], 2), jnp.concatenate(conditions))
        return few_step.Velocities(guide(both, jnp.repeat(guidance, draws)[:, None], 1.0, 2), both[: len(x)])

    def acceleration(x: Array, velocities: few_step.Velocities, s: Array, t: Array) -> Array:
        """The second head's at points [J * P, C], which it takes token by token."""

        def by_token(values: Array, each: int) -> Array:
            return jnp.swapaxes(values.reshape(-1, tokens, each, *values.shape[1:]), 0, 1).reshape(-1, *values.shape[1:])

        points = (by_token(values, draws) for values in (x, *velocities))
        times = (by_token(values[::draws], 1) for values in (s, t))
        found = call("acceleration", *points, *times, *conditions, guidance)
        return jnp.swapaxes(found.reshape(tokens, -1, draws, x.shape[-1]), 0, 1).reshape(x.shape)

    with jax.named_scope("few_step"):
        if settings.method == "regression":
            trajectory = few_step.follow(velocity, noise)
            losses = few_step.regression_loss(acceleration, trajectory, *few_step.draw_jumps(of_times))
            loss, error = (jnp.mean(values, axis=0) for values in losses)
        else:
            data = gather(jnp.roll(batch.image_tokens, -1, axis=1))
            s, t = (jnp.repeat(times, draws) for times in few_step.draw_times(of_times, tokens))
            x = interpolate(jnp.repeat(data, draws, axis=0), noise, s)
            if settings.method == "shortcut":
                loss, error = few_step.shortcut_loss(acceleration, velocity, x, s, t)
            else:
                loss, error = few_step.lagrangian_loss(acceleration, velocity, x, s, t, settings.normalize_power)
    return loss.reshape(*indices.shape, draws), error.reshape(*indices.shape, draws), mask


def without_text(batch: Batch, image_area_id: int) -> Batch:
    """The batch as the unconditional branch of generation sees it: every image begins a sequence of its own where its size is
    written, and what stands before it is out of sight.
    """
    ids = batch.segment_ids
    starts = ids != jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1]
    starts |= (batch.text_ids == image_area_id) & ~batch.is_image
    place = jnp.arange(ids.shape[1])
    first = jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
    return dataclasses.replace(
        batch, segment_ids=jnp.where(ids > 0, jnp.cumsum(starts, axis=1), 0).astype(ids.dtype), positions=place - first
    )
