"""Torch checkpoints written by hand, instruction by instruction, as torch writes them; and as an attacker would."""

import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Tensor(NamedTuple):
    """A tensor as pickled: a view over the storage with number `key`."""

    dtype: str
    key: str
    count: int
    offset: int
    shape: tuple
    stride: tuple
    parameter: bool = False


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    if 0 <= value < 2**31:
        return b"J" + value.to_bytes(4, "little")
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def integers(values: tuple) -> bytes:
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def name_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tensor(t: Tensor) -> bytes:
    storage_type = name_global("torch", STORAGES.get(t.dtype, t.dtype))
    storage = b"(" + text("storage") + storage_type + text(t.key) + text("cpu") + integer(t.count) + b"tQ"
    empty = name_global("collections", "OrderedDict") + b")R"
    arguments = b"(" + storage + integer(t.offset) + integers(t.shape) + integers(t.stride) + b"\x89" + empty + b"t"
    made = name_global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"
    if t.parameter:
        made = name_global("torch._utils", "_rebuild_parameter") + b"(" + made + b"\x88" + empty + b"tR"
    return made


def state_dict(tensors: Mapping[str, Tensor], ordered: bool = False) -> bytes:
    start = name_global("collections", "OrderedDict") + b")R" if ordered else b"}"
    items = b"".join(text(name) + tensor(t) for name, t in tensors.items())
    metadata = b"}" + text("_metadata") + name_global("collections", "OrderedDict") + b")Rsb" if ordered else b""
    return b"\x80\x02" + start + b"(" + items + b"u" + metadata + b"."


def write_archive(
    path: pathlib.Path,
    pickled: bytes,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/version", b"3\n")
    path.write_bytes(buffer.getvalue())
    return path


def save(path: pathlib.Path, arrays: Mapping[str, np.ndarray], **options) -> pathlib.Path:
    """Each array in a storage of its own, as `torch.save` does for a plain state dict."""
    tensors, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        stride = tuple(step // array.itemsize for step in array.copy("C").strides)
        tensors[name] = Tensor(array.dtype.name, str(number), array.size, 0, array.shape, stride)
        storages[str(number)] = array.tobytes()
    return write_archive(path, state_dict(tensors), storages, **options)
