"""Checks shapes and dtypes at run time, in tests only: what the jaxtyping annotations of the array functions say.

An annotation of a JAX array also takes a NumPy array here, and that of a scalar a Python number, as JAX itself does.
"""

import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jax
import jaxtyping
import numpy as np

# The rooms whose public functions take and return arrays.
CHECKED = [f"nextstep_jax.{room}" for room in ("flow", "models", "objectives", "evaluation", "rewards.combine")]
CHECKED += [f"nextstep_jax.generation.{module}" for module in ("jacobi", "rollouts", "text", "token_loop")]
CHECKED += [f"nextstep_jax.generation.{module}" for module in ("tokenizer", "word_attention")]
CHECKED += [f"nextstep_jax.data.{module}" for module in ("packing", "records", "shapes.scene")]
_KINDS = (jaxtyping.Float, jaxtyping.Int, jaxtyping.Bool, jaxtyping.Real)


def install() -> None:
    """Check the modules of CHECKED that are imported from now on."""
    jaxtyping.install_import_hook(CHECKED, "tests.shape_checks.check_arrays")


def check_arrays(function: Callable) -> Callable:
    """`function` with its annotations of arrays checked. Other arguments are the function's own to refuse."""
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: _widened(hint) for name, hint in hints.items() if _speaks_of_arrays(hint)}
    return beartype.beartype(function) if function.__annotations__ else function


def _is_array(hint: Any) -> bool:
    return getattr(hint, "__module__", "") == "jaxtyping"


def _speaks_of_arrays(hint: Any) -> bool:
    return _is_array(hint) or any(map(_speaks_of_arrays, typing.get_args(hint)))


def _widened(hint: Any) -> Any:
    if _is_array(hint):
        if hint.array_type is not jax.Array:
            return hint
        kind = next(kind for kind in _KINDS if kind.dtypes == hint.dtypes)
        arrays = kind[jax.Array | np.ndarray, hint.dim_str]
        scalar = not hint.dim_str or hint.dim_str.startswith("*") and " " not in hint.dim_str
        return arrays | float | int | np.generic if scalar else arrays
    if typing.get_origin(hint) is tuple:
        return tuple[tuple(map(_widened, typing.get_args(hint)))]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_widened, typing.get_args(hint)))
    return hint
