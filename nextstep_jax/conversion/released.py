"""What a released folder holds, matched against the names table before any tensor is read.

A `Part` pairs every released tensor with the parameter it becomes; whatever does not pair up is collected, so that one
error can list it all.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion import names
from nextstep_jax.conversion.names import Entry
from nextstep_jax.conversion.torch_files import BFLOAT16, StoredTensor, has_weights, open_weights, read_json
from nextstep_jax.errors import InputError

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = (
    "checkpoint.safetensors",
    "checkpoint.pt",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "ae.safetensors",
    *MODEL_FILES,
)
FLOATS = tuple(map(np.dtype, ("float16", "float32", "float64"))) + (BFLOAT16,)
MAX_INIT_HEAD = 1 << 20  # layers times width: twenty times the largest head of the paper


@dataclasses.dataclass(frozen=True)
class Part:
    """One subtree of a checkpoint and where its parameters come from.

    Attributes:
      name: "model" or "image_tokenizer".
      folder: where it lies.
      released: the config as released.
      config: the same, understood.
      pairs: each parameter that the source holds, with its tensor.
      initialized: parameters that the source does not hold by design and that are initialized at random (the image parts of
        a language model).
      dropped: tensors that are deliberately not converted.
      problems: one line for every tensor that does not fit.
      naming: whose names the image tokenizer's tensors have, one of names.NAMINGS; "" for a model.
    """

    name: str
    folder: pathlib.Path
    released: Mapping[str, Any]
    config: Any  # NextStepConfig or ImageTokenizerConfig, by name
    pairs: tuple[tuple[Entry, StoredTensor], ...]
    initialized: tuple[Entry, ...]
    dropped: tuple[StoredTensor, ...]
    problems: tuple[str, ...]
    naming: str = ""


def is_image_tokenizer(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is an image tokenizer's."""
    return "hidden_size" not in values and not {"ch", "ch_mult", "z_channels", "block_out_channels"}.isdisjoint(values)


