"""A folder of golden files that remembers what was read, so that nothing in it goes unnoticed."""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from nextstep_jax.errors import InputError

_DESCRIPTION, _SUMS = "README.md", "SHA256SUMS"


class GoldenFile:
    """A safetensors file of golden arrays.

    Attributes:
      name: of the file, without its ending; rows of the report start with it.
      settings: what the file's metadata says about how it was made.
    """

    def __init__(self, path: pathlib.Path):
        self.name = path.stem
        self._path = path
        try:
            with safe_open(path, framework="numpy") as file:
                self._arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                self.settings = _parse((file.metadata() or {}).get("settings", "{}"), path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as safetensors ({error})") from error
        self._unread = set(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise InputError(f"{self._path}: has no array {name!r}")
        self._unread.discard(name)
        return self._arrays[name]

    def take(self, prefix: str) -> list[np.ndarray]:
        """The arrays `prefix.0`, `prefix.1`, … in order, or the images of the one array `prefix`, each [1, ...]."""
        if prefix in self._arrays:
            return list(self[prefix][:, None])
        names = [name for name in self._arrays if re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)]
        return [self[name] for name in sorted(names, key=lambda name: int(name.rsplit(".", 1)[1]))]

    @property
    def unread(self) -> list[str]:
        return sorted(f"{self.name}:{name}" for name in self._unread)


class Goldens:
    """The folder. Every file is opened once, and `require_all_read` refuses to have left anything out."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._opened: dict[str, GoldenFile] = {}
        self._read: set[str] = set()

    def arrays(self, name: str) -> GoldenFile:
        """The arrays of `name`.safetensors."""
        if name not in self._opened:
            self._opened[name] = GoldenFile(self.path(f"{name}.safetensors"))
        return self._opened[name]

    def json(self, name: str) -> Any:
        """The content of a JSON file. Its objects answer for a missing key with an InputError."""
        path = self.path(name)
        try:
            return _parse(path.read_text(encoding="utf-8"), path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error

    def path(self, name: str) -> pathlib.Path:
        """A file that is there to be read."""
        path = self.folder / name
        if ".." in pathlib.PurePath(name).parts or not path.is_relative_to(self.folder):
            raise InputError(f"{self.folder}: names {name!r:.200}, which is not a file of its own")
        if not path.is_file():
            raise InputError(f"{path}: absent, but parity has to compare it")
        self._read.add(name)
        return path

    def require_all_read(self) -> None:
        """InputError naming every file and array that nothing was compared with."""
        files = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir()}
        unread = sorted(files - self._read - {_DESCRIPTION, _SUMS})
        unread += [name for file in self._opened.values() for name in file.unread]
        if unread:
            raise InputError(f"{self.folder}: not understood, so not compared: {', '.join(unread)}")

    def require_sums(self) -> None:
        """InputError naming every file that was read and is not the one SHA256SUMS lists. Without SHA256SUMS, nothing."""
        sums = self.folder / _SUMS
        if not sums.is_file():
            return
        changed = []
        for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line)
            if not match:
                raise InputError(f"{sums}: a line is not a sum and a file name: {line!r:.100}")
            expected, name = match.groups()
            if name in self._read and hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != expected:
                changed.append(name)
        if changed:
            raise InputError(f"{self.folder}: not as {_SUMS} lists them: {', '.join(changed)}")


class _Object(dict):
    """A JSON object that names the file when a key is missing."""

    def __init__(self, path: pathlib.Path, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.path = path

    def __missing__(self, key: str):
        raise InputError(f"{self.path}: has no {key!r} where one is expected")


def _parse(text: str, path: pathlib.Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_Object, path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
