"""A recipe: what is measured, which near-duplicates go, what is kept for which stage of training, what is made of it.

sample_kinds      the kinds of samples that it takes, such as ("pair",); without: all
signals.NAME      {"kind": one of SIGNALS, and its settings}; what it finds is called NAME.VALUE, such as ocr.area
duplicates.NAME   near-duplicates by the signal NAME: of each group one is kept
cuts.NAME         conditions that all must hold, such as "ocr.area <= 0.2"; each cut becomes the dataset OUT/NAME
transforms.NAME   {"kind": one of TRANSFORMS, and its settings}; in order, on what the cuts keep
"""

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from nextstep_jax.data.curation import (
    captions,
    characters,
    controls,
    degradations,
    embedding_signals,
    image_signals,
    model_signals,
    sequences,
    text_signals,
    views,
    watermarks,
)
from nextstep_jax.data.curation.stages import Signal, Transform, Values
from nextstep_jax.data.records import KINDS
from nextstep_jax.errors import InputError
from nextstep_jax.schema import NonNegative, Probability, at_least, parse, read

SIGNALS: dict[str, type] = {
    "size": image_signals.Size,
    "sharpness": image_signals.Sharpness,
    "perceptual_hash": image_signals.PerceptualHash,
    "ocr": model_signals.Ocr,
    "nsfw": model_signals.Nsfw,
    "watermark": watermarks.Watermark,
    "alignment": embedding_signals.Alignment,
    "aesthetics": embedding_signals.Aesthetics,
    "judgement": model_signals.Judgement,
    "text_quality": text_signals.TextQuality,
    "language": text_signals.Language,
    "minhash": text_signals.MinHash,
}
TRANSFORMS: dict[str, type] = {
    "characters": characters.Characters,
    "check_list": characters.CheckList,
    "recaption": captions.Recaption,
    "controls": controls.Controls,
    "degradations": degradations.Degradations,
    "distinct_frames": sequences.DistinctFrames,
    "moves": views.Moves,
    "screen_text": sequences.ScreenText,
    "storyline": sequences.Storyline,
}

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_NAME = r"[A-Za-z0-9][\w-]*"
_CONDITION = re.compile(r"\s*([\w-]+)\.([\w-]+)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*")


@dataclasses.dataclass(frozen=True)
class Condition:
    """A comparison of one value of one signal: `ocr.area <= 0.2`, `language.code == en`."""

    signal: str
    value: str
    operator: str
    threshold: float | str

    @classmethod
    def parse(cls, text: str, path: str) -> "Condition":
        """InputError names `path` and what a condition looks like."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise InputError(f"{path} must be SIGNAL.VALUE <= THRESHOLD (or >=, <, >, ==, !=), found {text!r}")
        signal, value, comparison, written = match.groups()
        try:
            threshold: float | str = float(written)
        except ValueError:
            threshold = written.strip("'\"")
            if comparison not in ("==", "!="):
                raise InputError(f"{path} must compare with a number, found {text!r}") from None
        return cls(signal, value, comparison, threshold)

    def __str__(self) -> str:
        threshold = f"{self.threshold:g}" if isinstance(self.threshold, float) else self.threshold
        return f"{self.signal}.{self.value} {self.operator} {threshold}"

    def holds(self, signals: Mapping[str, Values]) -> bool | None:
        """None if the value was not found out.

        Raises:
          InputError: the signal has no such value, or one that is no number where a number is compared.
        """
        values = signals[self.signal]
        found = values.get(self.value)
        if found is None:
            if values and self.value not in values:
                raise InputError(f"condition {str(self)!r}: {self.signal} has {', '.join(values)}, and no {self.value}")
            return None
        if isinstance(found, int | float) != isinstance(self.threshold, float):
            raise InputError(f"condition {str(self)!r}: {self.signal}.{self.value} is {found!r:.100}")
        return _OPERATORS[self.operator](found, self.threshold)


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Which items are near-duplicates, and which one of a group is kept.

    Attributes:
      max_distance: of perceptual hashes, in bits of 64. Photographs saved as JPEG, scaled, mirrored, blurred or cut by up to a
        tenth on each side stay within 6.
      min_similarity: of MinHash signatures.
      keep: SIGNAL.VALUE of which the highest is kept; "" keeps the first.
    """

    max_distance: NonNegative = 6
    min_similarity: Probability = 0.8
    keep: str = ""

    def __post_init__(self):
        if self.keep and not re.fullmatch(r"[\w-]+\.[\w-]+", self.keep):
            raise InputError(f"keep must be SIGNAL.VALUE, found {self.keep!r}")
        if self.max_distance > 16:
            raise InputError(f"max_distance must be at most 16, found {self.max_distance}: beyond, unlike images match")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The form of a recipe in a config file; entries of signals and transforms are read by their kinds."""

    name: str
    signals: Mapping[str, Any]
    duplicates: Mapping[str, Duplicates]
    cuts: Mapping[str, tuple[str, ...]]
    transforms: Mapping[str, Any]
    sample_kinds: tuple[str, ...] = ()
    min_side: Annotated[int, at_least(1)] = 16
    max_aspect: Annotated[float, at_least(1)] = 8.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe whose stages are ready to be prepared.

    Attributes:
      signals, transforms: stages by name.
      duplicates: settings by the name of the signal compared.
      cuts: conditions by the name of the dataset they make.
      sample_kinds: of `records.KINDS`, those that it takes; empty: all.
      min_side, max_aspect: as in `build`.
    """

    name: str
    signals: Mapping[str, Signal]
    duplicates: Mapping[str, Duplicates]
    cuts: Mapping[str, tuple[Condition, ...]]
    transforms: Mapping[str, Transform]
    sample_kinds: tuple[str, ...]
    min_side: int
    max_aspect: float


