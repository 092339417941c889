"""The online stages: the model learns from images that it makes itself in each step, scored by rewards.

    prompts -> rollouts -> rewards -> advantages -> one update

"nft" is forward-process learning (DiffusionNFT): finished images and one number for each are all it needs. "grpo" weighs the
log-probability of one sampler step of each token, as NextStep-1.1's report describes it: drawn token by token, without
guidance; one trained flow step, the same for all tokens; log-probabilities recomputed in one parallel pass; one update for each
rollout.

Rollouts and rewards are the collector's work, between data and step. Groups of which an image could not be scored, and those
that teach nothing, keep their places in the batch with a weight of 0: shapes never change.

Letters: P prompts, G images of a prompt, R rows, n tokens, M points of a token, C channels of a token.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextstep_jax.batch import Batch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.flow.likelihood import Transition, kl, log_ratio
from nextstep_jax.flow.paths import interpolate
from nextstep_jax.flow.samplers import timesteps
from nextstep_jax.generation import rollouts
from nextstep_jax.generation.config import GenerationConfig, recommended
from nextstep_jax.generation.load import read_configs
from nextstep_jax.generation.sizes import image_grid
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.objectives import policy_gradient
from nextstep_jax.objectives.multitask import draw_noise
from nextstep_jax.rewards.combine import RewardTerm
from nextstep_jax.sharding.mesh import global_batch
from nextstep_jax.sharding.params import state_shardings
from nextstep_jax.sharding.rules import spec_entry
from nextstep_jax.training import multitask
from nextstep_jax.training.candidates import CandidatePrompt
from nextstep_jax.training.flops import flow_head_forward, multitask_flops, transformer_forward, work_of
from nextstep_jax.training.hosts import local_data_shards
from nextstep_jax.training.image_scores import Scores, local_rows, open_decoder, open_terms, score
from nextstep_jax.training.init import initial_params, to_canonical
from nextstep_jax.training.post_training_settings import GrpoLossConfig, NftLossConfig, OnlineConfig
from nextstep_jax.training.prompts import PromptData, frame_prompts, open_prompts
from nextstep_jax.training.stage import Collect, DataIterator, Stage
from nextstep_jax.training.step import Objective, WeightedMean
from nextstep_jax.training.vocabulary import open_vocabulary

Array = jax.Array

_ROLLOUT_FOLD, _CHOICE_FOLD, _DRAW_FOLD = 4, 5, 6  # beside the keys that the step itself folds


class OnlineBatch(NamedTuple):
    """What a step learns from; every array begins with R.

    Attributes:
      rows, lengths: the finished sequences, and how long their prompts are.
      tokens: [R, n, C] as the transformer reads them.
      points, t: [R, n, M, C] and [R, n, M], where the velocity is asked for.
      noise: [R, n, M, C] that the points (NFT) or the steps from them (GRPO) were made with.
      steps: [R, M, 3], a, b and d of the trained steps; None for NFT.
      advantage, weight: [R]; a weight of 0 leaves the row out.
      old, reference: [R, n, M, C] velocities of the old policy and of the reference; None where there is none of its own.
      statistics, scored: [R] each, numbers about the whole rollout, and the fraction of its groups that was scored.
    """

    rows: Batch
    lengths: Array
    tokens: Array
    points: Array
    t: Array
    noise: Array
    steps: Array | None
    advantage: Array
    weight: Array
    old: Array | None
    reference: Array | None
    statistics: dict[str, Array]
    scored: Array


def make_stage(config: OnlineConfig) -> Stage:
    """The stage a config describes. InputError names an option whose model, prompts, rewards or tokenizers do not fit."""
    model = config.model
    vocabulary = open_vocabulary(config.data.vocabulary, config.init.checkpoint)
    vocabulary.require_match(model)
    folder = multitask.tokenizer_checkpoint(config)
    if not folder:
        raise InputError("config.image_tokenizer_checkpoint: rewards see images, name a folder with an image tokenizer")
    terms = open_terms(config.rewards)
    settings = generation_settings(config)
    _, tokenizer, _ = read_configs(folder)
    if tokenizer is None:
        raise InputError(f"{folder}: has no image tokenizer")
    grid = image_grid(settings, tokenizer.downsample * model.patch)
    objective = make_objective(config)
    prompts, chances = open_prompts(config.data.root, config.data.sources)
    held_out, held_out_chances = open_prompts(config.data.root, config.data.validation)
    everything = [*prompts, *held_out]
    rows = frame_prompts(everything, settings.prompt_suffix, *grid, model, vocabulary)

    def data(chances: np.ndarray) -> DataIterator:
        shards = local_data_shards(config)
        size = config.data.batch_size // config.data.data_shards
        mine = [row for shard in shards for row in range(shard * size, (shard + 1) * size)]
        names = [prompt.text for prompt in everything]
        return PromptData(rows, chances, config.data.batch_size, mine, config.seed, names)

    none = np.zeros(len(prompts)), np.zeros(len(held_out))
    return Stage(
        objective=objective,
        training_data=functools.partial(data, np.concatenate([chances, none[1]])),
        validation_data=functools.partial(data, np.concatenate([none[0], held_out_chances])) if held_out else None,
        inference=functools.partial(multitask.inference, config, vocabulary),
        draw_samples=functools.partial(multitask.draw_samples, config, vocabulary),
        export=functools.partial(multitask.export, config, model, vocabulary),
        collector=functools.partial(open_collector, config, objective, everything, terms, settings, grid),
    )


def generation_settings(config: OnlineConfig) -> GenerationConfig:
    """The model's own settings, as far as rollouts follow them: size, prompt suffix, shift and the norm of tokens."""
    settings = recommended(config.model.release, dict(config.samples.generation))
    return settings.replace(image_size=config.rollouts.image_size or None)


