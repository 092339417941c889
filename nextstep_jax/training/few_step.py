"""The few-step stage: a second flow head learns to jump along the guided flow of the first one.

The transformer and the first head are frozen. Every image token is seen with its caption and without, as generation's two
branches see it, and both hidden states go to both heads.

Letters: B rows, S positions, n slots of the image head, M draws, P = B * n * M points, C channels of an image token, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nextstep_jax.batch import Batch
from nextstep_jax.flow.guidance import guide
from nextstep_jax.flow.paths import interpolate
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.objectives.few_step import FewStepTerms, draw_times, lagrangian_terms, regression_terms, shortcut_terms
from nextstep_jax.objectives.multitask import gather_positions, target_weights
from nextstep_jax.training import multitask
from nextstep_jax.training.flops import flow_head_forward, transformer_forward, work_of
from nextstep_jax.training.post_training_settings import FewStepConfig, FewStepLossConfig
from nextstep_jax.training.stage import Stage
from nextstep_jax.training.step import Objective, WeightedMean
from nextstep_jax.training.vocabulary import open_vocabulary

Array = jax.Array

# Forward passes of a head of one branch that a draw costs: the student's own with its derivative and backward pass, and two
# branches of the teacher at two points.
_HEAD_PASSES = 12


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
        terms, mask = few_step_losses(model, params["model"], batch[0], key, slots, config.loss)
        means = {
            f"few_step/{name}": WeightedMean(jnp.sum(mask[..., None] * value), jnp.sum(mask) * config.loss.draws)
            for name, value in terms._asdict().items()
        }
        total = jnp.sum(mask * jnp.mean(terms.loss, axis=-1))
        return total / jnp.maximum(normalizers, 1), means

    def counts(batch):
        batch, _ = batch
        work, m = work_of(batch), config.model
        head = dataclasses.replace(m.flow_head, batch_mul=config.loss.draws * _HEAD_PASSES)
        flops = 2 * transformer_forward(m.transformer, work)
        flops += flow_head_forward(head, m.token_channels, m.transformer.width, work.image_targets)
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
) -> tuple[FewStepTerms, Array]:
    """The terms [B, n, M] of every image target, and which slots are taken [B, n]."""

    def call(method: str, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    _, weights = target_weights(batch)
    indices, mask, _ = gather_positions(weights, slots)

    def gather(values: Array) -> Array:
        return jnp.take_along_axis(values, indices[..., None], axis=1).reshape(-1, values.shape[-1])

    with jax.named_scope("transformer"):
        states = [call("__call__", seen) for seen in (batch, without_text(batch, model.config.image_area_id))]
        conditions = [jax.lax.stop_gradient(call("project_out", gather(hidden))) for hidden in states]
    data = jnp.repeat(gather(jnp.roll(batch.image_tokens, -1, axis=1)), settings.draws, axis=0)

    of_times, of_noise, of_strength = jax.random.split(key, 3)
    points = data.shape[0]
    s, t = draw_times(of_times, points)
    noise = jax.random.normal(of_noise, (2, *data.shape))
    guidance = jnp.exp(jax.random.uniform(of_strength, (points,)) * jnp.log(settings.max_guidance))

    def velocity(x: Array, t: Array) -> Array:
        """The first head's, guided."""
        both = call("velocity", jnp.tile(x, (2, 1)), jnp.tile(t, 2), jnp.concatenate(conditions))
        return guide(both, guidance[:, None], 1.0, 2)

    def average_velocity(x: Array, s: Array, t: Array) -> Array:
        return call("average_velocity", x, s, t, *conditions, guidance)

    with jax.named_scope("few_step"):
        if settings.method == "regression":
            terms = regression_terms(average_velocity, velocity, noise[0])
        else:
            x_s, x_t = interpolate(data, noise[0], s), interpolate(data, noise[1], t)
            arguments = (average_velocity, velocity, x_s, x_t, s, t)
            if settings.method == "shortcut":
                terms = shortcut_terms(*arguments)
            else:
                terms = lagrangian_terms(*arguments, settings.normalize_power)
    return jax.tree.map(lambda value: value.reshape(*indices.shape, settings.draws), terms), mask


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
