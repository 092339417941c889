"""Opening a source: what a path or name stands for, and the two kinds of sources that need no file of their own.

The readers: `shards.ArrayRecordSource`, `webdataset.WebDatasetSource`, `image_folder.FolderSource`, `tfds_source.TfdsSource`,
`video_folder.VideoFolder`, `view_folder.ViewFolder`.
"""

import bisect
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax import storage
from nextstep_jax.data import files, records, shapes
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.shards import INDEX, ArrayRecordSource, is_dataset
from nextstep_jax.data.source import ARCHIVE_EXTENSIONS, Source, Unused
from nextstep_jax.data.tfds_source import TfdsSource
from nextstep_jax.data.video_folder import VideoFolder
from nextstep_jax.data.view_folder import ViewFolder
from nextstep_jax.data.webdataset import WebDatasetSource
from nextstep_jax.errors import InputError
from nextstep_jax.untrusted import check_inside


def open_source(spec: str | os.PathLike, kind: str | None = None, **options) -> Source:
    """Open a source by what it looks like.

    Args:
      spec: a folder built by `data build`, or a folder of such folders; a WebDataset tar, or a folder of them; a folder of
        images with captions; "tfds:NAME:SPLIT"; "videos:FOLDER"; "views:FOLDER"; "shapes:KIND:SPLIT:N", the built-in dataset.
      kind: what WebDataset samples with several images are: "edit" or "interleaved".
      options: of `TfdsSource`.

    Raises:
      InputError: naming `spec` and what was expected of it, or an option that says nothing of such a source.
    """
    source = _open(spec, kind, options)
    if kind is not None and not isinstance(source, WebDatasetSource):
        raise InputError(f"{spec}: kind can only be given for a WebDataset tar or a folder of them")
    return source


def _open(spec: str | os.PathLike, kind: str | None, options: Mapping[str, Any]) -> Source:
    scheme, _, rest = str(spec).partition(":")
    if scheme == "tfds" and rest:
        name, _, split = rest.partition(":")
        return TfdsSource(name, split or "train", **options)
    if options:
        raise InputError(f"{spec}: {', '.join(options)} can only be given for a tfds: source")
    if scheme == "shapes" and rest:
        match = re.fullmatch(r"(\w+):(\w+):([0-9]{1,12})", rest)
        if not match:
            raise InputError(f"{spec}: expected shapes:KIND:SPLIT:N, e.g. shapes:pair:train:10000")
        return ShapesSource(match[1], match[2], int(match[3]))
    if scheme == "videos" and rest:
        return VideoFolder(rest)
    if scheme == "views" and rest:
        return ViewFolder(rest)
    path = storage.as_given(spec)
    storage.of(path).require(path)
    if not isinstance(path, pathlib.Path):
        if not is_dataset(path):
            raise InputError(f"{spec}: not a dataset of `data build`, the one kind of source that is read from a bucket")
        return ArrayRecordSource(path)
    if path.is_dir():
        return ArrayRecordSource(path) if is_dataset(path) else _open_folder(path, kind)
    if path.suffix.lower() == ".tar":
        return WebDatasetSource([path], kind, path.stem)
    if not path.exists():
        raise InputError(
            f"{spec}: no such file or folder (nor tfds:NAME:SPLIT, videos:FOLDER, views:FOLDER or shapes:KIND:SPLIT:N)"
        )
    raise InputError(f"{spec}: not a source (expected a folder or a .tar file)")


def _open_folder(path: pathlib.Path, kind: str | None) -> Source:
    """A folder of datasets or of tars, whatever lies beside them being counted as unused; else a folder of images."""
    unused, name = Unused(), path.resolve().name
    names = list(files.walk(path, unused.add))
    datasets = [
        folder
        for folder in sorted(os.path.dirname(file) for file in names if os.path.basename(file) == INDEX)
        if is_dataset(path / folder)
    ]
    tars = [file for file in names if file.lower().endswith(".tar")]
    if not datasets and not tars:
        return FolderSource(path)
    for file in names:
        if any(file.startswith(f"{folder}/") for folder in datasets) or (not datasets and file in tars):
            continue
        archive = file.rpartition(".")[2].lower() in ARCHIVE_EXTENSIONS
        what = "datasets" if datasets else "tars"
        unused.add("archive that is not read" if archive else f"file beside {what}", file)
    for file in (*datasets, *([] if datasets else tars)):
        check_inside(path / file, path)
    source: Source
    if datasets:
        source = ConcatSource(_alike([ArrayRecordSource(path / folder) for folder in datasets]), name)
    else:
        source = WebDatasetSource([path / file for file in tars], kind, name)
    source.unused.update(unused)
    return source


def _alike(datasets: list[ArrayRecordSource]) -> list[ArrayRecordSource]:
    """The datasets, if one image tokenizer encoded them all, or none."""

    def encoder(dataset: ArrayRecordSource):
        latents = dataset.index["latents"]
        return latents and latents.get("image_tokenizer")

    first = datasets[0]
    for other in datasets[1:]:
        if encoder(other) != encoder(first):
            raise InputError(f"{other.directory}: not encoded by the same image tokenizer as {first.directory} beside it")
    return datasets


class ConcatSource:
    """The samples of several sources, one source after the other."""

    def __init__(self, sources: Sequence[Source], name: str):
        self.name = name
        self._sources = list(sources)
        self._starts = [0, *itertools.accumulate(map(len, self._sources))]
        self.unused = Unused()
        for source in self._sources:
            self.unused.update(source.unused)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> records.Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._starts, index) - 1
        return self._sources[number][index - self._starts[number]]

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the samples start..stop-1 do."""
        found = []
        for source, first in zip(self._sources, self._starts, strict=False):
            inner = max(start - first, 0), min(stop - first, len(source))
            if inner[0] < inner[1]:
                found.append(f"{inner} {source.fingerprint(*inner)}")
        return " ".join(found)

    def identity(self) -> str:
        """Changes when that of any source does."""
        return hashlib.sha256(repr([source.identity() for source in self._sources]).encode()).hexdigest()


class ShapesSource:
    """The first `length` samples of one kind and split of the procedural dataset (nextstep_jax/data/shapes)."""

    def __init__(self, kind: str, split: str, length: int, seed: int = 0):
        shapes.require_known(kind, split)
        if length < 1:
            raise InputError(f"a source of shapes needs at least one sample, found {length}")
        self.name = f"shapes-{kind}-{split}"
        self.unused = Unused()
        self._kind, self._split, self._length, self._seed = kind, split, length, seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> records.Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return shapes.sample(self._kind, index, split=self._split, seed=self._seed)

    def fingerprint(self, start: int, stop: int) -> str:
        """Which samples they are."""
        return f"{self._kind} {self._split} {self._seed} {start} {stop}"

    def identity(self) -> str:
        """Which samples they are."""
        return self.fingerprint(0, self._length)