# --- loss -------------------------------------------------------------------------------------------------------------


def make_objective(config: OnlineConfig) -> Objective:
    """Parameters and loss. Batches are `OnlineBatch`es."""
    model, settings = NextStep(config.model), config.loss

    def init(key: Array) -> dict:
        return {"model": init_params(config.model, key)}

    def normalizers(batch: OnlineBatch):
        return jnp.sum(batch.weight)

    def loss(params, batch: OnlineBatch, key: Array, normalizers):
        velocity = policy_gradient.token_velocities(model, params["model"], batch.rows, batch.lengths, batch.points, batch.t)
        old = jax.lax.stop_gradient(velocity) if batch.old is None else batch.old
        losses, values = image_losses(settings, batch, velocity, old)
        if batch.reference is not None:
            distance = jnp.mean(jnp.square(velocity - jax.lax.stop_gradient(batch.reference)), axis=(1, 2, 3))
            losses, values = losses + settings.kl_weight * distance, values | {"drift": distance}
        weights = batch.weight
        means = {f"online/{name}": WeightedMean(jnp.sum(weights * v), jnp.sum(weights)) for name, v in values.items()}
        for name, value in batch.statistics.items():
            counted = batch.scored if name.startswith("reward") else jnp.ones_like(value)
            means[name] = WeightedMean(jnp.sum(counted * value), jnp.sum(counted))
        return jnp.sum(weights * losses) / jnp.maximum(normalizers, 1), means

    def counts(batch: OnlineBatch):
        c, work = config.model, work_of(batch.rows)
        head, evaluations = c.flow_head, len(timesteps(config.rollouts.sampler, config.rollouts.steps))
        trained = dataclasses.replace(c, flow_head=dataclasses.replace(head, batch_mul=batch.t.shape[2]))
        flops = multitask_flops(trained, work) * (1 + sum(other is not None for other in (batch.old, batch.reference)) / 3)
        drawn = dataclasses.replace(head, batch_mul=evaluations)
        flops += transformer_forward(c.transformer, work)
        flops += flow_head_forward(drawn, c.token_channels, c.transformer.width, work.image_targets)
        return {
            "positions": jnp.float32(batch.rows.text_ids.size),
            "tokens": jnp.float32(work.tokens),
            "images": jnp.float32(batch.weight.size),
            "flops": jnp.float32(flops),
        }

    return Objective(init, normalizers, loss, counts, batch_axes=("batch",))


