"""Evaluations during training, as `config.evals` asks for them.

    config.evals.shapes = evaluation("shapes", every=1_000, per_category=10)

An evaluator is a function of the model as it stands to numbers. What makes one is named in the config: by a name that the
launcher knows, or "python:package.module:function". Results are logged as NAME/NUMBER under the entry's own name.
"""

import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nextstep_jax.errors import InputError
from nextstep_jax.training.settings import EvaluationConfig

logger = logging.getLogger(__name__)

# The model (a Pipeline; of a stage for image tokenizers, images -> reconstructions) -> numbers by name.
Evaluator = Callable[[Any], Mapping[str, float | None]]
# The entry's settings, as keyword arguments -> an evaluator. InputError for settings that do not fit.
EvaluatorFactory = Callable[..., Evaluator]

PYTHON = "python:"


class Evaluation(NamedTuple):
    """An evaluator under its name in the config, and how often it runs."""

    name: str
    every: int
    evaluator: Evaluator


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
            found.append(Evaluation(name, entry.every, factory(**entry.settings)))
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
