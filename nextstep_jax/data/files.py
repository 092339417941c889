"""Reading untrusted files and folders, and writing files whole or not at all."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from nextstep_jax import storage
from nextstep_jax.errors import InputError

_CHUNK = 1 << 20


@contextlib.contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes. InputError names anything else, and a file that cannot be read."""
    place = storage.as_given(path)
    try:
        with storage.of(place).open_regular(place) as file:
            yield file
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. InputError names the file."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path}: more than the {limit} bytes allowed")
    return data


def walk(directory: str | os.PathLike, skip: Callable[[str, str], None]) -> Iterator[str]:
    """The files below a folder, as paths within it, sorted by folder: regular ones, and links to such (`check_inside` tells
    where to). Everything else is handed to `skip` as (reason, path within the folder): hidden files and folders, linked and
    unreadable folders, broken links, pipes, sockets and devices.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(directory, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            skip("unreadable folder", folder or ".")
            continue
        inner = []
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                skip("hidden", name)
            elif entry.is_dir(follow_symlinks=False):
                inner.append(name)
            elif entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(entry.path)):
                yield name
            elif entry.is_symlink():
                skip("linked folder" if os.path.isdir(entry.path) else "broken link", name)
            else:
                skip("not a regular file", name)
        waiting += reversed(inner)


def read_json(path: str | os.PathLike, limit: int = 64 << 20) -> Any:
    """A JSON file's value. InputError names the file and the place."""
    return parse_json(read_bytes(path, limit), path)


def parse_json(data: bytes, name: str | os.PathLike) -> Any:
    """The value of JSON text. InputError names `name` and the place."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not valid JSON ({error})") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary sibling of `path` to write to; it takes the name when the block ends, and is removed if the block fails.

    Raises InputError, naming `path`, when the file cannot be written.
    """
    place = storage.as_given(path)
    try:
        with storage.of(place).local_file(place) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a whole file or none of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def make_directory(path: str | os.PathLike) -> storage.Place:
    """Create a folder (and its parents) to write into. InputError names it."""
    place = storage.as_given(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be created ({error.strerror or error})") from error
    return place


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(path: str | os.PathLike) -> str:
    """Size and time of change of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}.{status.st_mtime_ns}"
