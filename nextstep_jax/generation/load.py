"""From a checkpoint folder to what a Pipeline holds."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from nextstep_jax import checkpoints, storage
from nextstep_jax.config import DTYPES, ImageTokenizerConfig, NextStepConfig
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import recommended
from nextstep_jax.generation.sizes import image_grid, trained_sizes
from nextstep_jax.models.param_layouts import fuse_layer, quantize_leaf
from nextstep_jax.sharding.mesh import replicated
from nextstep_jax.sharding.params import parameter_spec, path_string


def builtin_checkpoint() -> pathlib.Path:
    """Folder of the small model that ships with the package."""
    return pathlib.Path(__file__).parent.parent / "builtin" / "shapes"


def read_configs(checkpoint: str | os.PathLike) -> tuple[NextStepConfig | None, ImageTokenizerConfig | None, dict]:
    """The model's and the image tokenizer's configs (None where the checkpoint has none) and the whole config.json."""
    values = checkpoints.load_config(checkpoint)
    source = os.path.join(checkpoint, "config.json")
    model = NextStepConfig.from_released(values["model"], source) if values.get("model") else None
    tokenizer = None
    if values.get("image_tokenizer"):
        tokenizer = ImageTokenizerConfig.from_released(values["image_tokenizer"], source)
    return model, tokenizer, values


def load_image_tokenizer(checkpoint: str | os.PathLike | None = None) -> tuple[ImageTokenizerConfig, dict]:
    """Config and float32 parameters of a checkpoint folder's image tokenizer (None: the built-in model's).

    Raises:
      InputError: not a checkpoint, or one without an image tokenizer.
      DamagedDataError: parameters that are not what was saved.
    """
    checkpoint = builtin_checkpoint() if checkpoint is None else checkpoint
    _, config, _ = read_configs(checkpoint)
    if config is None:
        raise InputError(f"{checkpoint}: has no image tokenizer")
    return config, checkpoints.load_params(checkpoint, subtree="image_tokenizer", dtype="float32")


def load_model(checkpoint: str | os.PathLike | None = None, dtype: str | None = None, mesh: Mesh | None = None) -> dict:
    """The fields of a Pipeline, read from a checkpoint folder (None: the built-in model). A checkpoint without an image
    tokenizer, such as a converted language model, still writes text.

    Args:
      dtype: of the model's parameters and compute; None keeps the parameters as stored and computes in the decoder's dtype
        (float32 where float16 is stored). "int8" rounds the large kernels (models/param_layouts.py) and leaves the
        rest as for None.
      mesh: where the parameters go, each device reading its own slices only: the model's as in training
        (sharding/params.py), what it does not divide and the image tokenizer's whole to every device; None: the default
        device.

    Raises:
      InputError: not a checkpoint, or one without a model.
      DamagedDataError: parameters that are not what was saved.
    """
    if dtype is not None and dtype not in (*DTYPES, "int8"):
        raise InputError(f"dtype must be one of {', '.join((*DTYPES, 'int8'))}, found {dtype!r}")
    quantized, dtype = dtype == "int8", None if dtype == "int8" else dtype
    checkpoint = builtin_checkpoint() if checkpoint is None else storage.at(checkpoint)
    config, tokenizer_config, values = read_configs(checkpoint)
    if config is None:
        raise InputError(f"{checkpoint}: holds an image tokenizer only, no model to generate with")
    if tokenizer_config is not None and tokenizer_config.latent_channels != config.latent_channels:
        found = f"{tokenizer_config.latent_channels} and {config.latent_channels}"
        raise InputError(f"{checkpoint}: image tokenizer and model differ in latent channels, found {found}")
    stored = checkpoints.abstract_params(checkpoint, "model")["decoder"]["layers_0"]["attention"]["q"]["kernel"].dtype.name
    if dtype is None and stored == "float16":
        dtype = "float32"  # float16 saves space on disk; its range is too short to compute in
    dtypes = {"model": dtype, "image_tokenizer": "float32"}
    places = None if mesh is None else _shardings(checkpoint, mesh)
    params = checkpoints.load_params(checkpoint, dtype=dtypes, shardings=places, convert=_quantize if quantized else None)
    # Where devices hold parts of the kernels, fused ones would have to be cut apart again on each of them, in every step.
    fused = mesh is None or mesh.shape["tensor"] * mesh.shape["fsdp"] == 1
    config = config.with_transformer(dtype=dtype or stored, fused_projections=fused, scan_layers=False, remat="none")
    decoder = params["model"]["decoder"]
    for name in (name for name in decoder if fused and name.startswith("layers_")):
        decoder[name] = jax.block_until_ready(fuse_layer(decoder[name]))  # one by one: the unfused layer goes before the next
    vocabulary = _load_vocabulary(checkpoint)
    if vocabulary is not None:
        vocabulary.require_match(config)
    return dict(
        config=config,
        params=params["model"],
        tokenizer_config=tokenizer_config,
        tokenizer_params=params.get("image_tokenizer"),
        special=vocabulary.special if vocabulary else SpecialIds.from_config(config),
        vocabulary=vocabulary,
        overrides=values.get("generation") or {},
        name=checkpoint.resolve().name,
        mesh=mesh,
    )


def _shardings(checkpoint: storage.Place, mesh: Mesh) -> dict:
    """Where the parameters of a checkpoint lie on a mesh."""

    def place(keys: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        path = path_string(keys)
        return NamedSharding(mesh, parameter_spec(path, leaf.shape, mesh)) if path.startswith("model/") else replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, checkpoints.abstract_params(checkpoint))


def _quantize(path: str, leaf: jax.Array) -> dict[str, jax.Array]:
    """A leaf of the model's parameters with its large kernels in int8."""
    part, rest = path.split("/", 1)
    small = quantize_leaf(rest, leaf) if part == "model" else {rest: leaf}
    return {f"{part}/{key}": array for key, array in small.items()}


