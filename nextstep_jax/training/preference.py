"""The preference stage: Diffusion-DPO on images that the model made itself (paper section 6.3.3).

The reference is the model that training starts from. Its errors are computed from the same draws before each step, so that the
step itself costs what one on twice the rows does, and the reference needs no gradient, optimizer or average.

Letters: B rows, P pairs of a row, n slots of the image head, M draws, C channels of an image token.
"""

import functools

import jax
import jax.numpy as jnp

from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.objectives.multitask import draw_noise
from nextstep_jax.objectives.preference import PairErrors, pair_errors, pair_weights, preference_terms, split_pairs
from nextstep_jax.training import multitask
from nextstep_jax.training.flops import multitask_flops, work_of
from nextstep_jax.training.init import initial_params
from nextstep_jax.training.post_training_settings import PreferenceConfig
from nextstep_jax.training.stage import Collect, DataIterator, Stage
from nextstep_jax.training.step import Objective, WeightedMean
from nextstep_jax.training.vocabulary import open_vocabulary

Array = jax.Array

_DRAW_FOLD = 3  # draws of a step, beside the keys that the step itself folds


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
        collector=functools.partial(open_collector, config, objective),
    )


def make_objective(config: PreferenceConfig) -> Objective:
    """Parameters and loss. Batches are (Batch, kinds [B, S]) of pairs, to which the collector adds noise [B, n, M, C], times
    [B, n, M] and the reference's errors.
    """
    model = NextStep(config.model)
    slots = multitask.max_targets(config)["max_image_targets"]

    def init(key: Array) -> dict:
        return {"model": init_params(config.model, key)}

    def normalizers(batch):
        (batch, _), *_ = batch
        return jnp.sum(pair_weights(batch, slots))

    def loss(params, batch, key: Array, normalizers):
        (batch, _), noise, t, reference = batch
        errors = pair_errors(model, params["model"], batch, noise, t, slots)
        terms = preference_terms(errors, reference, beta=config.loss.beta, winner_weight=config.loss.winner_weight)
        weights = pair_weights(batch, errors.winner.shape[1])
        means = {
            f"preference/{name}": WeightedMean(jnp.sum(weights * value), jnp.sum(weights))
            for name, value in terms._asdict().items()
        }
        return jnp.sum(weights * terms.loss) / jnp.maximum(normalizers, 1), means

    def counts(batch):
        (batch, _), *_ = batch
        rows = split_pairs(batch)
        work = work_of(rows)._replace(text_targets=0.0)
        return {
            "positions": jnp.float32(rows.text_ids.size),
            "tokens": jnp.float32(work.tokens),
            "images": 2 * jnp.sum(pair_weights(batch, slots)),
            # The reference's forward pass is a third of the model's forward and backward passes.
            "flops": jnp.float32(multitask_flops(config.model, work)) * 4 / 3,
        }

    return Objective(init, normalizers, loss, counts, batch_axes=("batch", "sequence"))


def open_collector(config: PreferenceConfig, objective: Objective, key: Array) -> Collect:
    """What adds a step's draws and the reference's errors to a batch; the reference lies on the mesh as the parameters do.

    Args:
      key: the run's, which also initializes a model that starts from no checkpoint.
    """
    model, slots = NextStep(config.model), multitask.max_targets(config)["max_image_targets"]
    reference = initial_params(config.init, objective.init, key, jax.sharding.get_mesh())

    @jax.jit
    def complete(reference, step: Array, batch, key: Array):
        packed, _ = batch
        key = jax.random.fold_in(jax.random.fold_in(key, _DRAW_FOLD), step)
        shape = (packed.shape[0], slots, config.loss.draws, config.model.token_channels)
        noise, t = draw_noise(key, *shape, timesteps=config.loss.timesteps)
        errors: PairErrors = pair_errors(model, reference["model"], packed, noise, t, slots)
        return batch, noise, t, errors

    return lambda state, batch, key: complete(reference, state.step, batch, key)
