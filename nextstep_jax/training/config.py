"""Between config files and runs: a file in configs/ fills an ml_collections ConfigDict that `base_config` made, command lines
change it (`override`), and `resolve` makes the run's typed settings of it, once, before anything else happens.
"""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.data.augment import Augmentation
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import RENAMED as RENAMED_SETTINGS
from nextstep_jax.schema import field_types, parse, read, unknown_key
from nextstep_jax.training.data_settings import PromptsConfig, SourceConfig
from nextstep_jax.training.post_training_settings import FewStepConfig, GrpoConfig, NftConfig, PreferenceConfig, RewardConfig
from nextstep_jax.training.settings import EvaluationConfig, MultitaskConfig, ReconstructionConfig, RunConfig

_AUGMENTATION = {
    "drop_text": "caption_dropout",
    "wordings": "caption_variants",
    "capitalise": "capitalize",
    "drop_of_two": "source_dropout",
    "drop_of_three": "two_source_dropout",
}

# The settings of each objective.
RUNS: dict[str, type[RunConfig]] = {
    "few_step": FewStepConfig,
    "grpo": GrpoConfig,
    "multitask": MultitaskConfig,
    "nft": NftConfig,
    "preference": PreferenceConfig,
    "reconstruction": ReconstructionConfig,
}

# Old names of settings; "*" stands for a name of the user's choice.
RENAMED = {
    "start": "init",
    "start.checkpoint": "init.checkpoint",
    "start.fresh": "init.reinit",
    "accumulation": "grad_accum_steps",
    "ema": "ema_decay",
    "max_skipped": "max_nonfinite_steps",
    "optimizer.warmup": "optimizer.warmup_steps",
    "optimizer.clip": "optimizer.grad_clip_norm",
    "optimizer.groups": "optimizer.lr_multipliers",
    "checkpoint.keep": "checkpoint.keep_last",
    "capacity": "max_target_fraction",
    "capacity.text": "max_target_fraction.text",
    "capacity.image": "max_target_fraction.image",
    "data.lanes": "data.data_shards",
    "data.length": "data.seq_len",
    "data.open_rows": "data.packing_buffer",
    "data.sources.*.share": "data.sources.*.weight",
    "data.validation.*.share": "data.validation.*.weight",
}
RENAMED |= {
    f"data.{group}.*.augmentation.{old}": f"data.{group}.*.augmentation.{new}"
    for group in ("sources", "validation")
    for old, new in _AUGMENTATION.items()
}
RENAMED |= {
    f"samples.generation.{part}{old}": f"samples.generation.{part}{new}"
    for part in ("", "edit.")
    for old, new in RENAMED_SETTINGS.items()
}


# --- for config files -------------------------------------------------------------------------------------------------


def base_config(objective: str) -> ConfigDict:
    """The settings of a run with the defaults of training/settings.py, for a stage's config file to change."""
    return _config_dict(_run_type(objective)())


def source(path: str = "", weight: float = 1.0, kind: str = "", thinking: bool = False, **augmentation: Any) -> ConfigDict:
    """One source of a mixture (see SourceConfig); `augmentation`: fields of data.augment.Augmentation that differ from the
    February 2026 release's.
    """
    fields = {"path": path, "weight": weight, "kind": kind, "thinking": thinking}
    return _config_dict(read(SourceConfig, fields | {"augmentation": Augmentation(**augmentation)}, "source"))


def evaluation(evaluator: str, every: int, *, watch: str = "", patience: int = 0, **settings: Any) -> ConfigDict:
    """An entry of `config.evals` (see EvaluationConfig)."""
    return _config_dict(EvaluationConfig(evaluator, every, settings, watch, patience))


def prompts(path: str = "", weight: float = 1.0) -> ConfigDict:
    """Prompts of online training (see PromptsConfig)."""
    return _config_dict(PromptsConfig(path, weight))


def reward(spelling: str, weight: float = 1.0, normalizer: str = "none", score: str = "reward") -> ConfigDict:
    """An entry of `config.rewards` (see RewardConfig)."""
    fields = {"reward": spelling, "weight": weight, "normalizer": normalizer, "score": score}
    return _config_dict(read(RewardConfig, fields, "reward"))


def model_fields(config: NextStepConfig | ImageTokenizerConfig) -> ConfigDict:
    """A frozen architecture as settings."""
    return _config_dict(config)


def _config_dict(value: Any) -> ConfigDict:
    """A dataclass field by field. Optional numbers stay settable."""
    fields = ConfigDict()
    kinds: Mapping[str, Any] = field_types(type(value))  # type: ignore[arg-type]  # classes can be hashed
    for name, kind in kinds.items():
        entry = getattr(value, name)
        if dataclasses.is_dataclass(entry):
            entry = _config_dict(entry)
        elif isinstance(entry, Mapping):
            entry = ConfigDict({key: _config_dict(e) if dataclasses.is_dataclass(e) else e for key, e in entry.items()})
        fields[name] = placeholder(typing.get_args(kind)[0]) if entry is None else entry
    return fields


# --- for command lines ------------------------------------------------------------------------------------------------


def override(config: ConfigDict, path: str, text: str) -> None:
    """Set what a command line writes as `--config.PATH=TEXT`; a new name below `data.sources` makes a new source.

    Raises:
      InputError: there is no such setting, or the text is not a value of its type.
    """
    refuse_renamed([path])
    kind: Any = _run_type(config.objective)
    group, names, full = config, path.split("."), "config"
    for number, name in enumerate(names):
        if dataclasses.is_dataclass(kind):
            kinds: Mapping[str, Any] = field_types(kind)  # type: ignore[arg-type]  # classes can be hashed
            if name not in kinds:
                raise unknown_key(typing.cast(type, kind), name, full)
            kind = kinds[name]
        elif typing.get_origin(kind) is typing.get_origin(Mapping[str, Any]):
            kind = typing.get_args(kind)[1]
            if name not in group and number < len(names) - 1:
                group[name] = _config_dict(typing.cast(type, kind)()) if dataclasses.is_dataclass(kind) else ConfigDict()
        elif kind is not Any:
            raise InputError(f"{full} is a setting without parts, found --config.{path}")
        full = f"{full}.{name}"
        if number < len(names) - 1:
            group = group[name]
    if dataclasses.is_dataclass(kind) or isinstance(group.get(names[-1]), ConfigDict):
        raise InputError(f"{full} is a group of settings; set them one by one ({full}.NAME=VALUE)")
    with config.ignore_type():
        group[names[-1]] = parse(kind, text, full)


# --- for runs ---------------------------------------------------------------------------------------------------------


def resolve(config: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The typed settings of a run, from a config file's or from those that a run stored.

    Raises:
      InputError: an unknown or renamed setting, a value of another type or out of range, or settings that exclude each other.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    refuse_renamed(_paths(values))
    run: RunConfig = read(_run_type(values.get("objective")), values, "config")
    return run


def _run_type(objective: Any) -> type[RunConfig]:
    if objective not in RUNS:
        raise InputError(f"config.objective must be one of {', '.join(RUNS)}, found {objective!r}")
    return RUNS[objective]


def refuse_renamed(paths: typing.Iterable[str]) -> None:
    """InputError for a setting that goes by a new name, which it says."""
    for path in paths:
        for old, new in RENAMED.items():
            if found := re.fullmatch(re.escape(old).replace(r"\*", r"([^.]+)"), path):
                for name in found.groups():
                    new = new.replace("*", name, 1)
                raise InputError(f"config.{path} is now config.{new}")


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")
        yield f"{prefix}{name}"