def require_usable(
    checkpoint: str | os.PathLike | None,
    edit: bool,
    changes: Mapping[str, Any],
    height: int | None = None,
    width: int | None = None,
    aspect: str | None = None,
) -> None:
    """InputError for settings and a size that the checkpoint cannot draw with; reads its config alone, no parameter."""
    checkpoint = builtin_checkpoint() if checkpoint is None else checkpoint
    model, tokenizer, values = read_configs(checkpoint)
    if model is None or tokenizer is None:
        return  # said with everything else that such a checkpoint cannot do, see `load_model` and `Pipeline`
    settings = recommended(model.release, values.get("generation"), edit).replace(**changes)
    settings.require_model(model)
    settings.sampler_config(has_image=edit)
    image_grid(settings, tokenizer.downsample * model.patch, height, width, aspect)


def describe(checkpoint: str | os.PathLike) -> dict:
    """What `info` prints: sizes, what the model knows, parameters by part, bytes by dtype. Reads no parameter."""
    model, tokenizer, config = read_configs(checkpoint)
    values: dict = {"checkpoint": str(checkpoint)}
    if model is not None:
        t, head = model.transformer, model.flow_head
        values["model"] = {
            "release": model.release,
            "layers": t.layers,
            "width": t.width,
            "heads": f"{t.heads} query, {t.kv_heads} key/value, of {t.head_dim}",
            "mlp width": t.mlp_width,
            "vocabulary": t.vocab_size,
            "window": t.max_positions,
            "flow head": f"{head.layers} x {head.width}",
            "image token": f"{model.token_channels} numbers",
        }
    if tokenizer is not None:
        values["image tokenizer"] = {
            "pixels per latent": tokenizer.downsample,
            "latent channels": tokenizer.latent_channels,
            "normalize": str(tokenizer.normalize),
        }
    if model is not None:
        values["knows"] = _knowledge(checkpoint, config)
    parameters: dict[str, int] = {}
    memory: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoints.abstract_params(checkpoint)):
        part = "/".join(key.key for key in path[:2])
        parameters[part] = parameters.get(part, 0) + leaf.size
        memory[leaf.dtype.name] = memory.get(leaf.dtype.name, 0) + leaf.size * leaf.dtype.itemsize
    values["parameters"] = parameters | {"total": sum(parameters.values())}
    values["memory as stored"] = memory
    values["memory by dtype"] = {name: sum(parameters.values()) * size for name, size in (("float32", 4), ("bfloat16", 2))}
    return values


def _load_vocabulary(checkpoint: str | os.PathLike) -> Vocabulary | None:
    data = checkpoints.load_file(checkpoint, "tokenizer.json")
    return None if data is None else Vocabulary.from_bytes(data, os.path.join(checkpoint, "tokenizer.json"))


def _knowledge(checkpoint: str | os.PathLike, config: Mapping[str, Any]) -> dict[str, str]:
    """What prompts and sizes the model was made for, as far as its folder tells."""
    vocabulary = _load_vocabulary(checkpoint)
    if vocabulary is None:
        language = "no text tokenizer: prompts are ids"
    elif words := vocabulary.words:
        language = f"{len(words)} words, others are spelled letter by letter: {' '.join(words)}"
    else:
        language = "any text"
    sizes = [f"{width}x{height}" for height, width in trained_sizes(config.get("generation") or {})]
    return {"language": language, "sizes": ", ".join(sizes) or "not recorded"}
