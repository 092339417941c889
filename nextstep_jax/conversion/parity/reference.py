"""What the comparisons share: the golden checkpoints in our form, batches laid out as the releases lay them out, and passes.

Compiling takes most of the time here. Shapes are therefore padded to few different ones, and images go through their
tokenizer one by one.

Letters: B rows, S positions, D model width, C channels of an image token, V vocabulary, L layers; released latents are
[1, channels, height, width].
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion.from_torch import load_released
from nextstep_jax.conversion.parity.goldens import Goldens
from nextstep_jax.data.sequence import patchify
from nextstep_jax.models.image_tokenizer import ImageTokenizer, Posterior
from nextstep_jax.models.nextstep import NextStep

PLAIN, NORMALIZED = "tiny_vae", "tiny_vae_norm"
VECTORS = 128  # vectors are passed in multiples of this,
_ROWS, _LENGTH = 8, 64  # and batches in multiples of these


class Tokenizer(NamedTuple):
    """A golden image tokenizer.

    Attributes:
      variants: configs that `encode` gives posteriors of, this one's among them. They differ in the normalization alone.
    """

    config: ImageTokenizerConfig
    params: dict
    variants: tuple[ImageTokenizerConfig, ...]


@dataclasses.dataclass(frozen=True)
class Reference:
    """The golden model: its config and parameters (canonical form), its image tokenizers, and how the goldens were made."""

    config: NextStepConfig
    params: dict
    tokenizers: dict[str, Tokenizer]
    cases: dict

    @classmethod
    def load(cls, goldens: Goldens) -> "Reference":
        cases = goldens.json("cases.json")
        config: Any
        config, params = load_released(_folder(goldens, "tiny_model", "model.safetensors"))
        folders = {name: _folder(goldens, name, "checkpoint.safetensors", "checkpoint.pt") for name in (PLAIN, NORMALIZED)}
        loaded: dict[str, Any] = {name: load_released(folder) for name, folder in folders.items()}
        variants = [tokenizer_config for tokenizer_config, _ in loaded.values()]
        variants.append(dataclasses.replace(loaded[NORMALIZED][0], normalize_patch=None))
        tokenizers = {
            name: Tokenizer(tokenizer_config, jax.tree.map(jnp.asarray, tree["image_tokenizer"]), tuple(variants))
            for name, (tokenizer_config, tree) in loaded.items()
        }
        return cls(config, jax.tree.map(jnp.asarray, params["model"]), tokenizers, cases)


def _folder(goldens: Goldens, name: str, *files: str):
    """A released folder, whose files have to be there."""
    for file in ("config.json", *files):
        goldens.path(f"{name}/{file}")
    return goldens.folder / name


def to_nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def to_nchw(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)


def tokens_of(latents: list[np.ndarray], patch: int) -> list[np.ndarray]:
    """Image tokens [n, C] of each of the released latents [1, channels, height, width]."""
    return [patchify(to_nhwc(one)[0], patch) for one in latents]


def place(is_image: np.ndarray, values: list[np.ndarray], *shape: int) -> np.ndarray:
    """[B, S, *shape] float32 with the values of all images, in reading order, at the image positions."""
    placed = np.zeros((*is_image.shape, *shape), np.float32)
    if is_image.any():
        placed[is_image] = np.concatenate(values)
    return placed


def padded(array: np.ndarray, *multiples: int) -> np.ndarray:
    """The array with zeros up to multiples of these along its first axes."""
    missing = [-size % multiple for size, multiple in zip(array.shape, multiples, strict=False)]
    return np.pad(array, [(0, count) for count in missing] + [(0, 0)] * (array.ndim - len(missing)))


def padded_batch(batch: Batch) -> Batch:
    """The batch with rows and positions of padding, which nothing sees."""
    return jax.tree.map(lambda array: padded(array, _ROWS, _LENGTH), batch)


def released_batch(config: NextStepConfig, ids: np.ndarray, latents: list[np.ndarray], mask: np.ndarray | None = None) -> Batch:
    """Rows as the releases run them: positions count pads, and one segment per row where the mask is 1.

    Image positions take the tokens of `latents` in reading order over the flattened batch. All weights are 0.
    """
    is_image = ids == config.image_placeholder_id
    image_tokens = place(is_image, tokens_of(latents, config.patch), config.token_channels)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    segments = np.ones(ids.shape) if mask is None else mask
    zeros = np.zeros(ids.shape, np.float32)
    return Batch(ids.astype(np.int32), image_tokens, is_image, positions, segments.astype(np.int32), zeros, zeros)


# --- passes -----------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """One pass through the transformer: [B, S, D] embeddings, L layers' outputs and hidden states; [B, S, V] logits."""

    embeddings: np.ndarray
    layers: list[np.ndarray]
    hidden: np.ndarray
    logits: np.ndarray


def transformer_pass(reference: Reference, batch: Batch) -> Pass:
    """The pass of a batch as `released_batch` makes it."""
    rows, length = batch.shape
    ours = _pass(NextStep(reference.config), reference.params, padded_batch(batch))
    return jax.tree.map(lambda array: np.asarray(array)[:rows, :length], ours)


@functools.partial(jax.jit, static_argnames="model")
def _pass(model: NextStep, params: dict, batch: Batch) -> Pass:
    call = functools.partial(model.apply, {"params": params})
    hidden = call(batch)
    embeddings = call(batch.text_ids, batch.image_tokens, batch.is_image, method="embed")
    return Pass(embeddings, call(batch, method="layer_outputs"), hidden, call(hidden, method="logits"))


def run_on_vectors(reference: Reference, method: str, *inputs: np.ndarray) -> np.ndarray:
    """A method of the model over arrays [n, ...]."""
    out = _run(NextStep(reference.config), reference.params, *(padded(array, VECTORS) for array in inputs), method=method)
    return np.asarray(out)[: len(inputs[0])]


@functools.partial(jax.jit, static_argnames=("model", "method"))
def _run(model: nn.Module, params: dict, *inputs, method: str):
    return model.apply({"params": params}, *inputs, method=method)


class Encoded(NamedTuple):
    """What an image tokenizer's encoder gives, [B, h, w, ...]: its raw output, and the posterior of every variant."""

    raw: np.ndarray
    posteriors: dict[ImageTokenizerConfig, Posterior]


def encode(tokenizer: Tokenizer, pixels: np.ndarray) -> Encoded:
    """Encode [B, height, width, 3]."""
    each = [_encode(tokenizer.variants, tokenizer.params, image[None]) for image in pixels]
    raw, posteriors = jax.tree.map(lambda *arrays: np.concatenate(arrays), *each)
    return Encoded(raw, dict(zip(tokenizer.variants, posteriors, strict=True)))


@functools.partial(jax.jit, static_argnames="configs")
def _encode(configs: tuple[ImageTokenizerConfig, ...], params: dict, pixels) -> tuple[jax.Array, list[Posterior]]:
    def call(config, method):
        return ImageTokenizer(config).apply({"params": params}, pixels, method=method)

    return call(configs[0], lambda module, x: module.encoder(x)), [call(config, "encode") for config in configs]


def decode(tokenizer: Tokenizer, latents: np.ndarray) -> np.ndarray:
    """Pixels [B, height, width, 3] of unscaled latents [B, h, w, c]."""
    model = ImageTokenizer(tokenizer.variants[0])  # decoding knows no normalization
    return np.concatenate([_run(model, tokenizer.params, image[None], method="decode") for image in latents])
