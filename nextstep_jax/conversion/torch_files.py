"""Safe, lazy readers of the files that hold released weights: safetensors and torch checkpoints, without torch.

Opening a file reads its table of contents only; each tensor is read when asked for, so memory follows the largest tensor.
The files are not trusted: every offset, size and stride is checked before it is used, nothing outside the given folder is
opened (untrusted.py says where links may lead), and a torch checkpoint's pickle is interpreted by a machine that knows tensors
and nothing else. Nothing is ever imported or called on a file's behalf.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from nextstep_jax.conversion.torch_pickle import Storage, View, is_sizes, read_pickle
from nextstep_jax.errors import InputError, one_line
from nextstep_jax.untrusted import open_inside

# Tables of contents, without the tensors' data: a checkpoint of 1000 tensors needs about 0.1 MiB of either. Parsed, a malicious
# one takes up to a hundred times as much.
MAX_HEADER_BYTES = 16 << 20
MAX_PICKLE_BYTES = 2 << 20
MAX_SMALL_BYTES = 64 << 20  # of a JSON file or a text tokenizer's
MAX_NAME = 500  # characters of a tensor's name

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
      file: the file it lies in, as errors should name it.
      read: reads the data, `[*shape]` of `dtype`. InputError if the file changed or is damaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: pathlib.Path
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def open_weights(folder: pathlib.Path, candidates: tuple[str, ...]) -> tuple[list[StoredTensor], list[str]]:
    """All tensors of a folder's weights, and what is wrong between an index and its shards, one line each.

    Args:
      candidates: file names, best first. `X.index.json` beside or instead of `X` names the shards of X.

    Raises:
      InputError: no candidate is there, or a file cannot be read as what it is.
    """
    for name in candidates:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
        if (folder / name).is_file():
            return open_file(folder / name), []
    raise InputError(f"{folder}: no weights found; expected {', '.join(candidates)} or an index of its shards")


def has_weights(folder: pathlib.Path, candidates: tuple[str, ...]) -> bool:
    """Whether `open_weights` would find something to open."""
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in candidates)


def open_file(path: pathlib.Path) -> list[StoredTensor]:
    """The tensors of one file: safetensors by its name, a torch checkpoint otherwise (.pt, .pth, .bin)."""
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file. InputError if it is missing, too large, not JSON, not an object, or repeats a key."""
    with _reading(path, "not a JSON object"):
        return _parse_object(read_small(path))


def read_small(path: pathlib.Path) -> bytes:
    """The content of a file of at most 64 MiB. InputError if it is empty, larger, unreadable or a link out of its folder."""
    with _reading(path, "cannot be read"):
        with open_inside(path) as file:
            data = file.read(MAX_SMALL_BYTES + 1)
        if len(data) > MAX_SMALL_BYTES:
            raise InputError(f"{path}: larger than {MAX_SMALL_BYTES >> 20} MiB")
        if not data.strip():
            raise InputError(f"{path}: the file is empty")
        return data


def read_weight_map(index: pathlib.Path) -> dict[str, str]:
    """{tensor: file} of an index of shards. InputError unless every file is a plain name, of the index's own folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index}: it has no weight_map from tensor names to file names")
    strange = [file for file in weight_map.values() if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", file)]
    if strange:
        raise InputError(f"{index}: names {strange[0]!r:.200}, which is not a file of its own folder")
    return weight_map


def _open_shards(index: pathlib.Path) -> tuple[list[StoredTensor], list[str]]:
    weight_map = read_weight_map(index)
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise InputError(f"{index}: {len(absent)} of its {len(files)} files are missing: {', '.join(absent)}")
    tensors = [tensor for file in files for tensor in open_file(index.parent / file)]
    found, listed = {(tensor.name, tensor.file.name) for tensor in tensors}, set(weight_map.items())
    problems = [f"{name}: not in {file}, where {index.name} says it is" for name, file in sorted(listed - found)]
    problems += [f"{name}: in {file}, but {index.name} does not say so" for name, file in sorted(found - listed)]
    return tensors, problems


@contextlib.contextmanager
def _reading(path: pathlib.Path, complaint: str) -> Iterator[None]:
    """Turn whatever a malformed file makes the standard library raise into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        reason = one_line(error)
        raise InputError(f"{path}: {complaint} ({type(error).__name__}: {reason})") from error


def _parse_object(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            counts = collections.Counter(key for key, _ in pairs)
            raise ValueError(f"repeated: {', '.join(key for key, count in counts.items() if count > 1)}")
        return table

    value = json.loads(data, object_pairs_hook=unique)
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__}")
    return value


# --- safetensors ------------------------------------------------------------------------------------------------------


