"""The multitask stage: NextStep on packed mixed sequences (paper sections 4.2 and 4.3).

Letters: B rows, S positions.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax import checkpoints, storage
from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.augment import AS_STORED
from nextstep_jax.data.data_shards import DataShards, EndingDataShards
from nextstep_jax.data.mixture import BatchIterator
from nextstep_jax.data.packing import PackedBatch, count_metrics
from nextstep_jax.data.prefetch import split_evenly
from nextstep_jax.data.sequence import KIND_IDS
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.streams import MixtureComponent, PackingConfig
from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation.load import load_image_tokenizer
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.models.param_layouts import fuse_projections
from nextstep_jax.objectives.multitask import Targets, add_input_noise, count_normalizers, draw_noise, multitask_loss
from nextstep_jax.training.data_settings import SourceConfig
from nextstep_jax.training.flops import multitask_flops, work_of
from nextstep_jax.training.hosts import local_data_shards, on_any_process
from nextstep_jax.training.init import to_canonical
from nextstep_jax.training.settings import ModelRunConfig, MultitaskConfig, MultitaskLossConfig
from nextstep_jax.training.stage import Export, HostBatch, Stage, image_grid
from nextstep_jax.training.step import Objective, WeightedMean
from nextstep_jax.training.vocabulary import open_vocabulary

Array = jax.Array

_INPUT_NOISE_FOLD = 2  # beside the keys that `draw_noise` splits off, which are 0 and 1
_THREADS = 16  # reader threads of a host, shared out over its streams...
_STREAM_THREADS = 4  # ...of which each has so many at least: it may have a bucket to wait for


def make_stage(config: MultitaskConfig) -> Stage:
    """The stage a config describes. InputError names an option whose model, vocabulary or data does not fit the others."""
    model = config.model
    vocabulary = open_vocabulary(config.data.vocabulary, config.init.checkpoint)
    vocabulary.require_match(model)
    return Stage(
        objective=make_objective(model, **max_targets(config), settings=config.loss),
        training_data=functools.partial(open_data, config, model, vocabulary),
        validation_data=functools.partial(open_validation_data, config, model, vocabulary) if config.data.validation else None,
        inference=functools.partial(inference, config, vocabulary),
        draw_samples=functools.partial(draw_samples, config, vocabulary),
        export=functools.partial(export, config, model, vocabulary),
    )


# --- loss -------------------------------------------------------------------------------------------------------------


def make_objective(
    model_config: NextStepConfig,
    max_text_targets: int,
    max_image_targets: int,
    settings: MultitaskLossConfig,
) -> Objective:
    """Parameters and loss. Batches are (Batch, kinds [B, S]).

    Args:
      max_text_targets, max_image_targets: the most targets of each head in a row.
    """
    model = NextStep(model_config)
    limits = {"max_text_targets": max_text_targets, "max_image_targets": max_image_targets}

    def init(key: Array) -> dict:
        return {"model": init_params(model_config, key)}

    def normalizers(batch):
        return count_normalizers(batch[0], **limits)

    def loss(params, batch, key: Array, normalizers):
        batch, kinds = batch
        draws = (batch.shape[0], max_image_targets, model_config.flow_head.batch_mul, model_config.token_channels)
        noise, t = draw_noise(key, *draws, timesteps=settings.timesteps)
        strength, input_tokens = model_config.input_noise, None
        if strength:
            input_tokens = add_input_noise(jax.random.fold_in(key, _INPUT_NOISE_FOLD), batch, strength)
        value, parts = multitask_loss(
            model,
            params["model"],
            batch,
            noise,
            t,
            normalizers=normalizers,
            token_length_weight=settings.token_length_weight,
            error_target=settings.error_target,
            input_tokens=input_tokens,
            **limits,
        )
        means = mean_losses("text", parts.text, kinds) | mean_losses("image", parts.image, kinds)
        return value, means

    def counts(batch):
        batch, _ = batch
        work = work_of(batch)
        starts = (batch.text_ids == model_config.begin_of_image_id) & (batch.segment_ids > 0)
        return {
            "positions": jnp.float32(batch.text_ids.size),
            "tokens": jnp.float32(work.tokens),
            "images": jnp.float32(starts.sum()),
            "flops": jnp.float32(multitask_flops(model_config, work)),
        }

    return Objective(init, normalizers, loss, counts, batch_axes=("batch", "sequence"))


def max_targets(config: MultitaskConfig) -> dict[str, int]:
    """The most text and image targets of a row, from `config.max_target_fraction`."""
    fractions = {"max_text_targets": config.max_target_fraction.text, "max_image_targets": config.max_target_fraction.image}
    return {name: round(fraction * config.data.seq_len) for name, fraction in fractions.items()}


def mean_losses(name: str, targets: Targets, kinds: Array) -> dict[str, WeightedMean]:
    """The mean loss of a head's targets, altogether and by kind of data, and how many targets found no place (a mean over
    parts).
    """
    kind = jnp.take_along_axis(kinds, targets.positions, axis=1, mode="clip")

    def mean(weights: Array) -> WeightedMean:
        return WeightedMean(jnp.sum(weights * targets.losses), jnp.sum(weights))

    means = {f"{name}_loss/{label}": mean(targets.weights * (kind == number)) for label, number in KIND_IDS.items()}
    return means | {
        f"{name}_loss": mean(targets.weights),
        f"{name}_targets_dropped": WeightedMean(targets.dropped.astype(jnp.float32), 1.0),
    }


# --- data -------------------------------------------------------------------------------------------------------------


def open_components(root: str, sources: Mapping[str, SourceConfig], as_stored: bool = False) -> list[MixtureComponent]:
    """The sources that have a weight, in the order of their names. InputError names one that cannot be opened."""
    components = []
    for name, settings in sorted(sources.items()):
        if not settings.weight:
            continue
        path = settings.path if ":" in settings.path else str(storage.as_given(root) / settings.path)
        augmentation = AS_STORED if as_stored else settings.augmentation
        source = open_source(path, settings.kind or None)
        components.append(MixtureComponent(source, settings.weight, augmentation, settings.thinking, name))
    return components


def packing_config(config: MultitaskConfig, model: NextStepConfig, data_shard: int, **changes) -> PackingConfig:
    """How a data shard packs its rows of the step's batch."""
    data = config.data
    fields = {
        "batch_size": data.batch_size // data.data_shards,
        "seq_len": data.seq_len,
        "channels": model.token_channels,
        "patch": model.patch,
        "seed": config.seed,
        "data_shard": data_shard,
        "data_shards": data.data_shards,
        "grids": data.grids or None,
        "packing_buffer": data.packing_buffer,
        "max_skipped": data.max_skipped,
        "max_oversized": data.max_oversized,
    }
    if not data.grids:  # packing as the release does it knows no limit on targets: those beyond it are counted
        fields |= max_targets(config)
    return PackingConfig(**fields | changes)


