"""From a suite's name to the suite."""

import pathlib
from collections.abc import Mapping

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.dpg import DPGBench
from nextstep_jax.evaluation.suites.gedit import GEdit, GEditChinese
from nextstep_jax.evaluation.suites.genai import GenAIBench
from nextstep_jax.evaluation.suites.geneval import GenEval
from nextstep_jax.evaluation.suites.imgedit import ImgEdit
from nextstep_jax.evaluation.suites.oneig import OneIG, OneIGChinese
from nextstep_jax.evaluation.suites.suite import Suite
from nextstep_jax.evaluation.suites.wise import Wise, WiseVerified

_ALL = (GenEval, GenAIBench, DPGBench, OneIG, OneIGChinese, Wise, WiseVerified, GEdit, GEditChinese, ImgEdit)
SUITES: Mapping[str, type[Suite]] = {suite.name: suite for suite in _ALL}


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