def open_safetensors(path: pathlib.Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order of their data.

    Raises:
      InputError: not safetensors, truncated, or a header that does not describe the data byte for byte.
    """
    with _reading(path, "not a safetensors file"), open_inside(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
            raise InputError(f"{path}: not a safetensors file or truncated ({size} bytes, its header should have {length})")
        header = _parse_object(file.read(length))
        header.pop("__metadata__", None)
        rows = sorted((_safetensors_row(path, name, row) for name, row in header.items()), key=lambda row: row[2:])
        end = 0
        for name, _, start, stop, _ in rows:
            if start != end:
                raise InputError(f"{path}: the data of {name} starts at byte {start}, expected {end}")
            end = stop
        if 8 + length + end != size:
            raise InputError(f"{path}: truncated or damaged, it has {size} bytes and its header describes {8 + length + end}")
    return [
        StoredTensor(name, shape, dtype, path, functools.partial(_read_range, path, 8 + length + start, shape, dtype))
        for name, dtype, start, _, shape in rows
    ]


def _check_name(path: pathlib.Path, name: str) -> None:
    if len(name) > MAX_NAME:
        raise InputError(f"{path}: the name of a tensor has {len(name)} characters, more than {MAX_NAME}: {name:.50}...")


def _safetensors_row(path: pathlib.Path, name: str, row: Any) -> tuple[str, np.dtype, int, int, tuple[int, ...]]:
    """(name, dtype, start, stop, shape) of one header entry, checked against itself."""
    _check_name(path, name)
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{path}: the header's entry of {name} is not dtype, shape and data_offsets")
    if not isinstance(row["dtype"], str) or row["dtype"] not in SAFETENSORS_DTYPES:
        raise InputError(f"{path}: {name} has dtype {row['dtype']!r:.100}, which is not supported")
    dtype, shape, offsets = SAFETENSORS_DTYPES[row["dtype"]], row["shape"], row["data_offsets"]
    if not is_sizes(shape) or not is_sizes(offsets) or len(offsets) != 2:
        raise InputError(f"{path}: {name} has shape {shape!r:.100} and data_offsets {offsets!r:.100}, which are not sizes")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{path}: {name} has shape {shape} and dtype {row['dtype']}, but data_offsets {offsets}")
    return name, dtype, offsets[0], offsets[1], tuple(shape)


def _read_range(path: pathlib.Path, start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape) * dtype.itemsize
    with _reading(path, "cannot be read"):
        data = np.fromfile(path, np.uint8, count, offset=start)
    if data.size != count:
        raise InputError(f"{path}: truncated while it was read ({count} bytes expected at {start}, found {data.size})")
    return data.view(dtype).reshape(shape)


# --- torch checkpoints ------------------------------------------------------------------------------------------------


def open_torch(path: pathlib.Path) -> list[StoredTensor]:
    """The tensors of a torch checkpoint with one flat state dict: a zip archive, or a file of torch before 1.6.

    Raises:
      InputError: another format, a pickle that names anything but tensors (it is refused unread), a tensor that reaches
        outside its storage, a compressed or truncated archive.
    """
    with _reading(path, "not a torch checkpoint"):
        archive: _TorchArchive | _LegacyFile
        with open_inside(path) as file:
            if file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC:
                archive = _LegacyFile(path, file)
            elif zipfile.is_zipfile(file):
                archive = _TorchArchive(path)
            else:
                raise InputError(
                    f"{path}: not a torch checkpoint (neither a zip archive nor of torch before 1.6), or truncated"
                )
        state = _flat_state(path, archive.state)
        for name, view in state.items():
            _check_name(path, name)
            archive.check(name, view)
    return [StoredTensor(name, v.shape, v.storage.dtype, path, functools.partial(archive.read, v)) for name, v in state.items()]


def _flat_state(path: pathlib.Path, state: Any) -> dict[str, View]:
    """The state dict in what a checkpoint holds: the whole of it, or the one table beside what is no tensor (epoch, step)."""
    if not isinstance(state, dict):
        raise InputError(f"{path}: expected a state dict, found {type(state).__name__}")
    tables = [name for name, value in state.items() if isinstance(value, dict)]
    if len(tables) == 1 and not any(isinstance(value, View) for value in state.values()):
        state = state[tables[0]]
    elif len(tables) > 1:
        listed = ", ".join(f"{name:.50}" for name in tables[:5])
        raise InputError(f"{path}: expected one state dict of tensors, found the tables {listed}; save the model's alone")
    for name, value in state.items():
        if not isinstance(value, View):
            raise InputError(f"{path}: expected a flat state dict of tensors, found {type(value).__name__} at {name!r:.100}")
    return state


class _TorchArchive:
    """The zip archive of a torch checkpoint. Keeps the storage read last, for tensors that share one."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.zip = zipfile.ZipFile(path)
        self.size = path.stat().st_size
        roots = [name.removesuffix("data.pkl") for name in self.zip.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(roots) != 1:
            raise InputError(f"{path}: expected one data.pkl in the archive, found {len(roots)}")
        self.root = roots[0]
        self.last: tuple[Storage, np.ndarray] | None = None
        self.state = read_pickle(self.read_record("data.pkl", limit=MAX_PICKLE_BYTES), path)
        order = self.read_record("byteorder", limit=16) if f"{self.root}byteorder" in self.zip.NameToInfo else b"little"
        if order != b"little":
            raise InputError(f"{path}: byte order {order!r} is not supported")

    def record(self, name: str) -> zipfile.ZipInfo:
        info = self.zip.NameToInfo.get(self.root + name)
        if info is None:
            raise InputError(f"{self.path}: the archive has no {self.root:.100}{name:.100}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise InputError(f"{self.path}: {info.filename} is compressed or encrypted, which torch never does")
        if info.header_offset + info.file_size > self.size:
            raise InputError(f"{self.path}: {info.filename} reaches beyond the end of the file")
        return info

    def read_record(self, name: str, limit: int) -> bytes:
        info = self.record(name)
        if info.file_size > limit:
            raise InputError(f"{self.path}: {info.filename} has {info.file_size} bytes, more than {limit}")
        return self.zip.read(info)

    def check(self, name: str, view: View) -> None:
        """InputError unless the view stays inside its storage and the storage's record has exactly its bytes."""
        storage = view.storage
        record = self.record(f"data/{storage.key}")
        if record.file_size != storage.count * storage.dtype.itemsize:
            raise InputError(
                f"{self.path}: {record.filename} has {record.file_size} bytes, expected {storage.count} of {storage.dtype}"
            )
        _require_inside(self.path, name, view)

    def read(self, view: View) -> np.ndarray:
        """The tensor's data; the archive's checksum of the storage is verified."""
        if self.last is None or self.last[0] != view.storage:
            self.last = None
            with _reading(self.path, "damaged"):
                data = self.zip.read(self.record(f"data/{view.storage.key}"))
            self.last = view.storage, np.frombuffer(data, view.storage.dtype)
        return _tensor_of(self.last[1], view)


def _require_inside(path: pathlib.Path, name: str, view: View) -> None:
    """InputError unless a tensor stays inside its storage."""
    storage, shape, stride = view.storage, view.shape, view.stride
    count = math.prod(shape)
    last = view.offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else -1
    if count > storage.count or last >= storage.count:
        raise InputError(
            f"{path}: {name} (shape {shape}, stride {stride}, offset {view.offset}) "
            f"reaches outside its storage of {storage.count}"
        )


def _tensor_of(storage: np.ndarray, view: View) -> np.ndarray:
    strides = [step * storage.itemsize for step in view.stride]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides, writeable=False)


# Five pickles one after the other (a magic number, a version, the machine, the state dict, the storages' keys), then of each
# storage its number of elements and its data.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class _LegacyFile:
    """A checkpoint of torch before 1.6. It has no checksums.

    Args:
      file: behind the magic number.
    """

    def __init__(self, path: pathlib.Path, file: BinaryIO):
        self.path = path
        size = os.fstat(file.fileno()).st_size
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        version, machine = read_pickle(head, path), read_pickle(head, path)
        if version != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise InputError(f"{path}: protocol {version!r:.50} or a byte order that is not supported")
        self.state = read_pickle(head, path)
        keys = read_pickle(head, path)
        views = self.state.values() if isinstance(self.state, dict) else ()
        storages = {view.storage.key: view.storage for view in views if isinstance(view, View)}
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InputError(f"{path}: it does not say which storages it holds")
        self.starts: dict[str, int] = {}
        at = len(_LEGACY_MAGIC) + head.tell()
        for key in keys:
            if key not in storages or key in self.starts:
                raise InputError(f"{path}: storage {key:.100} is of no tensor, or there twice")
            storage = storages[key]
            file.seek(at)
            found = int.from_bytes(file.read(8), "little")
            self.starts[key] = at + 8
            at += 8 + storage.count * storage.dtype.itemsize
            if found != storage.count or at > size:
                raise InputError(f"{path}: truncated or damaged at storage {key:.100}, expected {storage.count} elements")
        if at != size:
            raise InputError(f"{path}: {size} bytes, its tensors take {at}")

    def check(self, name: str, view: View) -> None:
        """InputError unless the view stays inside a storage that is there."""
        if view.storage.key not in self.starts:
            raise InputError(f"{self.path}: {name} lies in storage {view.storage.key:.100}, which is not there")
        _require_inside(self.path, name, view)

    def read(self, view: View) -> np.ndarray:
        """The tensor's data."""
        storage = view.storage
        return _tensor_of(_read_range(self.path, self.starts[storage.key], (storage.count,), storage.dtype), view)
