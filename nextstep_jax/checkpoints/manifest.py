"""Sealed JSON documents and digests of files: what finds a flipped, cut or missing byte anywhere in a checkpoint."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from nextstep_jax import storage
from nextstep_jax.checkpoints.digests import DTYPES
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage import Place

_SEAL = '"digest": "'  # the last entry of a sealed document
_END = '"}\n'
_READ_BYTES = 1 << 22  # bytes hashed at a time
_MAX_NAME = 500  # characters of a leaf's path or a file's name
_THREADS = min(8, os.cpu_count() or 1)
_MAX_DOCUMENT_BYTES = 64 << 20  # of a 14B training state: some 2 MiB


def seal(content: Mapping[str, Any]) -> bytes:
    """The content as JSON text whose last entry, "digest", covers every byte before it."""
    head = json.dumps(dict(content)).removesuffix("}") + ",\n" + _SEAL
    return (head + _hash(head.encode()) + _END).encode()


def read_sealed(path: Place) -> dict[str, Any]:
    """The content of a file written by `seal`.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedDataError: not one bit may differ from what `seal` returned.
      InputError: it is not a regular file, or a link out of its folder.
    """
    with storage.of(path).open_inside(path) as file:
        data = file.read(_MAX_DOCUMENT_BYTES + 1)
    if len(data) > _MAX_DOCUMENT_BYTES:
        raise DamagedDataError(f"{path}: larger than a sealed document can be, {_MAX_DOCUMENT_BYTES >> 20} MiB")
    head, found, tail = data.rpartition(_SEAL.encode())
    digest = _hash(head + found).encode()
    if not found or tail != digest + _END.encode():
        raise DamagedDataError(f"{path}: damaged (its contents do not match the digest at its end)")
    try:
        content = json.loads(data)
        del content["digest"]
    except (ValueError, KeyError, RecursionError) as error:  # whoever wrote it knew how to seal, and no more
        raise DamagedDataError(f"{path}: damaged (its digest is right, but it is not JSON: {str(error)[:100]})") from error
    return content


def check_tables(content: Mapping[str, Any], *, leaves: bool = True) -> None:
    """Check the tables "files" and, if there is to be one, "leaves" of a sealed document.

    Raises:
      InputError: naming the entry that is not what `describe_files` or an `ArrayWriter` gives.
    """
    files = content.get("files")
    if not isinstance(files, dict):
        raise InputError("it has no table of files")
    for name, entry in files.items():
        check_relative(name)
        if not isinstance(entry, dict) or not is_size(entry.get("size")) or not isinstance(entry.get("digest"), str):
            raise InputError(f"its entry of the file {name} is not a size and a digest")
    if leaves:
        _check_leaves(content.get("leaves"))


def _check_leaves(leaves: Any) -> None:
    if not isinstance(leaves, dict):
        raise InputError("it has no table of leaves")
    folders = {"/".join(keys[:n]) for keys in (path.split("/") for path in leaves) for n in range(1, len(keys))}
    for path, entry in leaves.items():
        if not path or len(path) > _MAX_NAME or not path.isprintable() or not all(path.split("/")) or path in folders:
            raise InputError(f"{path[:_MAX_NAME]!r} cannot be the path of a leaf beside the others")
        shape, dtype, digest = (
            (entry.get(key) for key in ("shape", "dtype", "digest")) if isinstance(entry, dict) else (None,) * 3
        )
        sizes = isinstance(shape, list) and len(shape) <= 32 and all(is_size(size) for size in shape)
        if not sizes or not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(digest, str):
            raise InputError(f"its entry of the leaf {path} is not a shape, a dtype and a digest")


def is_size(value: Any) -> bool:
    """Whether it is a whole number from 0 up, as an array's side or a file may have."""
    return type(value) is int and 0 <= value < 2**63


def describe_files(root: Place, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {"size": bytes, "digest": hex}}, files hashed in parallel."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _describe(root, name), names), strict=True))


def find_damage(root: Place, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the files below `root`, one phrase a file; empty when each has its recorded size and digest."""

    def check(item) -> str | None:
        name, expected = item
        try:
            storage.of(root).check_inside(root / name, root)
            found = _describe(root, name)
            if found["size"] != expected["size"]:
                return f"{name} has {found['size']} bytes, expected {expected['size']}"
            if found != dict(expected):
                return f"{name} does not match its digest"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        except InputError:
            return f"{name} is a link out of the folder or not a regular file"
        return None

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return [problem for problem in pool.map(check, files.items()) if problem]


def summarize(problems: list[str]) -> str:
    """The first problems and the number of the others."""
    more = f" (and {len(problems) - 3} more files)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def check_relative(name: str) -> str:
    """`name`, which must stay inside the folder it is relative to; else InputError."""
    path = PurePosixPath(name)
    strange = path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or str(path) != name
    if not path.parts or strange or max(map(len, path.parts)) > 200 or len(name) > _MAX_NAME:
        raise InputError(f"expected a relative file name inside the checkpoint, found {name[:_MAX_NAME]!r}")
    return name


def _describe(root: Place, name: str) -> dict[str, Any]:
    digest, size, path = hashlib.blake2b(digest_size=16), 0, root / name
    with storage.of(root).open_inside(path, root) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return {"size": size, "digest": digest.hexdigest()}


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
