"""From a released folder to a checkpoint of this library, one tensor in memory at a time.

Sources: a NextStep folder with any of the three sets of config keys, a Qwen2.5 folder (its image parts are randomly
initialized), or an image tokenizer's folder alone. Names and shapes are checked before the first tensor is read, values while
they stream. Whatever does not fit is listed in one error, and nothing is left at the destination.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from nextstep_jax import checkpoints, storage
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion import hub, released, text_tokenizer
from nextstep_jax.conversion.param_stream import ParamStream, Progress, no_progress
from nextstep_jax.conversion.released import Part
from nextstep_jax.conversion.torch_files import read_json
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary, with_special_tokens
from nextstep_jax.errors import InputError

DTYPES = {"keep": None, "float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Place = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
      parameters, nbytes: how many numbers were written, and their size.
      dropped: released tensors that were deliberately left out.
      warnings: what the person should know, one line each.
    """

    directory: storage.Place
    parameters: int
    nbytes: int
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]


def convert(
    src: Place,
    dst: Place,
    *,
    vae: Place | None = None,
    text_tokenizer: Place | None = None,
    dtype: str = "keep",
    seed: int = 0,
    progress: Progress = no_progress,
    log: Callable[[str], None] = print,
) -> Conversion:
    """Convert a released folder, or a repository of the hub, to a checkpoint at `dst`.

    Args:
      src: a folder, or `org/name[@revision]`.
      dst: must not exist yet, or be an empty folder.
      vae: folder of the image tokenizer; by default the one that comes with `src`.
      text_tokenizer: folder of the text tokenizer; by default `src` itself.
      dtype: "float32" or "bfloat16" for all parameters, "keep" to leave each as it is.
      seed: for the image parts that a language model lacks.
      progress: called before each tensor and at the end.
      log: called with one line about what is going to be downloaded.

    Raises:
      InputError: naming the file, or all tensors that are missing, unknown, duplicate, mis-shaped or not finite.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}")
    target = storage.at(dst)
    storage.of(target).require_new(target, checkpoints.MANIFEST)
    if hub.is_name(str(src)) and not os.path.exists(src):
        source = hub.download(str(src), log, with_vae=vae is None)
    else:
        source = hub.Download(_folder(src), pathlib.Path(src).absolute().name)

    parts, files, warnings = _read(source.folder, vae or source.vae, text_tokenizer)
    leaves = ParamStream(parts, DTYPES[dtype], seed, progress)
    leaves.validate()
    configs: dict[str, Any] = {"model": None, "image_tokenizer": None} | {part.name: part.released for part in parts}
    provenance: dict[str, Any] = {"from": source.origin, "image_tokenizer_from": source.vae_origin}
    provenance |= {"image_tokenizer_names": parts[-1].naming or None, "dropped": leaves.dropped}
    checkpoints.save_params(target, leaves, configs | {"source": provenance}, files)
    dropped = tuple(row["name"] for row in leaves.dropped)
    return Conversion(target, leaves.parameters, leaves.nbytes, dropped, tuple(warnings))


def load_released(folder: Place) -> tuple[NextStepConfig | ImageTokenizerConfig, dict[str, Any]]:
    """A small released folder in memory, as stored: (config, {"model": params}) or (config, {"image_tokenizer": params}).

    Raises:
      InputError: as `convert`.
    """
    folder = _folder(folder)
    values = read_json(folder / "config.json")
    read = released.read_image_tokenizer if released.is_image_tokenizer(values) else released.read_model
    part = read(folder, values)
    leaves = ParamStream([part], None, 0, no_progress)
    leaves.validate()
    tree: dict[str, Any] = {}
    for path, read_leaf in leaves:
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.array(read_leaf())
    return part.config, tree


def _folder(place: Place) -> pathlib.Path:
    if not os.path.isdir(place):
        raise InputError(f"{place}: no such folder")
    return pathlib.Path(place)


def _read(folder: pathlib.Path, vae: Place | None, tokens: Place | None) -> tuple[list[Part], dict[str, bytes], list[str]]:
    """(parts, further files, warnings) of a source folder."""
    values = read_json(folder / "config.json")
    if released.is_image_tokenizer(values):
        if vae or tokens:
            raise InputError(f"{folder}: an image tokenizer alone takes no other image or text tokenizer")
        return [released.read_image_tokenizer(folder, values)], {}, []
    warnings = []
    text_folder = _folder(tokens) if tokens else folder
    language_model = released.is_language_model(values)
    vocabulary, files = None, {}
    if tokens or text_tokenizer.is_in(text_folder):
        files = text_tokenizer.read(text_folder)
        if language_model:
            files = {text_tokenizer.FILE: with_special_tokens(files[text_tokenizer.FILE], str(text_folder))}
        vocabulary = Vocabulary.from_bytes(files[text_tokenizer.FILE], str(text_folder / text_tokenizer.FILE))
    else:
        warnings.append(f"{folder} has no text tokenizer: the checkpoint serves Python callers that pass ids, no prompts")
    if language_model:
        values = _with_image_settings(values, vocabulary.special if vocabulary else None, folder)
    parts = [released.read_model(folder, values, init_image_parts=language_model)]
    if vocabulary:
        vocabulary.require_match(parts[0].config)

    vae_folder = _folder(vae) if vae else released.find_image_tokenizer(folder, values)
    if vae_folder:
        parts.append(released.read_image_tokenizer(vae_folder))
        found, expected = parts[1].config.latent_channels, parts[0].config.latent_channels
        if found != expected:
            raise InputError(f"{vae_folder}: the image tokenizer has {found} latent channels, the model {expected}")
    else:
        warnings.append(f"{folder} has no image tokenizer: the checkpoint makes image tokens, no pixels")
    return parts, files, warnings


def _with_image_settings(values: Mapping[str, Any], special: SpecialIds | None, folder: pathlib.Path) -> dict[str, Any]:
    """A Qwen2.5 config.json with all that NextStep adds to it; ids as its text tokenizer has them, or the releases'.

    Settings that the file already has, such as `fm_head_dim` and `fm_head_layers`, stay: that is how to ask for another head.
    """
    ids = {}
    if special:
        ids = {"eos_token_id": special.eos, "bos_token_id": special.eos, "pad_token_id_added": special.pad}
        ids |= {"boi": special.begin_of_image, "eoi": special.end_of_image, "image_placeholder_id": special.image_placeholder}
    complete = NextStepConfig.from_released(dict(values) | ids, str(folder / "config.json")).to_released()
    replaced = ids | {key: complete[key] for key in ("architectures", "model_type")}
    return complete | dict(values) | replaced
