"""Every setting of a training run with its default, and what the settings mean to the rest of the library.

A file in configs/ starts from `base_config`, changes values, and is launched with launch/train.py. Architectures are spelled
out field by field, so that any of them can be changed from the command line (`--config.model.transformer.layers=2`).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from nextstep_jax.config import FlowHeadConfig, ImageTokenizerConfig, NextStepConfig, TransformerConfig
from nextstep_jax.data.augment import Augmentation
from nextstep_jax.errors import InputError
from nextstep_jax.sharding.mesh import batch_shardings

OBJECTIVES = ("multitask", "reconstruction")


def base_config(objective: str) -> ConfigDict:
    """The settings of a run, with defaults that a stage's config file overrides."""
    config = ConfigDict()
    config.objective = objective
    config.name = ""  # of the run, for the trackers
    config.seed = 42
    config.steps = 1000

    # Where the parameters come from: "" initializes all of them randomly; else a checkpoint folder (a converted NextStep or
    # Qwen2.5, or a trained one). Parameters the checkpoint lacks must match `reinit`: for Qwen2.5 those of the image side.
    config.init = ConfigDict({"checkpoint": "", "reinit": ()})

    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,
            "min_learning_rate": 0.0,  # where a cosine ends
            "schedule": "constant",  # or "cosine"
            "warmup_steps": 0,
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "no_decay": r"(bias|scale)$",
            "grad_clip_norm": 1.0,
            "muon": (),  # regular expressions over parameter paths: matrices that Muon updates, AdamW the rest
            # (regular expression over parameter paths, factor on the learning rate); the first match counts
            "lr_multipliers": (),
            "frozen": (),  # regular expressions over parameter paths
        }
    )
    config.grad_accum_steps = 1  # parts a step's batch is run in
    config.ema_decay = 0.0  # 0: none
    config.max_nonfinite_steps = 20  # steps in a row with a non-finite loss or gradient that stop the run

    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    # The newest `keep_last` checkpoints stay, and those of steps that are multiples of `keep_every` (0: no others).
    config.checkpoint = ConfigDict({"every": 1000, "keep_last": 3, "keep_every": 0})
    config.export_dtype = "float32"  # of the trained parameters in the checkpoint folder written at the end
    config.log_every = 10
    config.validation = ConfigDict({"every": 0, "batches": 8})
    config.samples = ConfigDict({"every": 0})
    config.profile = ConfigDict({"start": 0, "stop": 0})  # steps between which the profiler runs; 0, 0: never
    config.wandb = ConfigDict({"project": "", "mode": "offline"})
    config.data = data_config(objective)
    if objective == "multitask":
        config.model = model_fields(NextStepConfig())
        config.image_tokenizer_checkpoint = (
            ""  # decodes sample images and is exported with the model; "": that of `init.checkpoint`
        )
        # The most targets of each head in a row, as a fraction of its positions. Rows are packed so as to keep to it: fewer
        # targets cost less, and leave more padding where the data has more targets of a kind than that.
        config.max_target_fraction = ConfigDict({"text": 1.0, "image": 1.0})
        config.samples.prompts = ()
        config.samples.generation = ConfigDict()  # fields of generation.config.GenerationConfig; exported with the checkpoint
    elif objective == "reconstruction":
        config.image_tokenizer = model_fields(ImageTokenizerConfig())
        # Weights of the terms of objectives/reconstruction.py. The networks behind the last two are named
        # "package.module:function": the function returns (images, reconstructions) -> [B] distances, or a Linen module images
        # -> logits.
        terms = {"l1": 1.0, "l2": 1.0, "kl": 0.0, "perceptual": 0.0, "adversarial": 0.0}
        config.loss = ConfigDict(terms | {"perceptual_network": "", "discriminator": ""})
    else:
        raise InputError(f"objective must be one of {', '.join(OBJECTIVES)}, found {objective!r}")
    return config


def data_config(objective: str) -> ConfigDict:
    """Settings of the data. A multitask stage adds sources to `sources` and `validation` with `source`, under names of its
    choice.
    """
    if objective == "reconstruction":
        values = {
            "sources": (),  # what data/sources.py can open
            "validation": (),
            "batch_size": 32,  # pictures of a step, over all hosts
            "height": 256,
            "width": 256,
            # Parts in which a batch is read (data/data_shards.py): it can run on as many hosts as divide their number.
            "data_shards": 1,
            "workers": 0,  # reader processes of a host; 0 reads in threads
        }
        return ConfigDict(values)
    values = {
        "root": "",  # folder that relative paths of sources start from
        "vocabulary": "",  # a tokenizer.json; "": the starting checkpoint's; "shapes": the built-in dataset's
        "batch_size": 8,  # rows of a step, over all hosts
        # Parts in which a batch is read and packed (data/data_shards.py): a run keeps their number, and can run on as many
        # hosts as divide it.
        "data_shards": 1,
        "seq_len": 16384,  # positions of a row
        "packing_buffer": 16,  # rows held open while packing: more waste less
        "workers": 0,  # reader processes of a host for each source; 0 reads in threads
        # (h, w) of every image, for packing as the February 2026 release does it; (): samples do not see each other
        "grids": (),
        "sources": ConfigDict(),
        "validation": ConfigDict(),
    }
    return ConfigDict(values)


