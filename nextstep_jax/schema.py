"""Settings as frozen dataclasses: read from nested mappings and from command lines, checked, and written back.

A field's type says what a setting can be: numbers, strings, `Literal`s, tuples, nested dataclasses, `Mapping[str, ...]` for
entries under names of the user's choice, `T | None`, and `Annotated[T, check, ...]` for what a type cannot say. A check is a
function of the value that returns what was expected, or "" for a value it accepts.

Every objection is one InputError that names the setting by its path ("config.optimizer.warmup_steps").
"""

import ast
import collections.abc
import dataclasses
import difflib
import functools
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from nextstep_jax.errors import InputError

T = TypeVar("T")
Check = Callable[[Any], str]


# --- checks -----------------------------------------------------------------------------------------------------------


def at_least(low: float) -> Check:
    return lambda value: "" if value >= low else f"at least {low}"


def above(low: float) -> Check:
    return lambda value: "" if value > low else f"more than {low}"


def within(low: float, high: float) -> Check:
    return lambda value: "" if low <= value <= high else f"in [{low}, {high}]"


def below(low: float, high: float) -> Check:
    """At least `low` and less than `high`."""
    return lambda value: "" if low <= value < high else f"in [{low}, {high})"


def regular_expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        return f"a regular expression ({error})"
    return ""


Positive = Annotated[int, at_least(1)]
NonNegative = Annotated[int, at_least(0)]
Probability = Annotated[float, within(0, 1)]
Pattern = Annotated[str, regular_expression]


# --- reading ----------------------------------------------------------------------------------------------------------


def read(kind: Any, value: Any, path: str) -> Any:
    """`value`, made of mappings, sequences and plain values, as a `kind`: a dataclass or any type that a field can have.

    Raises:
      InputError: an unknown key, naming the nearest one; a value of another type, out of range, or refused by a dataclass.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        found = read(arguments[0], value, path)
        for check in arguments[1:]:
            if expected := check(found):
                raise InputError(f"{path} must be {expected}, found {found!r}")
        return found
    if origin in (types.UnionType, typing.Union):
        return None if value is None else read(_without_none(kind), value, path)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), value, path)
    if origin is collections.abc.Mapping:
        if isinstance(value, Mapping):
            return {str(name): read(arguments[1], entry, f"{path}.{name}") for name, entry in value.items()}
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(read(k, entry, f"{path}[{n}]") for n, (k, entry) in enumerate(zip(kinds, value, strict=True)))
    elif origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
    elif kind is Any:
        return _frozen(value)
    elif kind in (bool, str):
        if isinstance(value, kind):
            return value
    elif kind is int:
        if type(value) is not bool and isinstance(value, numbers.Integral):
            return int(value)
    elif type(value) is not bool and isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise InputError(f"{path} must be {describe(kind)}, found {value!r}")


def _frozen(value: Any) -> Any:
    """A free value as settings hold it, whether it came from Python or from JSON."""
    if isinstance(value, Mapping):
        return {str(name): _frozen(entry) for name, entry in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _read_dataclass(kind: type, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        raise InputError(f"{path} must be a group of settings ({', '.join(field_types(kind))}), found {value!r}")
    known = field_types(kind)
    for name in value:
        if name not in known:
            raise unknown_key(kind, str(name), path)
    fields = {name: read(known[name], entry, f"{path}.{name}") for name, entry in value.items()}
    try:
        return kind(**fields)
    except InputError as error:
        if str(error).startswith(f"{path}."):
            raise
        named = re.match(r"\w+", str(error))  # most objections begin with a field's name
        raise InputError(f"{path}{'.' if named and named[0] in known else ': '}{error}") from error


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """The settings of a dataclass and their types."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def unknown_key(kind: type, name: str, path: str) -> InputError:
    """The error for a key that a dataclass does not have."""
    near = difflib.get_close_matches(name, field_types(kind), n=1, cutoff=0.5)
    hint = f"did you mean {path}.{near[0]}?" if near else f"{path} has {', '.join(field_types(kind))}"
    return InputError(f"{path}.{name} is not a setting; {hint}")


def describe(kind: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return f"{describe(_without_none(kind))} or None"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a tuple, each entry {describe(arguments[0])}"
        return f"a tuple ({', '.join(map(describe, arguments))})"
    if origin is collections.abc.Mapping:
        return "a group of settings under names of your choice"
    return {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string"}.get(kind, "a value")


def _without_none(kind: Any) -> Any:
    return next(argument for argument in typing.get_args(kind) if argument is not type(None))


# --- command lines ----------------------------------------------------------------------------------------------------


def parse(kind: Any, text: str, path: str) -> Any:
    """What `text` on a command line says for a setting of type `kind`: numbers, tuples and booleans as Python writes them,
    strings as they are. Raises as `read`.
    """
    bare = kind
    while typing.get_origin(bare) in (Annotated, types.UnionType, typing.Union):
        if text == "None" and typing.get_origin(bare) is not Annotated:
            return None
        bare = typing.get_args(bare)[0] if typing.get_origin(bare) is Annotated else _without_none(bare)
    if bare is str or typing.get_origin(bare) is Literal:
        return read(kind, text, path)
    if bare is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if bare is not Any:
            example = " such as ('a', 'b')" if typing.get_origin(bare) is tuple else ""
            raise InputError(f"{path} must be {describe(kind)}{example}, found {text!r}") from error
        value = text
    if bare is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e5
    return read(kind, value, path)


# --- writing ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Settings as JSON writes them: dataclasses and mappings as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def flatten(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of every setting in `plain` settings; a group without entries counts as one."""
    for name, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            yield from flatten(entry, f"{path}.{name}")
        else:
            yield f"{path}.{name}", entry
