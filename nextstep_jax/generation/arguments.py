"""The form of what a caller gives, checked before anything runs."""

import math
import numbers
from typing import Any

import numpy as np

from nextstep_jax.errors import InputError


def require_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number in [least, most], also one of NumPy's; not a truth value, not 1.0."""
    whole = isinstance(value, numbers.Integral | np.integer) and not isinstance(value, bool | np.bool_)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {limits}, found {value!r}")
    return int(value)


def require_float(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number in [least, most]; not a truth value, not text."""
    real = isinstance(value, numbers.Real | np.number) and not isinstance(value, bool | np.bool_)
    if not (real and math.isfinite(value) and least <= value <= most):
        bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (most < math.inf)
        limits = f" of {' and '.join(bounds)}" if bounds else ""
        raise InputError(f"{name} must be a number{limits}, found {value!r}")
    return float(value)


def require_bool(name: str, value: Any) -> bool:
    """True or False, also NumPy's; not 0 or 1, not text."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, found {value!r}")
    return bool(value)


def require_str(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, found {value!r}")
    return value


def require_instance(name: str, value: Any, kind: type) -> Any:
    """A value of the class `kind`."""
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, found {value!r}")
    return value