def is_language_model(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is a language model's alone (Qwen2.5): it knows nothing of images."""
    return {"boi", "eoi", "image_placeholder_id"}.isdisjoint(values)


def read_model(folder: pathlib.Path, values: Mapping[str, Any], init_image_parts: bool = False) -> Part:
    """The model of a folder whose config.json reads `values`; with `init_image_parts` a language model's, whose image parts
    are initialized at random."""
    config = NextStepConfig.from_released(values, str(folder / "config.json"))
    tensors, problems = open_weights(folder, MODEL_FILES)
    _check_depth(folder, config.transformer.layers + (0 if init_image_parts else config.flow_head.layers), len(tensors))
    if init_image_parts and config.flow_head.layers * config.flow_head.width > MAX_INIT_HEAD:
        raise InputError(f"{folder / 'config.json'}: a flow head of this size is not initialized ({config.flow_head})")
    language, image = names.language_entries(config), names.image_entries(config)
    entries, initialized = (language, image) if init_image_parts else (language + image, [])
    droppable = {names.LANGUAGE_HEAD} if config.transformer.tie_embeddings else set()
    pairs, dropped, unmatched = _match(entries, tensors, droppable)
    return Part("model", folder, values, config, pairs, tuple(initialized), dropped, (*problems, *unmatched))


def read_image_tokenizer(folder: pathlib.Path, values: Mapping[str, Any] | None = None) -> Part:
    """The image tokenizer of a folder, under BFL or diffusers names."""
    values = values or read_json(folder / "config.json")
    if not is_image_tokenizer(values):
        raise InputError(f"{folder / 'config.json'}: not an image tokenizer's config (it has no ch, ch_mult or z_channels)")
    config = ImageTokenizerConfig.from_released(values, str(folder / "config.json"))
    tensors, problems = open_weights(folder, TOKENIZER_FILES)
    _check_depth(folder, len(config.channel_multipliers) * config.blocks_per_level, len(tensors))
    diffusers = any(".down_blocks." in tensor.name or ".up_blocks." in tensor.name for tensor in tensors)
    naming = "diffusers" if diffusers else "bfl"
    pairs, dropped, unmatched = _match(names.image_tokenizer_entries(config, naming), tensors)
    return Part("image_tokenizer", folder, values, config, pairs, (), dropped, (*problems, *unmatched), naming)


def find_image_tokenizer(folder: pathlib.Path, values: Mapping[str, Any]) -> pathlib.Path | None:
    """The folder's own image tokenizer: `vae/`, or what the config names if that lies inside the folder; None if neither is."""
    named = values.get("vae_name_or_path")
    places = ["vae", named] if isinstance(named, str) else ["vae"]
    for place in places:
        candidate = folder / place
        inside = not pathlib.PurePath(place).is_absolute() and ".." not in pathlib.PurePath(place).parts
        if inside and candidate != folder and os.path.isfile(candidate / "config.json"):
            return candidate if has_weights(candidate, TOKENIZER_FILES) else None
    return None


def _match(entries: Sequence[Entry], tensors: Sequence[StoredTensor], droppable: Collection[str] = ()) -> tuple:
    """(pairs, dropped, problems) of the parameters wanted and the tensors found."""
    found = collections.defaultdict(list)
    for tensor in tensors:
        found[names.strip_prefix(tensor.name)].append(tensor)
    pairs: list[tuple[Entry, StoredTensor]] = []
    dropped: list[StoredTensor] = []
    problems: list[str] = []
    for entry in entries:
        candidates = found.pop(entry.source, [])
        problems += _unfit(entry, candidates)
        pairs += [(entry, tensor) for tensor in candidates[:1]]
    for name, rest in found.items():
        if names.is_computed(name) or name in droppable:
            problems += _repeated(name, rest)
            dropped += rest[:1]
        else:
            problems += [f"{tensor.name}: unknown (in {tensor.file.name}, shape {_shape(tensor)})" for tensor in rest]
    if not pairs and (prefix := _strange_prefix(entries, tensors)):
        problems = [
            f"names begin with {prefix!r}, a module around the network; save the state dict of what it holds, or rename"
        ]
    return tuple(pairs), tuple(dropped), tuple(problems)


def _strange_prefix(entries: Sequence[Entry], tensors: Sequence[StoredTensor]) -> str:
    """What stands before the wanted names in most of them, "" if nothing does."""
    wanted = {entry.source for entry in entries}
    found: collections.Counter[str] = collections.Counter()
    for tensor in tensors:
        keys = names.strip_prefix(tensor.name).split(".")
        for cut in range(1, min(len(keys), 8)):
            if ".".join(keys[cut:]) in wanted:
                found[".".join(keys[:cut]) + "."] += 1
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    return prefix if count > len(wanted) / 2 else ""


def _unfit(entry: Entry, candidates: list[StoredTensor]) -> Iterator[str]:
    if not candidates:
        yield f"{entry.source}: missing (shape {list(entry.source_shape)})"
    yield from _repeated(entry.source, candidates)
    for tensor in candidates:
        if tensor.shape != entry.source_shape:
            yield f"{tensor.name}: shape {_shape(tensor)}, expected {list(entry.source_shape)}"
        if tensor.dtype not in FLOATS:
            yield f"{tensor.name}: dtype {tensor.dtype}, expected a float type"


def _repeated(name: str, candidates: list[StoredTensor]) -> Iterator[str]:
    if len(candidates) > 1:
        where = ", ".join(f"{tensor.name} in {tensor.file.name}" for tensor in candidates)
        yield f"{name}: there {len(candidates)} times ({where})"


def _shape(tensor: StoredTensor) -> list[int]:
    return list(tensor.shape)


def _check_depth(folder: pathlib.Path, layers: int, tensors: int) -> None:
    """A config may claim any depth; more layers than tensors are not worth laying out."""
    if layers > tensors:
        raise InputError(f"{folder}: config.json describes {layers} layers, but the weights have only {tensors} tensors")
