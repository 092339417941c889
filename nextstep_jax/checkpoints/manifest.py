"""Sealed JSON documents and digests of files: what finds a flipped, cut or missing byte anywhere in a checkpoint."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from nextstep_jax.errors import DamagedDataError, InputError

_SEAL = '"digest": "'  # the last entry of a sealed document
_END = '"}\n'
_READ_BYTES = 1 << 22  # bytes hashed at a time
_THREADS = min(8, os.cpu_count() or 1)
_MAX_DOCUMENT_BYTES = 1 << 28  # bytes


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """The path of a folder on a mounted file system; InputError for an address such as gs://."""
    if "://" in str(path):
        raise InputError(
            f"{path}: expected a folder; mount the bucket (for instance with Cloud Storage FUSE) and give its path"
        )
    return pathlib.Path(path).resolve()  # tensorstore refuses a path with ".." in it


def seal(content: Mapping[str, Any]) -> bytes:
    """The content as JSON text whose last entry, "digest", covers every byte before it."""
    head = json.dumps(dict(content)).removesuffix("}") + ",\n" + _SEAL
    return (head + _hash(head.encode()) + _END).encode()


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
    """The content of a file written by `seal`.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedDataError: not one bit may differ from what `seal` returned.
    """
    if path.stat().st_size > _MAX_DOCUMENT_BYTES:
        raise DamagedDataError(f"{path}: {path.stat().st_size} bytes is more than a sealed document can have")
    data = path.read_bytes()
    head, found, tail = data.rpartition(_SEAL.encode())
    digest = _hash(head + found).encode()
    if not found or tail != digest + _END.encode():
        raise DamagedDataError(f"{path}: damaged (its contents do not match the digest at its end)")
    content = json.loads(data)
    del content["digest"]
    return content


def write_durably(path: pathlib.Path, data: bytes) -> None:
    """Write a file that appears under its name only when its bytes are on disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: pathlib.Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(root: pathlib.Path) -> None:
    """Make the entries of every folder from `root` down durable; the files themselves are synced as they are written."""
    for folder, _, _ in os.walk(root):
        sync_directory(pathlib.Path(folder))


def list_files(root: pathlib.Path) -> list[str]:
    """Every file below `root`, as sorted relative names with forward slashes."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def describe_files(root: pathlib.Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {"size": bytes, "digest": hex}}, files hashed in parallel."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _describe(root / name), names), strict=True))


def find_damage(root: pathlib.Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the files below `root`, one phrase a file; empty when each has its recorded size and digest."""

    def check(item) -> str | None:
        name, expected = item
        try:
            size = (root / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, expected {expected['size']}"
            if _describe(root / name) != dict(expected):
                return f"{name} does not match its digest"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return [problem for problem in pool.map(check, files.items()) if problem]


def summarize(problems: list[str]) -> str:
    """The first problems and the number of the others."""
    more = f" (and {len(problems) - 3} more files)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def check_relative(name: str) -> str:
    """`name`, which must stay inside the folder it is relative to; else InputError."""
    path = pathlib.PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise InputError(f"expected a relative file name inside the checkpoint, found {name!r}")
    return name


def _describe(path: pathlib.Path) -> dict[str, Any]:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return {"size": size, "digest": digest.hexdigest()}


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
