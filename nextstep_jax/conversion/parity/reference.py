"""What the comparisons share: the golden checkpoint in our form, and batches laid out as the releases lay them out.

Letters: B rows, S positions, C channels of an image token; released latents are [1, channels, height, width].
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion.from_torch import load_released
from nextstep_jax.conversion.parity.report import Goldens
from nextstep_jax.models.image_tokenizer import patchify


@dataclasses.dataclass(frozen=True)
class Reference:
    """The golden model: its config and parameters (canonical form), and the settings it was made with."""

    config: NextStepConfig
    params: dict
    cases: dict

    @classmethod
    def load(cls, goldens: Goldens) -> "Reference":
        folder = goldens.path("tiny_model")
        config, params = load_released(folder)
        return cls(config, jax.tree.map(jnp.asarray, params["model"]), goldens.json("cases.json"))


def image_tokenizer(goldens: Goldens, name: str) -> tuple[ImageTokenizerConfig, dict]:
    """A golden image tokenizer's config and parameters."""
    config, params = load_released(goldens.path(name))
    return config, jax.tree.map(jnp.asarray, params["image_tokenizer"])


@functools.partial(jax.jit, static_argnames=("model", "method"))
def run(model: nn.Module, params: dict, *inputs, method: str | Callable | None = None):
    """A compiled pass of `model`: `method` by name, or a function of the module and the inputs."""
    return model.apply({"params": params}, *inputs, method=method)


def to_nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def to_nchw(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)


def tokens_of(latents: list[np.ndarray], patch: int) -> np.ndarray:
    """Image tokens [n, C] of released latents, image after image."""
    each = [np.asarray(patchify(jnp.asarray(to_nhwc(one)), patch))[0] for one in latents]
    return np.concatenate(each) if each else np.zeros((0, 0), np.float32)


def released_batch(config: NextStepConfig, ids: np.ndarray, latents: list[np.ndarray], mask: np.ndarray | None = None) -> Batch:
    """Rows as the releases run them: positions count pads, and one segment per row where the mask is 1.

    Image positions take the tokens of `latents` in reading order over the flattened batch.
    """
    is_image = ids == config.image_placeholder_id
    image_tokens = np.zeros((*ids.shape, config.token_channels), np.float32)
    if latents:
        image_tokens[is_image] = tokens_of(latents, config.patch)
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    segments = np.ones_like(ids) if mask is None else mask
    zeros = np.zeros(ids.shape, np.float32)
    arrays = (ids.astype(np.int32), image_tokens, is_image, positions.astype(np.int32), segments.astype(np.int32), zeros, zeros)
    return Batch(*map(jnp.asarray, arrays))
