"""What the host does between rollouts and their step: images of tokens, and their scores by the rewards of a config.

Letters: P prompts, G images of a prompt, R rows, n tokens, C channels of a token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nextstep_jax.data import images as image_files
from nextstep_jax.errors import InputError
from nextstep_jax.generation.load import load_image_tokenizer
from nextstep_jax.generation.tokenizer import decode_images
from nextstep_jax.rewards.combine import RewardTerm, score_groups
from nextstep_jax.rewards.loading import open_reward
from nextstep_jax.rewards.protocol import RewardRequest
from nextstep_jax.sharding.mesh import replicated
from nextstep_jax.training import multitask
from nextstep_jax.training.candidates import CandidatePrompt
from nextstep_jax.training.post_training_settings import OnlineConfig, RewardConfig
from nextstep_jax.training.step import split_batch

Array = jax.Array

_DECODED_AT_ONCE = 16  # images of a device


class Scores(NamedTuple):
    """What the rewards say of P groups: the sums [P, G] to learn from, valid [P], and each reward's own score [P, G]."""

    totals: Any
    valid: Any
    by_name: dict[str, Any]


def open_terms(entries: Mapping[str, RewardConfig]) -> dict[str, RewardTerm]:
    """The rewards of a config. InputError without any, and for one that cannot be opened."""
    if not entries:
        raise InputError("config.rewards: name at least one reward to learn from")
    terms = {}
    for name, entry in sorted(entries.items()):
        try:
            terms[name] = RewardTerm(open_reward(entry.reward), entry.weight, entry.normalizer, entry.score)
        except InputError as error:
            raise InputError(f"config.rewards.{name}: {error}") from error
    return terms


def open_decoder(config: OnlineConfig, grid: tuple[int, int], mesh: Mesh) -> Callable[[Array], np.ndarray]:
    """Tokens [R, n, C] -> this process's images [r, height, width, 3] uint8, a few of each device at a time."""
    tokenizer, params = load_image_tokenizer(multitask.tokenizer_checkpoint(config))
    params = jax.device_put(jax.device_get(params), replicated(mesh))  # from the host, as several processes have to
    devices = mesh.shape["data"] * mesh.shape["fsdp"]

    def decode(tokens: Array) -> np.ndarray:
        rows = len(tokens) // devices
        parts = next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= _DECODED_AT_ONCE)
        pieces = jax.jit(split_batch, static_argnums=1)(tokens, parts)
        decoded = [decode_images(tokenizer, config.model.patch, *grid, params, pieces[part]) for part in range(parts)]
        pixels = np.stack([image_files.to_uint8(local_rows(piece)) for piece in decoded], axis=1)
        return pixels.reshape(-1, *pixels.shape[2:])

    return decode


def local_rows(array: Any) -> np.ndarray:
    """The rows of an array that lie on this process's devices, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([jax.device_get(shards[start]) for start in sorted(shards)])


def score(
    prompts: Sequence[CandidatePrompt], terms: Mapping[str, RewardTerm], numbers: np.ndarray, pixels: np.ndarray
) -> Scores:
    """Scores of this process's images [p, G, height, width, 3] of the prompts with these numbers."""
    groups = []
    for number, group in zip(numbers, pixels, strict=True):
        prompt = prompts[int(number)]
        groups.append([RewardRequest(prompt.text, image, prompt.metadata) for image in group])
    found = score_groups(groups, list(terms.values()))
    missing = np.full(pixels.shape[:2], np.nan)
    by_name = {name: found.scores.get(f"{term.reward.name}/{term.score}", missing) for name, term in terms.items()}
    clean: dict[str, np.ndarray] = {name: np.nan_to_num(values).astype(np.float32) for name, values in by_name.items()}
    return Scores(np.nan_to_num(found.totals).astype(np.float32), found.valid, clean)