def source(path: str = "", weight: float = 1.0, kind: str = "", thinking: bool = False, **augmentation) -> ConfigDict:
    """Settings of one source of a mixture.

    Args:
      path: what data/sources.py can open, images as latents; relative to `config.data.root`.
      weight: of the mixture's tokens, relative to the other sources'; 0 leaves the source out.
      kind: what WebDataset samples with several images are: "edit" or "interleaved".
      thinking: texts may spell the thinking and prompt-refinement tokens.
      augmentation: fields of data.augment.Augmentation that differ from the February 2026 release's.
    """
    fields = dataclasses.asdict(Augmentation(**augmentation))
    return ConfigDict({"path": path, "weight": weight, "kind": kind, "thinking": thinking, "augmentation": fields})


def model_fields(config: NextStepConfig | ImageTokenizerConfig) -> ConfigDict:
    """A frozen architecture as settings; optional numbers stay settable."""
    fields = ConfigDict(dataclasses.asdict(config))
    for name, value in fields.items():
        if value is None:
            fields[name] = placeholder(int)
    return fields


def model_config(settings: Mapping[str, Any]) -> NextStepConfig:
    """The architecture that `config.model` describes. InputError names what does not fit."""
    values = _plain(settings)
    return NextStepConfig(
        transformer=TransformerConfig(**values.pop("transformer")),
        flow_head=FlowHeadConfig(**values.pop("flow_head")),
        **values,
    )


def image_tokenizer_config(settings: Mapping[str, Any]) -> ImageTokenizerConfig:
    """The architecture that `config.image_tokenizer` describes. InputError names what does not fit."""
    return ImageTokenizerConfig(**_plain(settings))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return settings.to_dict() if isinstance(settings, ConfigDict) else dict(settings)


def require_valid(config: ConfigDict) -> None:
    """InputError for settings that cannot make a run, before anything is loaded or compiled."""
    for name in ("steps", "grad_accum_steps", "log_every", "max_nonfinite_steps"):
        if config[name] < 1:
            raise InputError(f"config.{name} must be at least 1, found {config[name]}")
    if config.checkpoint.keep_last < 1:
        raise InputError(f"config.checkpoint.keep_last must be at least 1, found {config.checkpoint.keep_last}")
    for name in ("checkpoint.every", "checkpoint.keep_every", "validation.every", "validation.batches", "samples.every"):
        section, key = name.split(".")
        if config[section][key] < 0:
            raise InputError(f"config.{name} must be at least 0, found {config[section][key]}")
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"config.ema_decay must be in [0, 1), found {config.ema_decay}")
    if not 0 <= config.profile.start <= config.profile.stop:
        raise InputError(f"config.profile needs 0 <= start <= stop, found {config.profile.start} and {config.profile.stop}")
    if config.objective not in OBJECTIVES:
        raise InputError(f"config.objective must be one of {', '.join(OBJECTIVES)}, found {config.objective!r}")
    if config.samples.every and jax.process_count() > 1:
        raise InputError(
            f"config.samples.every is {config.samples.every}, but a run of {jax.process_count()} processes cannot draw; "
            "set it to 0 and generate from an export (nextstep-jax export-run)"
        )
    for head, fraction in config.get("max_target_fraction", {}).items():
        if not 0 < fraction <= 1:
            raise InputError(f"config.max_target_fraction.{head} must be in (0, 1], found {fraction}")
    rows, data_shards = config.data.batch_size, config.data.data_shards
    if data_shards < 1 or rows < 1 or rows % data_shards:
        raise InputError(f"config.data.batch_size ({rows}) is not a multiple of config.data.data_shards ({data_shards})")


def local_data_shards(config: ConfigDict) -> tuple[int, ...]:
    """The data shards whose rows of the global batch lie on this process's devices of the current mesh; without one, all.

    Raises:
      InputError: the rows do not divide into data shards and accumulated parts, or the data shards not into the processes.
    """
    rows, data_shards, mesh = config.data.batch_size, config.data.data_shards, jax.sharding.get_mesh()
    if mesh.empty:
        return tuple(range(data_shards))
    (sharding,) = jax.tree.leaves(batch_shardings([jax.ShapeDtypeStruct((rows,), "int32")], mesh, ("batch",)))
    shards = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(sharding.spec)))
    if rows % (shards * config.grad_accum_steps):
        parts = f"{shards} devices with rows x grad_accum_steps {config.grad_accum_steps}"
        raise InputError(f"config.data.batch_size ({rows}) is not a multiple of {parts}")
    here = set()
    for (part,) in sharding.addressable_devices_indices_map((rows,)).values():
        here.update(range(*part.indices(rows)))
    size = rows // data_shards
    mine = sorted({row // size for row in here})
    if len(here) != len(mine) * size:
        processes = f"the processes ({jax.process_count()}, this one makes {len(here)} of {rows} rows)"
        raise InputError(f"config.data.data_shards ({data_shards}) do not divide evenly into {processes}; use a multiple")
    return tuple(mine)


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The settings as JSON values."""
    return json.loads(config.to_json_best_effort())
