"""What a stage of curation is: a signal measures samples, a transform makes samples of them.

A stage is a frozen dataclass: its fields are its settings, `version` changes when its results do, and both go into the digest
that decides whether a result is still good. `prepare` loads what it needs (a model, an endpoint), once a worker process, and
raises InputError by name where that is not there: a stage is never skipped.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from nextstep_jax.data import files
from nextstep_jax.data.records import Sample
from nextstep_jax.errors import InputError

# Names and values of what a signal found: numbers to cut by, texts and lists to look at or to compare. None: not found out.
Values = Mapping[str, Any]
Measure = Callable[[Sample], Values]
# A sample, all that was measured of it, and a generator of its own -> what takes its place.
Make = Callable[[Sample, Mapping[str, Values], np.random.Generator], Iterable[Sample]]

# Metadata of a stage's fields that its results do not depend on.
NO_RESULT = {"result": False}


class Dropped(InputError):
    """A sample that a transform leaves out; `reason` is one of a few, to be counted."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Signal(Protocol):
    """Measures samples, one by one. One that runs a file of the user's has `model_files`, the paths whose bytes count."""

    version: ClassVar[int]

    def prepare(self) -> Measure: ...


class Transform(Protocol):
    """Makes samples of samples, one by one: none (by raising `Dropped`), one or several."""

    version: ClassVar[int]

    def prepare(self) -> Make: ...


def prepare(stages: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The functions of stages by name. A model is loaded once a process. InputError names a stage that lacks what it needs.

    Args:
      what: "signal" or "transform", for errors.
    """
    prepared = {}
    for name, stage in stages.items():
        try:
            prepared[name] = _prepare(stage)
        except InputError as error:
            raise InputError(f"{what} {name}: {error}") from error
    return prepared


@functools.lru_cache(maxsize=64)
def _prepare(stage: Any) -> Any:
    return stage.prepare()


def require_kinds(kinds: Collection[str], known: Collection[str], per_image: int) -> None:
    """InputError unless all of a stage's `kinds` are known, and there are at least `per_image` of them."""
    for kind in kinds:
        if kind not in known:
            raise InputError(f"kinds: {kind!r} is not one of {', '.join(known)}")
    if not 1 <= per_image <= len(kinds):
        raise InputError(f"per_image must be from 1 to {len(kinds)}, the number of kinds, found {per_image}")


def description(stage: Any) -> dict[str, Any]:
    """What a stage's results depend on, as JSON values; of a stage with `model_files`, their bytes too."""
    found = {"stage": type(stage).__name__, "version": stage.version}
    found |= {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage) if f.metadata != NO_RESULT}
    paths: list[pathlib.Path] = stage.model_files() if hasattr(stage, "model_files") else []
    if paths:
        found["model_files"] = [[path.name, _file_digest(path, files.fingerprint(path))] for path in paths]
    return found


@functools.lru_cache(maxsize=64)
def _file_digest(path: pathlib.Path, fingerprint: str) -> str:
    """sha256 of a file, read anew only where its size or time changed."""
    return files.sha256(path)


def generator(sample: Sample, name: str) -> np.random.Generator:
    """Randomness of one stage for one sample, whoever works on it and when."""
    seed = hashlib.sha256(f"{name}\0{sample.key}".encode()).digest()
    return np.random.default_rng(np.frombuffer(seed, np.uint32))


def require_package(module: str, package: str, stage: str) -> Any:
    """The module, imported. InputError names the stage and the package it needs."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{stage} needs the package {package}: pip install 'nextstep_jax[curate]'")
    return importlib.import_module(module)


def worst_of_images(measure: Callable[[np.ndarray], Values], high_is_worse: bool) -> Measure:
    """A measure of samples from one of images [height, width, 3] uint8: of several images, the worst number counts."""
    worst = max if high_is_worse else min

    def of_sample(sample: Sample) -> Values:
        found = [measure(part.pixels(sample.key)) for part in sample.images]
        return {name: worst(values[name] for values in found) for name in found[0]} if found else {}

    return of_sample
