"""Evaluations during training, as `config.evals` asks for them.

    config.evals.shapes = evaluation("shapes", every=1_000, per_category=10)

An evaluator is a function of the model as it stands to numbers. What makes one is named in the config: by a name that the
launcher knows, or "python:package.module:function". Results are logged as NAME/NUMBER under the entry's own name.

One of a run's evaluations may be watched: a number of it decides which step is the run's result, and may end the run early.
"""

import dataclasses
import importlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nextstep_jax.errors import InputError
from nextstep_jax.storage import Place
from nextstep_jax.training.run_logs import read_metrics
from nextstep_jax.training.settings import EvaluationConfig

logger = logging.getLogger(__name__)

# The model (a Pipeline; of a stage for image tokenizers, images -> reconstructions) -> numbers by name.
Evaluator = Callable[[Any], Mapping[str, float | None]]
# The entry's settings, as keyword arguments -> an evaluator. InputError for settings that do not fit.
EvaluatorFactory = Callable[..., Evaluator]

PYTHON = "python:"


class Evaluation(NamedTuple):
    """An evaluator under its name in the config, how often it runs, and what is watched of it (see EvaluationConfig)."""

    name: str
    every: int
    evaluator: Evaluator
    watch: str = ""
    patience: int = 0


@dataclasses.dataclass(frozen=True)
class Watch:
    """A number that decides, with its value at every step where it was evaluated.

    Attributes:
      evaluation: which one it is of.
      values: by step, in ascending order; one that is not finite is lower than any other.
    """

    evaluation: Evaluation
    values: dict[int, float]

    @property
    def name(self) -> str:
        """As it is logged."""
        return f"{self.evaluation.name}/{self.evaluation.watch}"

    @property
    def best(self) -> int | None:
        """The step with the highest value, the first of several; None before there is one."""
        return max(self.values, key=lambda step: (_finite(self.values[step]), -step), default=None)

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        after = sum(step > self.best for step in self.values) if self.best is not None else 0
        return 0 < self.evaluation.patience <= after

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Remember the number among those of `run_evaluators`. InputError if it is not one of them."""
        if self.name not in values:
            numbers = ", ".join(name.partition("/")[2] for name in values if name.startswith(f"{self.evaluation.name}/"))
            raise InputError(
                f"config.evals.{self.evaluation.name}.watch must be a number of the evaluation ({numbers}), "
                f"found {self.evaluation.watch!r}"
            )
        self.values[step] = values[self.name]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def open_watch(evaluations: Sequence[Evaluation], workdir: Place, until: int) -> Watch | None:
    """The watched one of some evaluations, with its values in the run's metrics up to a step; None if none is watched."""
    for evaluation in evaluations:
        if evaluation.watch:
            watch = Watch(evaluation, {})
            if until:
                steps, values = read_metrics(workdir).get(watch.name, ((), ()))
                watch.values.update((int(s), float(v)) for s, v in zip(steps, values, strict=True) if s <= until)
            return watch
    return None


def open_evaluators(entries: Mapping[str, EvaluationConfig], known: Mapping[str, EvaluatorFactory]) -> list[Evaluation]:
    """The evaluations of a config that ever run, in the order of their names.

    Raises:
      InputError: naming the entry whose evaluator does not exist or does not take its settings.
    """
    found = []
    for name, entry in sorted(entries.items()):
        if not entry.every:
            continue
        option = f"config.evals.{name}"
        if entry.evaluator.startswith(PYTHON):
            factory = import_function(entry.evaluator.removeprefix(PYTHON), f"{option}.evaluator")
        elif entry.evaluator in known:
            factory = known[entry.evaluator]
        else:
            choices = ", ".join([*known, f"{PYTHON}package.module:function"])
            raise InputError(f"{option}.evaluator must be one of {choices}, found {entry.evaluator!r}")
        try:
            found.append(Evaluation(name, entry.every, factory(**entry.settings), entry.watch, entry.patience))
        except (InputError, TypeError) as error:
            raise InputError(f"{option}.settings: {error}") from error
    return found


def run_evaluators(evaluations: Sequence[Evaluation], model: Any) -> dict[str, float]:
    """The numbers of some evaluations, {"entry/number": value}; a number that is None is left out."""
    values: dict[str, float] = {}
    for evaluation in evaluations:
        began = time.perf_counter()
        scores = {f"{evaluation.name}/{name}": value for name, value in evaluation.evaluator(model).items()}
        values |= {name: float(value) for name, value in scores.items() if value is not None}
        logger.info("Evaluated %s in %.0f s", evaluation.name, time.perf_counter() - began)
    return values


def import_function(name: str, option: str) -> Callable[..., Any]:
    """The function "package.module:function".

    Raises:
      InputError: naming `option`, when there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option}: {name!r} is not package.module:function ({error})") from error
    if not callable(found):
        raise InputError(f"{option}: {name!r} is not a function")
    return found
