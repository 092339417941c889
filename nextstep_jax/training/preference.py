"""The preference stage: Diffusion-DPO on images that the model made itself, and on its plans (paper section 6.3.3).

The reference is the model that training starts from. Its errors are computed from the same draws, before each step or all of
them before the first, so that the step itself costs what one on twice the rows does, and the reference needs no gradient, no
optimizer and no average.

Letters: B rows, P pairs of a row, n slots of the image head, M draws, C channels of an image token.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nextstep_jax.batch import PairedBatch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.objectives.multitask import draw_noise, target_losses
from nextstep_jax.objectives.preference import PairErrors, pair_errors, pair_weights, preference_terms
from nextstep_jax.sharding.mesh import global_batch
from nextstep_jax.training import multitask
from nextstep_jax.training.few_step import without_text
from nextstep_jax.training.flops import multitask_flops, work_of
from nextstep_jax.training.init import initial_params
from nextstep_jax.training.post_training_settings import PreferenceConfig
from nextstep_jax.training.stage import Collect, DataIterator, Stage
from nextstep_jax.training.step import Objective, WeightedMean
from nextstep_jax.training.vocabulary import open_vocabulary

Array = jax.Array

_DRAW_FOLD = 3  # draws of a step, beside the keys that the step itself folds


class PreferenceBatch(NamedTuple):
    """What a step learns from; every array begins with B.

    Attributes:
      pairs: (PairedBatch, kinds [B, S]).
      noise, t: [B, n, M, C] and [B, n, M].
      reference: the reference's errors under these draws.
      unconditional: see `unconditional_errors`; 0 in steps after which nothing is logged.
    """

    pairs: tuple[PairedBatch, Any]
    noise: Array
    t: Array
    reference: PairErrors
    unconditional: Array


def make_stage(config: PreferenceConfig) -> Stage:
    """The stage a config describes. InputError names an option whose model, vocabulary or data does not fit the others."""
    model = config.model
    vocabulary = open_vocabulary(config.data.vocabulary, config.init.checkpoint)
    vocabulary.require_match(model)
    objective = make_objective(config)

    def training_data() -> DataIterator:
        return multitask.open_data(config, model, vocabulary, pairs=True)

    def validation_data() -> DataIterator:
        return multitask.open_validation_data(config, model, vocabulary, pairs=True)

    return Stage(
        objective=objective,
        training_data=training_data,
        validation_data=validation_data if config.data.validation else None,
        inference=functools.partial(multitask.inference, config, vocabulary),
        draw_samples=functools.partial(multitask.draw_samples, config, vocabulary),
        export=functools.partial(multitask.export, config, model, vocabulary),
        collector=functools.partial(open_collector, config, objective, training_data),
    )


def make_objective(config: PreferenceConfig) -> Objective:
    """Parameters and loss. Batches are `PreferenceBatch`es."""
    model, limits = NextStep(config.model), max_targets(config)
    slots = limits["max_image_targets"]

    def init(key: Array) -> dict:
        return {"model": init_params(config.model, key)}

    def normalizers(batch: PreferenceBatch):
        return jnp.sum(pair_weights(batch.pairs[0], slots))

    def loss(params, batch: PreferenceBatch, key: Array, normalizers):
        packed, _ = batch.pairs
        errors = pair_errors(model, params["model"], packed, batch.noise, batch.t, **limits)
        names = ("beta", "beta_text", "winner_weight", "winner_text_weight")
        strengths = {name: getattr(config.loss, name) for name in names}
        terms = preference_terms(errors, batch.reference, **strengths)
        weights = pair_weights(packed, errors.winner.shape[1])
        means = {
            f"preference/{name}": WeightedMean(jnp.sum(weights * value), jnp.sum(weights))
            for name, value in terms._asdict().items()
        }
        means["preference/unconditional_error"] = WeightedMean(*jnp.sum(batch.unconditional, axis=0))
        return jnp.sum(weights * terms.loss) / jnp.maximum(normalizers, 1), means

    def counts(batch: PreferenceBatch):
        packed, _ = batch.pairs
        rows = packed.interleaved()
        work = work_of(rows)
        if not config.loss.with_text:
            work = work._replace(text_targets=0.0)
        return {
            "positions": jnp.float32(rows.text_ids.size),
            "tokens": jnp.float32(work.tokens),
            "images": 2 * jnp.sum(pair_weights(packed, slots)),
            # The reference's forward pass is a third of the model's forward and backward passes.
            "flops": jnp.float32(multitask_flops(config.model, work)) * 4 / 3,
        }

    return Objective(init, normalizers, loss, counts, batch_axes=("batch", "sequence"))


def max_targets(config: PreferenceConfig) -> dict[str, int]:
    """The most targets of each head in a row; no text ones where nothing is learned from text."""
    limits = multitask.max_targets(config)
    return limits if config.loss.with_text else limits | {"max_text_targets": 0}


def open_collector(
    config: PreferenceConfig, objective: Objective, training_data: Callable[[], DataIterator], key: Array
) -> Collect:
    """What adds a step's draws and the reference's errors to a batch; the reference lies on the mesh as the parameters do.

    Args:
      training_data: opens the run's batches at their start, for errors that are computed ahead.
      key: the run's, which also initializes a model that starts from no checkpoint.
    """
    model, limits, mesh = NextStep(config.model), max_targets(config), jax.sharding.get_mesh()
    slots = limits["max_image_targets"]

    def draw(packed: PairedBatch, step: Array, key: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.fold_in(key, _DRAW_FOLD), step)
        shape = (packed.shape[0], slots, config.loss.draws, config.model.token_channels)
        return draw_noise(key, *shape, timesteps=config.loss.timesteps)

    @jax.jit
    def reference_errors(reference, step: Array, packed: PairedBatch, key: Array) -> PairErrors:
        noise, t = draw(packed, step, key)
        return pair_errors(model, reference["model"], packed, noise, t, **limits)

    @jax.jit
    def complete(errors: PairErrors, params, step: Array, batch, key: Array) -> PreferenceBatch:
        packed, _ = batch
        noise, t = draw(packed, step, key)
        unconditional = jax.lax.cond(
            (step + 1) % config.log_every == 0,
            lambda: unconditional_errors(config.model, params["model"], packed, noise, t, slots),
            lambda: jnp.zeros((packed.shape[0], 2)),
        )
        return PreferenceBatch(batch, noise, t, errors, unconditional)

    reference = initial_params(config.init, objective.init, key, mesh)
    if config.reference == "copy":

        def collect(state, batch, key: Array) -> PreferenceBatch:
            errors = reference_errors(reference, state.step, batch[0], key)
            return complete(errors, state.params, state.step, batch, key)

        return collect
    with contextlib.closing(training_data()) as data:
        every = []
        for step, host_batch in zip(range(config.steps), data, strict=False):
            packed, _ = global_batch(host_batch.arrays, mesh, objective.batch_axes)
            every.append(reference_errors(reference, jnp.int32(step), packed, key))
    ahead = jax.jit(lambda every: jax.tree.map(lambda *errors: jnp.stack(errors), *every))(every)
    pick = jax.jit(lambda ahead, step: jax.tree.map(lambda errors: errors[step], ahead))
    return lambda state, batch, key: complete(pick(ahead, state.step), state.params, state.step, batch, key)


def unconditional_errors(
    config: NextStepConfig,
    params: dict,
    batch: PairedBatch,
    noise: Float[Array, "B n M C"],
    t: Float[Array, "B n M"],
    max_image_targets: int,
) -> Float[Array, "B 2"]:
    """The winners' errors where their text is out of sight, summed over each row's tokens, and how many these are: guidance
    leans on a branch of the model that no preference is about.
    """
    winners, limits = without_text(batch.winners, config.image_area_id), {"max_image_targets": max_image_targets}
    _, targets = target_losses(NextStep(config), params, winners, noise, t, max_text_targets=0, **limits)
    return jnp.stack([jnp.sum(targets.losses * targets.weights, axis=1), jnp.sum(targets.weights, axis=1)], axis=1)
