"""The pickle inside a torch checkpoint, interpreted without executing anything.

`read_pickle` is a stack machine over the instructions that torch writes for a state dict. Globals stay names: those that
make up a tensor are understood here, any other is refused by name.

Values may refer to each other, so a few bytes can describe a value that is exponentially large once it is written out: what
was read is checked by type, and never compared, hashed or formatted before its type is known to be a flat one.
"""

import dataclasses
import pathlib
import pickletools
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from nextstep_jax.errors import InputError

TORCH_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Storage(NamedTuple):
    """A flat run of numbers in the archive that tensors are views of."""

    dtype: np.dtype
    key: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks a storage for


class View(NamedTuple):
    """A tensor as torch pickles it: `shape` and `stride` (in elements) over a storage, from `offset`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def is_sizes(value: Any) -> bool:
    """Whether `value` is a list or tuple of at most 32 sizes: whole numbers from 0 up."""
    flat = isinstance(value, list | tuple) and len(value) <= 32
    return flat and all(type(size) is int and 0 <= size < 2**63 for size in value)


def read_pickle(data: bytes | BinaryIO, path: pathlib.Path) -> Any:
    """What the pickle holds: dicts, lists, tuples, numbers, text and tensors (as `View`), and nothing else.

    Args:
      data: a file is read up to the pickle's end.
      path: for messages.

    Raises:
      InputError: a global that is no part of a tensor, or an instruction that no checkpoint of tensors needs.
      Exception: of other kinds for a pickle that makes no sense.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                continue
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                item = stack.pop()
                _of(list, stack[-1]).append(item)
            case "APPENDS":
                items = pop_to_mark()
                _of(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value], path)
            case "SETITEMS":
                items = pop_to_mark()
                _set_items(stack[-1], items, path)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                module, name = argument.split(" ", 1)
                stack.append(_global(module, name, path=path))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(module, name, path=path))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, _of(tuple, arguments)))
            case "BUILD":  # a state dict's _metadata attribute
                stack.pop()
                _of(dict, stack[-1])
            case other:
                raise InputError(f"{path}: its pickle has the instruction {other}, which no checkpoint of tensors needs")
    (result,) = stack
    return result


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of something a pickle refers to. Only ever compared, never looked up."""

    module: str
    name: str


_REBUILD = {Global("torch._utils", "_rebuild_tensor_v2"), Global("torch._utils", "_rebuild_tensor")}
_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_ORDERED_DICT = Global("collections", "OrderedDict")
_STORAGE_TYPES = {Global("torch", name): dtype for name, dtype in TORCH_STORAGES.items()}
_ADMITTED = {*_REBUILD, _PARAMETER, _ORDERED_DICT, *_STORAGE_TYPES}


def _global(module: Any, name: Any, path: pathlib.Path) -> Global:
    named = Global(_of(str, module), _of(str, name))
    if named not in _ADMITTED:
        raise InputError(
            f"{path}: its pickle names {module:.100}.{name:.100}, which is no part of a tensor; nothing was executed"
        )
    return named


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected a {kind.__name__}, found {type(value).__name__}")
    return value


def _set_items(target: Any, items: list[Any], path: pathlib.Path) -> None:
    table = _of(dict, target)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if _of(str, key) in table:
            raise InputError(f"{path}: {key:.200} is there twice")
        table[key] = value


def _storage(identifier: Any) -> Storage:
    kind, storage_type, key, _, count, *view = _of(tuple, identifier)  # before torch 1.6 there is a view, always None
    if view not in ([], [None]):
        raise ValueError("a storage that is a view of another")
    if _of(str, kind) != "storage" or _of(Global, storage_type) not in _STORAGE_TYPES or not is_sizes([count]):
        raise ValueError("a persistent id that is no storage of a tensor")
    return Storage(_STORAGE_TYPES[storage_type], _of(str, key), count)


def _reduce(function: Any, arguments: tuple) -> Any:
    if _of(Global, function) in _REBUILD:
        storage, offset, shape, stride = arguments[:4]
        if not (is_sizes(shape) and is_sizes(stride) and is_sizes([offset]) and len(shape) == len(stride)):
            raise ValueError("a tensor whose shape, stride or offset is not made of sizes")
        return View(_of(Storage, storage), offset, tuple(shape), tuple(stride))
    if function == _PARAMETER:
        return _of(View, arguments[0])
    if function == _ORDERED_DICT and not arguments:
        return {}
    raise ValueError(f"a call of {function.module}.{function.name} with {len(arguments)} arguments")
