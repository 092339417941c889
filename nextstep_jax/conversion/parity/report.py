"""What parity reads and what it reports: golden files whose every array must be used, and rows of comparisons."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nextstep_jax.errors import InputError

SINGLE_PASS = 2e-5  # absolute, one pass through a network or one run of a sampler
END_TO_END = 1e-4  # absolute, tokens of a whole generation
GRADIENT = 1e-4  # of the tensor's largest entry
LATENTS = 3e-4  # absolute, tokens divided by the tokenizer's scaling
LEVELS = 1  # of uint8 images
EXACT = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. `verdict` is "ok" or "miss"; max_abs and max_rel are infinite where shapes differ."""

    array: str
    max_abs: float
    max_rel: float
    bound: float
    verdict: str


class Report:
    """Rows in the order they were compared."""

    def __init__(self):
        self.rows: list[Row] = []

    @property
    def misses(self) -> list[Row]:
        return [row for row in self.rows if row.verdict != "ok"]

    def compare(
        self, array: str, ours: Any, reference: np.ndarray, bound: float, *, where=None, relative: bool = False
    ) -> None:
        """Compare `ours` with `reference` where the mask says so.

        Args:
          relative: the bound is a share of the reference's largest entry.
        """
        ours, reference = np.asarray(ours), np.asarray(reference)
        if ours.shape != reference.shape:
            self.rows.append(Row(f"{array} {list(ours.shape)} != {list(reference.shape)}", np.inf, np.inf, bound, "miss"))
            return
        ours, reference = ours.astype(np.float64), reference.astype(np.float64)
        if where is not None:
            ours, reference = ours[where], reference[where]
        difference = float(np.max(np.abs(ours - reference), initial=0))
        scale = float(np.max(np.abs(reference), initial=0))
        ratio = difference / scale if scale else (0.0 if difference == 0 else np.inf)
        met = (ratio if relative else difference) <= bound  # false for NaN
        self.rows.append(Row(array, difference, ratio, bound, "ok" if met else "miss"))

    def table(self) -> str:
        """All rows as aligned text, misses marked."""
        width = max(len(row.array) for row in self.rows)
        lines = [f"{'array':{width}}  {'max abs':>9}  {'max rel':>9}  {'bound':>8}  verdict"]
        for row in self.rows:
            lines.append(f"{row.array:{width}}  {row.max_abs:9.2e}  {row.max_rel:9.2e}  {row.bound:8.1e}  {row.verdict}")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps([dataclasses.asdict(row) for row in self.rows], indent=1)


class GoldenFile:
    """A safetensors file of golden arrays that remembers which were read."""

    def __init__(self, path: pathlib.Path):
        self.name = path.stem
        try:
            self._arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as safetensors ({error})") from error
        self._unread = set(self._arrays)
        self._path = path

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
        names = [name for name in self._arrays if name.removeprefix(prefix + ".").isdigit()]
        return [self[name] for name in sorted(names, key=lambda name: int(name.rsplit(".", 1)[1]))]

    @property
    def unread(self) -> list[str]:
        return sorted(f"{self.name}:{name}" for name in self._unread)


class Goldens:
    """A folder of golden files. Every file is opened once, and `require_all_read` refuses to have left anything out."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._opened: dict[str, GoldenFile] = {}
        self._read: set[str] = set()

    def arrays(self, name: str) -> GoldenFile:
        """The arrays of `name`.safetensors."""
        if name not in self._opened:
            self._opened[name] = GoldenFile(self._existing(f"{name}.safetensors"))
        return self._opened[name]

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        path = self._existing(name)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({error})") from error

    def path(self, name: str) -> pathlib.Path:
        """An existing folder or file."""
        return self._existing(name)

    def require_all_read(self) -> None:
        """InputError naming every file and array of the folder that nothing was compared with."""
        ignored = {"README.md", "SHA256SUMS"}
        files = {path.name for path in self.folder.iterdir()} - self._read - ignored
        unread = sorted(files) + [name for file in self._opened.values() for name in file.unread]
        if unread:
            raise InputError(f"{self.folder}: not understood, so not compared: {', '.join(unread)}")

    def _existing(self, name: str) -> pathlib.Path:
        path = self.folder / name
        if not path.exists():
            raise InputError(f"{path}: absent, but parity has to compare it")
        self._read.add(pathlib.PurePath(name).parts[0])
        return path