def image_losses(settings: Any, batch: OnlineBatch, velocity: Array, old: Array) -> tuple[Array, dict[str, Array]]:
    """The loss [R] of each image, and what there is to say of it."""
    if isinstance(settings, NftLossConfig):
        good = policy_gradient.optimality(batch.advantage)[:, None, None]
        losses = policy_gradient.nft_loss(velocity, old, batch.tokens[:, :, None], batch.noise, batch.t, good, settings.beta)
        moved = jnp.mean(jnp.square(velocity - old), axis=(1, 2, 3))
        return jnp.mean(losses, axis=(1, 2)), {"policy_loss": jnp.mean(losses, axis=(1, 2)), "moved": moved}
    assert isinstance(settings, GrpoLossConfig) and batch.steps is not None
    step = Transition(*(batch.steps[:, None, :, i, None] for i in range(3)))
    scale = policy_gradient.step_weight(settings.weight, step)[..., 0] / velocity.shape[-1]
    log_ratios = jnp.mean(scale * log_ratio(step, velocity, old, batch.noise), axis=1)
    surrogate = policy_gradient.clipped_surrogate(log_ratios, batch.advantage[:, None], settings.clip)
    losses = jnp.mean(surrogate, axis=1)
    values = {"policy_loss": losses, "ratio": jnp.mean(jnp.exp(log_ratios), axis=1)}
    if batch.reference is not None:
        values["kl"] = jnp.mean(kl(step, velocity, batch.reference), axis=(1, 2))
    return losses, values


# --- rollouts ---------------------------------------------------------------------------------------------------------


def open_collector(
    config: OnlineConfig,
    objective: Objective,
    prompts: Sequence[CandidatePrompt],
    terms: Mapping[str, RewardTerm],
    settings: GenerationConfig,
    grid: tuple[int, int],
    key: Array,
) -> Collect:
    """What turns a step's prompts into an `OnlineBatch`. The reference, if there is one, lies on the mesh as the parameters do.

    Args:
      prompts: all of them, by number.
      terms: the rewards by name.
      grid: (h, w) of an image.
      key: the run's, which also initializes a model that starts from no checkpoint.
    """
    mesh, images = jax.sharding.get_mesh(), config.rollouts.images
    reference = initial_params(config.init, objective.init, key, mesh) if config.loss.kl_weight else None
    decode = open_decoder(config, grid, mesh)
    draw, complete = jax.jit(make_draw(config, settings, grid, mesh)), jax.jit(make_complete(config, settings))
    averaged = config.ema_decay > 0 and isinstance(config.loss, NftLossConfig)

    def collect(state, batch: rollouts.PromptRows, key: Array) -> OnlineBatch:
        policy = state.averaged_params if isinstance(config.loss, NftLossConfig) else state.params
        drawn = draw(policy, batch, state.step, key)
        with jax.transfer_guard("allow"):  # rewards are the host's
            pixels = decode(drawn.read)
            scores = score(prompts, terms, local_rows(batch.numbers), pixels.reshape(-1, images, *pixels.shape[1:]))
            scores = global_batch(scores, mesh, objective.batch_axes)
        return complete(policy if averaged else None, reference, drawn, scores, state.step, key)

    return collect


class Drawn(NamedTuple):
    """Rollouts with their prompts, which steps were trained, and the tokens as they are read."""

    prompts: rollouts.PromptRows
    rollouts: rollouts.Rollouts
    trained: Array
    read: Array


def make_draw(
    config: OnlineConfig, settings: GenerationConfig, grid: tuple[int, int], mesh: Mesh
) -> Callable[[Any, rollouts.PromptRows, Array, Array], Drawn]:
    """(parameters, prompts, step, key) -> what the model makes of them."""
    model = config.model.with_transformer(scan_layers=False, remat="none", fused_projections=False)
    sampler = config.rollouts.sampler_config(settings.shift, settings.normalize_tokens)

    def draw(params, prompts: rollouts.PromptRows, step: Array, key: Array) -> Drawn:
        choice = jax.random.fold_in(jax.random.fold_in(key, _CHOICE_FOLD), step)
        trained = rollouts.choose_steps(config.rollouts, choice)
        key = jax.random.fold_in(key, _ROLLOUT_FOLD)
        keys = rollouts.draw_keys(key, step, prompts.numbers, config.rollouts.images, config.rollouts.shared_noise)
        rows = rollouts.repeat_prompts(prompts, config.rollouts.images)
        ready = decoding_params(model, params, mesh)
        drawn = rollouts.draw_rollouts(model, config.rollouts, sampler, ready, rows, keys, trained, grid[0] * grid[1])
        return Drawn(rows, drawn, trained, rollouts.read_tokens(sampler, drawn.tokens))

    return draw