PackedData = DataShards[PackedBatch, HostBatch]


def open_data(config: MultitaskConfig, model: NextStepConfig, vocabulary: Vocabulary, **changes) -> PackedData:
    """The training mixture, from its start. `changes` are fields of PackingConfig."""
    components, mine = open_components(config.data.root, config.data.sources), local_data_shards(config)
    settings = {
        "epochs": config.data.epochs or None,
        "threads": max(_STREAM_THREADS, _THREADS // (len(mine) * len(components))),
    } | changes
    shards = {}
    for n, workers in zip(mine, split_evenly(config.data.workers, len(mine)), strict=True):
        shards[n] = BatchIterator(components, vocabulary, packing_config(config, model, n, workers=workers, **settings))
    if config.data.epochs:
        return EndingDataShards(shards, config.data.data_shards, _collate, on_any_process)
    return DataShards(shards, config.data.data_shards, _collate)


def open_validation_data(config: MultitaskConfig, model: NextStepConfig, vocabulary: Vocabulary, **changes) -> PackedData:
    """The validation mixture: stored order, no augmentation, the same batches every time."""
    components = open_components(config.data.root, config.data.validation, as_stored=True)
    shards = {
        n: BatchIterator(components, vocabulary, packing_config(config, model, n, shuffle=False, **changes))
        for n in local_data_shards(config)
    }
    return DataShards(shards, config.data.data_shards, _collate)


def _collate(packed: list[PackedBatch]) -> HostBatch:
    """(Batch, kinds) of all data shards' rows, the names of their samples, and what was left out."""
    arrays = jax.tree.map(lambda *parts: np.concatenate(parts), *[(part.batch, part.kinds) for part in packed])
    names = tuple(key for part in packed for row in part.keys for key in row)
    return HostBatch(arrays, names, count_metrics([part.counts for part in packed]))


# --- what comes out ---------------------------------------------------------------------------------------------------


def tokenizer_checkpoint(config: ModelRunConfig) -> str:
    """The folder whose image tokenizer goes with the model; "" if none is known."""
    return config.image_tokenizer_checkpoint or config.init.checkpoint


def inference(config: ModelRunConfig, vocabulary: Vocabulary, params: dict) -> Pipeline:
    """The model in training, ready to generate with the settings of `config.samples.generation`.

    Raises:
      InputError: no image tokenizer is named.
    """
    folder = tokenizer_checkpoint(config)
    if not folder:
        raise InputError("generating needs config.image_tokenizer_checkpoint, a folder with an image tokenizer")
    tokenizer, tokenizer_params = load_image_tokenizer(folder)
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:  # beside the model's, on every device
        tokenizer_params = jax.device_put(tokenizer_params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return Pipeline(
        config=config.model.with_transformer(scan_layers=False, remat="none", fused_projections=True),
        params=jax.jit(lambda p: fuse_projections(to_canonical(p)["model"]))({"model": params["model"]}),
        tokenizer_config=tokenizer,
        tokenizer_params=tokenizer_params,
        special=vocabulary.special,
        vocabulary=vocabulary,
        overrides=dict(config.samples.generation),
        name="the model in training",
    )


def draw_samples(config: ModelRunConfig, vocabulary: Vocabulary, params: dict) -> np.ndarray:
    """Images of the config's prompts, side by side: [height, width, 3] uint8."""
    images = inference(config, vocabulary, params).generate(list(config.samples.prompts))
    return image_grid([image.pixels for image in images])


def export(config: ModelRunConfig, model: NextStepConfig, vocabulary: Vocabulary) -> Export:
    """The image tokenizer's folder, the configs, the text tokenizer."""
    folder = tokenizer_checkpoint(config)
    stored = checkpoints.load_config(folder) if folder else {}
    values = {"model": model.to_released(), "image_tokenizer": stored.get("image_tokenizer")}
    if config.samples.generation:
        values["generation"] = dict(config.samples.generation)
    return Export(folder or None, values, {"tokenizer.json": vocabulary.to_bytes()})