def require_form(argument: str | None, *known: str) -> None:
    """InputError unless a config file's argument, as in `--config FILE.py:laptop`, is one of its forms."""
    if argument and argument not in known:
        raise InputError(f"a config file's argument can be {' or '.join(known)}, found {argument!r}")


def read_recipe(settings: Mapping[str, Any]) -> Recipe:
    """The recipe that a config's settings spell.

    Raises:
      InputError: naming the setting: an unknown key or kind, a wrong type, a value out of range, a condition or a comparison of
        duplicates that speaks of a signal that is not measured.
    """
    if "cuts" not in settings:
        raise InputError("config: not a recipe of curation (it has no cuts)")
    given = read(_Settings, settings, "config")
    signals = {name: _stage(entry, SIGNALS, name, f"config.signals.{name}") for name, entry in given.signals.items()}
    transforms = {
        name: _stage(entry, TRANSFORMS, name, f"config.transforms.{name}") for name, entry in sorted(given.transforms.items())
    }
    cuts = {}
    if not given.cuts:
        raise InputError("config.cuts names no dataset to make; a cut without conditions, (), keeps everything")
    for name, conditions in given.cuts.items():
        if not re.fullmatch(_NAME, name) or name == "scores":
            raise InputError(f"config.cuts.{name}: a dataset's name has letters, digits, - and _, and is not scores")
        parsed = [Condition.parse(text, f"config.cuts.{name}[{n}]") for n, text in enumerate(conditions)]
        for condition in parsed:
            _require_measured(condition.signal, signals, f"config.cuts.{name}: {str(condition)!r}")
        cuts[name] = tuple(parsed)
    for name, entry in given.duplicates.items():
        _require_measured(name, signals, f"config.duplicates.{name}")
        if not isinstance(signals[name], image_signals.PerceptualHash | text_signals.MinHash):
            raise InputError(f"config.duplicates.{name}: expected a signal of kind perceptual_hash or minhash")
        if entry.keep:
            _require_measured(entry.keep.partition(".")[0], signals, f"config.duplicates.{name}.keep")
    for kind in given.sample_kinds:
        if kind not in KINDS:
            raise InputError(f"config.sample_kinds: {kind!r} is not one of {', '.join(KINDS)}")
    limits = given.sample_kinds, given.min_side, given.max_aspect
    return Recipe(given.name, signals, given.duplicates, cuts, transforms, *limits)


def override(settings: dict[str, Any], path: str, text: str) -> None:
    """Set what a command line writes as `--config.PATH=TEXT`: a number, a tuple or a text. `read_recipe` checks it."""
    *groups, name = path.split(".")
    for group in groups:
        settings = settings.setdefault(group, {})
        if not isinstance(settings, dict):
            raise InputError(f"config.{path}: {group} is a setting without parts")
    settings[name] = parse(Any, text, f"config.{path}")


def with_endpoint(settings: dict[str, Any], endpoint: str = "", **asking: Any) -> None:
    """Give the stages that ask a language model, and name no endpoint of their own, this one; and all of them the settings
    `asking`, of `questions.Asks`.

    Raises:
      InputError: there are no such stages to take what is given.
    """
    entries = [entry for group in ("signals", "transforms") for entry in settings.get(group, {}).values()]
    asks = [entry for entry in entries if isinstance(entry, dict) and "endpoint" in entry]
    given = [name for name, value in {"endpoint": endpoint, **asking}.items() if value]
    if given and not asks:
        raise InputError(f"{', '.join(given)}: the recipe has no stage that asks a language model")
    for entry in asks:
        entry["endpoint"] = entry["endpoint"] or endpoint
        entry.update(asking)


def _stage(entry: Any, kinds: Mapping[str, type], name: str, path: str) -> Any:
    if not re.fullmatch(_NAME, name):
        raise InputError(f"{path}: a stage's name has letters, digits, - and _")
    if not isinstance(entry, Mapping):
        raise InputError(f"{path} must be a group of settings, found {entry!r}")
    kind = entry.get("kind", name)
    if kind not in kinds:
        raise InputError(f"{path}.kind must be one of {', '.join(kinds)}, found {kind!r}")
    return read(kinds[kind], {key: value for key, value in entry.items() if key != "kind"}, path)


def _require_measured(name: str, signals: Mapping[str, Signal], path: str) -> None:
    if name not in signals:
        raise InputError(f"{path}: {name} is not measured; config.signals has {', '.join(signals) or 'nothing'}")