def decoding_params(model: NextStepConfig, params: dict, mesh: Mesh) -> dict:
    """The model's parameters to decode with: unrolled, in the compute dtype, and whole along `fsdp`, since every token reads
    all of them.
    """
    canonical = {"model": to_canonical({"model": params["model"]})["model"]}

    def whole(leaf: Array, sharding: NamedSharding) -> Array:
        of_dims = (entry if isinstance(entry, tuple) else (entry,) for entry in sharding.spec)
        spec = PartitionSpec(*(spec_entry(tuple(axis for axis in axes if axis not in (None, "fsdp"))) for axes in of_dims))
        return jax.lax.with_sharding_constraint(leaf.astype(model.transformer.dtype), NamedSharding(mesh, spec))

    return jax.tree.map(whole, canonical, state_shardings(canonical, mesh))["model"]


def make_complete(config: OnlineConfig, settings: GenerationConfig) -> Callable[..., OnlineBatch]:
    """(old parameters or None, reference or None, what was drawn, its scores, step, key) -> the batch of a step."""
    model, loss, groups = NextStep(config.model), config.loss, config.data.train_prompts
    images = config.rollouts.images

    def complete(old, reference, drawn: Drawn, scores: Scores, step: Array, key: Array) -> OnlineBatch:
        kept = policy_gradient.informative(scores.totals, scores.valid, min_spread=loss.min_spread, max_mean=loss.max_mean)
        advantage = policy_gradient.advantages(scores.totals, scores.valid, loss.deviation)
        statistics = rollout_statistics(scores, kept)
        scored = jnp.mean(scores.valid.astype(jnp.float32))
        if groups:
            first = jnp.argsort(~kept, stable=True)[:groups]
            at = (first[:, None] * images + jnp.arange(images)).reshape(-1)
            prompts, found, read = jax.tree.map(lambda array: array[at], (drawn.prompts, drawn.rollouts, drawn.read))
            advantage, kept = advantage[first], kept[first]
        else:
            prompts, found, read = drawn.prompts, drawn.rollouts, drawn.read
        rows, steps = rollouts.rollout_batch(config.model, prompts, read), None
        if isinstance(loss, NftLossConfig):
            total, tokens, channels = read.shape
            draw_key = jax.random.fold_in(jax.random.fold_in(key, _DRAW_FOLD), step)
            noise, t = draw_noise(draw_key, total, tokens, loss.draws, channels, loss.timesteps)
            points = interpolate(read[:, :, None], noise, t)
        else:
            points, noise = found.states, found.noise
            times = jnp.asarray(timesteps(config.rollouts.sampler, config.rollouts.steps, settings.shift))
            t = jnp.broadcast_to(times[drawn.trained], points.shape[:3])
            table = rollouts.rollout_table(config.rollouts, settings.shift, drawn.trained)[drawn.trained]
            steps = jnp.broadcast_to(table[:, jnp.asarray([0, 1, 3])], (len(read), len(table), 3))

        def of(params) -> Array | None:
            if params is None:
                return None
            return policy_gradient.token_velocities(model, params["model"], rows, prompts.lengths, points, t)

        def each(value: Array) -> Array:
            return jnp.broadcast_to(value, (len(read),))

        return OnlineBatch(
            rows=rows,
            lengths=prompts.lengths,
            tokens=read,
            points=points,
            t=t,
            noise=noise,
            steps=steps,
            advantage=advantage.reshape(-1),
            weight=jnp.repeat(kept.astype(jnp.float32), images),
            old=of(old),
            reference=of(reference),
            statistics=jax.tree.map(each, statistics),
            scored=each(scored),
        )

    return complete


def rollout_statistics(scores: Scores, kept: Array) -> dict[str, Array]:
    """Means of all scored groups: of each reward, and of its deviation within a group; and which fraction of all groups was
    learned from, and which could not be scored.
    """
    weights = scores.valid.astype(jnp.float32)

    def mean(of_group: Array) -> Array:
        return jnp.sum(weights * of_group) / jnp.maximum(jnp.sum(weights), 1)

    found = {}
    for name, values in {"total": scores.totals, **scores.by_name}.items():
        found[f"reward/{name}"] = mean(jnp.mean(values, axis=1))
        found[f"reward_std/{name}"] = mean(jnp.std(values, axis=1))
    return found | {"groups/kept": jnp.mean(kept.astype(jnp.float32)), "groups/not_scored": 1 - jnp.mean(weights)}
