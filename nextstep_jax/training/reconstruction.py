"""The image tokenizer's stage: reconstruct pictures from normalized, perturbed latents (paper section 4.2).

Letters: B pictures.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data.images import to_uint8
from nextstep_jax.data.pixels import PixelBatches
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from nextstep_jax.models.image_tokenizer import ImageTokenizer, perturb, sample_posterior
from nextstep_jax.training.config import image_tokenizer_config
from nextstep_jax.training.flops import reconstruction_flops
from nextstep_jax.training.stage import Loaded, Stage, picture_grid
from nextstep_jax.training.step import Mean, Task

Array = jax.Array

SAMPLES = 8  # pictures in a grid of originals above reconstructions


def make_stage(config: ConfigDict) -> Stage:
    """The stage a config describes. InputError names an option whose model or data does not fit."""
    tokenizer = image_tokenizer_config(config.image_tokenizer)
    if not config.data.sources:
        raise InputError("config.data.sources: name at least one source of pictures")
    return Stage(
        task=make_task(tokenizer, config.data.height, config.data.width),
        training_data=functools.partial(open_data, config, config.data.sources),
        validation_data=functools.partial(open_data, config, config.data.validation) if config.data.validation else None,
        draw_samples=functools.partial(draw_samples, config, tokenizer),
        export=functools.partial(export, tokenizer),
    )


# --- loss -------------------------------------------------------------------------------------------------------------


def make_task(tokenizer: ImageTokenizerConfig, height: int, width: int) -> Task:
    """Parameters and loss. Batches are pixels [B, height, width, 3] uint8."""
    model = ImageTokenizer(tokenizer)

    def init(key: Array) -> dict:
        pixels = jnp.zeros((1, height, width, tokenizer.in_channels))
        return {"image_tokenizer": model.init(key, pixels)["params"]}

    def totals(pixels: Array) -> int:
        return pixels.shape[0]

    def loss(params, pixels: Array, key: Array, pictures: int):
        x = to_float(pixels)
        keys = jax.random.split(key, 3)
        p = {"params": params["image_tokenizer"]}
        posterior = model.apply(p, x, method="encode")
        z = sample_posterior(posterior, jax.random.normal(keys[0], posterior.mean.shape), tokenizer)
        alpha = tokenizer.perturbation * jax.random.uniform(keys[1], (len(x),))
        y = model.apply(p, perturb(z, alpha, jax.random.normal(keys[2], z.shape)), method="decode")
        l1 = jnp.abs(x - y).mean((1, 2, 3)).sum() / pictures
        l2 = jnp.square(x - y).mean((1, 2, 3)).sum() / pictures
        return l1 + l2, {"l1": Mean(l1, 1.0), "l2": Mean(l2, 1.0)}

    def counts(pixels: Array):
        images = jnp.float32(pixels.shape[0])
        return {"images": images, "flops": images * reconstruction_flops(tokenizer, *pixels.shape[1:3])}

    return Task(init, totals, loss, counts, batch_axes=("batch",))


def to_float(pixels: Array) -> Array:
    """uint8 levels to [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


# --- data -------------------------------------------------------------------------------------------------------------


class PixelData:
    """Pictures as the loop takes them, and their names."""

    def __init__(self, batches: PixelBatches):
        self._batches = batches
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __iter__(self) -> "PixelData":
        return self

    def __next__(self) -> Loaded:
        batch = next(self._batches)
        return Loaded(batch.pixels, batch.keys)


def open_data(config: ConfigDict, sources: tuple[str, ...]) -> PixelData:
    """This host's pictures of the given sources, from their start."""
    data, hosts = config.data, jax.process_count()
    if data.batch_size % (hosts * config.accumulation):
        raise InputError(
            f"config.data.batch_size ({data.batch_size}) is not a multiple of {hosts} hosts x accumulation {config.accumulation}"
        )
    placement = {"process_index": jax.process_index(), "process_count": hosts, "workers": data.workers}
    opened = [open_source(source) for source in sources]
    return PixelData(PixelBatches(opened, data.batch_size // hosts, data.height, data.width, seed=config.seed, **placement))


# --- what comes out ---------------------------------------------------------------------------------------------------


def draw_samples(config: ConfigDict, tokenizer: ImageTokenizerConfig, params: dict) -> np.ndarray:
    """Originals and below them their reconstructions: [2 * height, n * width, 3] uint8."""
    data = open_data(config, config.data.validation or config.data.sources)
    pixels = next(data).arrays[:SAMPLES]
    data.close()
    made = jax.jit(ImageTokenizer(tokenizer).apply)({"params": params["image_tokenizer"]}, to_float(jnp.asarray(pixels)))
    return picture_grid([*pixels, *to_uint8(np.asarray(made))], columns=len(pixels))


def export(tokenizer: ImageTokenizerConfig) -> tuple[dict, dict, dict[str, bytes]]:
    """What stands beside the trained parameters in a checkpoint folder: the config."""
    return {}, {"model": None, "image_tokenizer": tokenizer.to_released()}, {}
