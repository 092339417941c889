"""The image tokenizer's stage: reconstruct images from normalized, perturbed latents (paper section 4.2).

Letters: B images.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data.data_shards import DataShards
from nextstep_jax.data.images import to_float, to_uint8
from nextstep_jax.data.packing import count_metrics
from nextstep_jax.data.pixels import PixelBatch, PixelBatches
from nextstep_jax.data.prefetch import split_evenly
from nextstep_jax.data.sources import open_source
from nextstep_jax.models.image_tokenizer import ImageTokenizer
from nextstep_jax.objectives.reconstruction import Weights, discriminator_loss, draw_noise, reconstruction_loss
from nextstep_jax.training.evals import import_function
from nextstep_jax.training.flops import reconstruction_flops
from nextstep_jax.training.hosts import local_data_shards
from nextstep_jax.training.settings import ReconstructionConfig
from nextstep_jax.training.stage import Export, HostBatch, Stage, image_grid
from nextstep_jax.training.step import Objective, WeightedMean

Array = jax.Array

SAMPLES = 8  # images in a grid of originals above reconstructions


def make_stage(config: ReconstructionConfig) -> Stage:
    """The stage a config describes. InputError names an option whose model, networks or data do not fit."""
    tokenizer, model = config.image_tokenizer, inference(config.image_tokenizer)
    perceptual = import_network(config.loss.perceptual_network, "config.loss.perceptual_network")
    discriminator = import_network(config.loss.discriminator, "config.loss.discriminator")
    return Stage(
        objective=make_objective(tokenizer, config.data.height, config.data.width, config.loss, perceptual, discriminator),
        training_data=functools.partial(open_data, config, config.data.sources),
        validation_data=functools.partial(open_data, config, config.data.validation) if config.data.validation else None,
        inference=model,
        draw_samples=functools.partial(draw_samples, config, model),
        export=functools.partial(export, tokenizer),
    )


def import_network(name: str, option: str) -> Any:
    """What the function "package.module:function" returns; None for "". InputError names `option`."""
    return import_function(name, option)() if name else None


# --- loss -------------------------------------------------------------------------------------------------------------


def make_objective(
    tokenizer: ImageTokenizerConfig,
    height: int,
    width: int,
    weights: Weights,
    perceptual: Callable[[Array, Array], Array] | None = None,
    discriminator: nn.Module | None = None,
) -> Objective:
    """Parameters and loss. Batches are pixels [B, height, width, 3] uint8.

    Args:
      perceptual: (images, reconstructions) -> [B] distances.
      discriminator: images -> logits; its parameters are trained beside the tokenizer's, on its own loss: neither network's
        gradient reaches the other's parameters.
    """
    model = ImageTokenizer(tokenizer)
    adversarial = discriminator is not None and weights.adversarial > 0

    def init(key: Array) -> dict:
        pixels = jnp.zeros((1, height, width, tokenizer.in_channels))
        params = {"image_tokenizer": model.init(key, pixels)["params"]}
        if discriminator is not None and adversarial:
            params["discriminator"] = discriminator.init(jax.random.fold_in(key, 1), pixels)["params"]
        return params

    def normalizers(pixels: Array) -> int:
        return pixels.shape[0]

    def loss(params, pixels: Array, key: Array, total: int):
        images = to_float(pixels)
        draws = draw_noise(key, tokenizer, *pixels.shape[:3])
        judge = None
        if discriminator is not None and adversarial:
            judge = functools.partial(discriminator.apply, {"params": jax.lax.stop_gradient(params["discriminator"])})
        value, parts = reconstruction_loss(
            model,
            params["image_tokenizer"],
            images,
            *draws,
            weights=weights,
            total=total,
            perceptual=perceptual,
            discriminator=judge,
        )
        means = {name: WeightedMean(term, 1.0) for name, term in (parts.terms | {"psnr": parts.psnr}).items()}
        if discriminator is not None and adversarial:
            judge = functools.partial(discriminator.apply, {"params": params["discriminator"]})
            judging = discriminator_loss(judge, images, parts.images) * (pixels.shape[0] / total)
            means["discriminator"] = WeightedMean(judging, 1.0)
            value = value + judging
        return value, {name: WeightedMean(mean.total, pixels.shape[0] / total) for name, mean in means.items()}

    def counts(pixels: Array) -> dict[str, Array]:
        images = jnp.float32(pixels.shape[0])
        return {"images": images, "flops": images * reconstruction_flops(tokenizer, *pixels.shape[1:3])}

    return Objective(init, normalizers, loss, counts, batch_axes=("batch",))


# --- data -------------------------------------------------------------------------------------------------------------


def open_data(config: ReconstructionConfig, sources: tuple[str, ...]) -> DataShards[PixelBatch, HostBatch]:
    """This host's images of the given sources, from their start."""
    data, mine = config.data, local_data_shards(config)
    opened, size = [open_source(source) for source in sources], data.batch_size // data.data_shards
    options: dict[str, Any] = {
        "crop": data.crop,
        "seed": config.seed,
        "data_shards": data.data_shards,
        "max_skipped": data.max_skipped,
    }
    shards = {}
    for n, workers in zip(mine, split_evenly(data.workers, len(mine)), strict=True):
        shards[n] = PixelBatches(opened, size, data.height, data.width, data_shard=n, workers=workers, **options)
    return DataShards(shards, data.data_shards, _collate)


def _collate(batches: list[PixelBatch]) -> HostBatch:
    """The images of all data shards, their names, and what was left out."""
    names = tuple(key for batch in batches for key in batch.keys)
    counts = [{"images": batch.counts} for batch in batches]
    return HostBatch(np.concatenate([batch.pixels for batch in batches]), names, count_metrics(counts))


# --- what comes out ---------------------------------------------------------------------------------------------------


def inference(tokenizer: ImageTokenizerConfig) -> Callable[[dict], Callable[[Array], Array]]:
    """params -> (images [B, height, width, 3] in [-1, 1] -> their reconstructions)."""
    apply = jax.jit(ImageTokenizer(tokenizer).apply)
    return lambda params: functools.partial(apply, {"params": params["image_tokenizer"]})


def draw_samples(config: ReconstructionConfig, model: Callable[[dict], Callable[[Array], Array]], params: dict) -> np.ndarray:
    """Originals and below them their reconstructions: [2 * height, n * width, 3] uint8."""
    with contextlib.closing(open_data(config, config.data.validation or config.data.sources)) as data:
        pixels = next(data).arrays[:SAMPLES]
    made = model(params)(to_float(jnp.asarray(pixels)))
    return image_grid([*pixels, *to_uint8(np.asarray(made))], columns=len(pixels))


def export(tokenizer: ImageTokenizerConfig) -> Export:
    """The config alone."""
    return Export(None, {"model": None, "image_tokenizer": tokenizer.to_released()}, {})
