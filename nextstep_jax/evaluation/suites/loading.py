"""From a suite's name to the suite."""

import pathlib
from collections.abc import Mapping

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.geneval import GenEval
from nextstep_jax.evaluation.suites.suite import Suite
from nextstep_jax.evaluation.suites.wise import Wise, WiseVerified

SUITES: Mapping[str, type[Suite]] = {suite.name: suite for suite in (GenEval, Wise, WiseVerified)}


def open_suite(name: str, data: pathlib.Path | None = None, unofficial: bool = False) -> Suite:
    """The suite of a name, its files read and checked.

    Args:
      data: the folder of its official files; the package has the prompts of GenEval and DPG-Bench.
      unofficial: take files that differ from the official ones.

    Raises:
      InputError: no such suite, no folder where one is needed, or files that are not the official ones.
    """
    if name not in SUITES:
        raise InputError(f"suite must be one of {', '.join(SUITES)}, found {name!r}")
    return SUITES[name](data, unofficial)
