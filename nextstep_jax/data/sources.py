"""Readers: one interface over everything samples can come from.

A source has a `name`, a length, and `source[i]`, a `Sample` read at random. Reading a sample that cannot be used raises
InputError: an `images.ImageError` (damaged image) or `images.SizeError`, a `records.CaptionError`, or InputError itself for
anything else about it. Sources can be shared by threads and sent to other processes.
"""

import csv
import io
import os
import pathlib
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from nextstep_jax.data import captions, files, images, records, shapes
from nextstep_jax.data.shards import INDEX, ArrayRecordSource
from nextstep_jax.data.webdataset import MAX_TEXT_BYTES, WebDatasetSource
from nextstep_jax.errors import InputError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_MAX_CSV_BYTES = 1 << 30
CAPTIONS_FILE = "captions.csv"


class Source(Protocol):
    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> records.Sample:
        """Sample 0 <= index < len."""

    def fingerprint(self, start: int, stop: int) -> str:
        """A text that changes when the samples start..stop-1 do, found without reading them."""


def open_source(spec: str | os.PathLike, kind: str | None = None, **options) -> Source:
    """Open a source by what it looks like.

    Args:
      spec: a folder built by `data build`; a WebDataset tar, or a folder of them; a folder of images with captions;
        "tfds:NAME:SPLIT"; "shapes:KIND:SPLIT:N", the built-in dataset.
      kind: what WebDataset samples with several images are: "edit" or "interleaved".
      options: of `TfdsSource`.

    Raises:
      InputError: naming `spec` and what was expected of it.
    """
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
    path = pathlib.Path(spec)
    if (path / INDEX).is_file():
        return ArrayRecordSource(path)
    if path.is_dir():
        tars = sorted(path.rglob("*.tar"))
        return WebDatasetSource(tars, kind, path.resolve().name) if tars else FolderSource(path)
    if path.suffix == ".tar":
        return WebDatasetSource([path], kind, path.stem)
    if not path.exists():
        raise InputError(f"{spec}: no such file or folder (nor tfds:NAME:SPLIT, nor shapes:KIND:SPLIT:N)")
    raise InputError(f"{spec}: not a source (expected a folder or a .tar file)")


# --- the built-in dataset ---------------------------------------------------------------------------------------------


class ShapesSource:
    """The first `length` samples of one kind and split of the procedural dataset (nextstep_jax/data/shapes)."""

    def __init__(self, kind: str, split: str, length: int, seed: int = 0):
        shapes.require_known(kind, split)
        if length < 1:
            raise InputError(f"a source of shapes needs at least one sample, found {length}")
        self.name = f"shapes-{kind}-{split}"
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


# --- a folder of images with captions ---------------------------------------------------------------------------------


class FolderSource:
    """Images in a folder and its subfolders, each with a caption: pairs, sorted by path.

    The caption of cat.png is its row in captions.csv in the top folder, if there is such a file (columns file and caption,
    file_name and text also being understood; "caption..." columns are variants, as are further rows for the same file;
    other columns are metadata), else cat.json (as in WebDataset tars), else cat.txt. Nothing outside the folder is read,
    whatever links and captions.csv say.

    Attributes:
      names: the images' paths within the folder, sorted; they are the samples' keys.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        self._root = self.directory.resolve()
        self.name = self._root.name
        found = {
            path.relative_to(self.directory).as_posix() for path in _walk(self.directory) if path.suffix.lower() in _EXTENSIONS
        }
        table = self.directory / CAPTIONS_FILE
        self._rows = _read_captions(files.read_bytes(table, _MAX_CSV_BYTES), str(table)) if table.is_file() else None
        self.names = sorted(found | set(self._rows or ()))
        self._missing = set(self.names) - found
        if not self.names:
            raise InputError(f"{directory}: no images ({', '.join(_EXTENSIONS)})")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> records.Sample:
        """Raises InputError naming the file if it cannot be used (an ImageError or CaptionError where that is why)."""
        name = self.names[index]
        path = self.directory / name
        if name in self._missing:
            raise images.ImageError(f"{path}: listed in {CAPTIONS_FILE}, but not there")
        text = self._text(name, path)
        picture = records.ImagePart.from_bytes(self._read(path, images.MAX_FILE_BYTES), str(path))
        return captions.make_sample(name, "pair", text, [picture], str(path))

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the files of the samples start..stop-1 do."""
        names = self.names[start:stop]
        paths = [self.directory / name for name in names]
        stats = [files.fingerprint(p.with_suffix(suffix) if suffix else p) for p in paths for suffix in ("", ".json", ".txt")]
        return " ".join([files.fingerprint(self.directory / CAPTIONS_FILE), *names, *stats])

    def _text(self, name: str, path: pathlib.Path) -> captions.Text:
        if self._rows is not None and name in self._rows:
            text = self._rows[name]
            if not text.caption.strip():
                raise records.CaptionError(f"{path}: empty caption in {CAPTIONS_FILE}")
            return text
        for suffix in (".json", ".txt"):
            beside = path.with_suffix(suffix)
            if beside.exists():
                return captions.parse_text(self._read(beside, MAX_TEXT_BYTES), suffix == ".json", str(beside))
        expected = f"{CAPTIONS_FILE} has no row for it" if self._rows is not None else "no .json or .txt beside it"
        raise records.CaptionError(f"{path}: no caption ({expected})")

    def _read(self, path: pathlib.Path, limit: int) -> bytes:
        if not path.resolve().is_relative_to(self._root):
            raise InputError(f"{path}: a link out of the folder")
        return files.read_bytes(path, limit)


def _walk(directory: pathlib.Path):
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (pathlib.Path(folder) / name for name in names if not name.startswith("."))


def _read_captions(data: bytes, name: str) -> dict[str, captions.Text]:
    """captions.csv by file. InputError names the file and the line."""
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        columns = list(reader.fieldnames or ())
        file = next((column for column in ("file", "file_name") if column in columns), None)
        caption = next((column for column in ("caption", "text") if column in columns), None)
        if file is None or caption is None:
            found = ", ".join(columns)[:200] or "nothing"
            raise InputError(f"{name}: expected a first line with the columns file and caption, found {found}")
        rows: dict[str, captions.Text] = {}
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{name}: line {reader.line_num} does not have the {len(columns)} columns of the first line")
            key = pathlib.PurePosixPath(row.pop(file)).as_posix()
            text, earlier = row.pop(caption).strip(), rows.get(key)
            if earlier:
                earlier.caption_variants[f"caption.{len(earlier.caption_variants) + 1}"] = text
                continue
            variants = {column: value for column, value in row.items() if column.startswith("caption") and value.strip()}
            metadata = {column: value for column, value in row.items() if not column.startswith("caption") and column}
            rows[key] = captions.Text(text, variants, metadata)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise InputError(f"{name}: after line {reader.line_num}: {error}") from error
    return rows


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


class TfdsSource:
    """A prepared TFDS dataset in ArrayRecord format, as a `tfds.data_source`. Needs no TensorFlow; downloads nothing.

    Samples are pairs. Images keep their encoded bytes.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        image: str = "image",
        caption: str = "caption",
        template: str = "{}",
    ):
        """Open it.

        Args:
          image, caption: names of the features. A caption may be a text, several texts (the rest become variants) or a
            class label.
          template: what the caption is put into, e.g. "a photo of a {}".

        Raises:
          InputError: naming the dataset: not installed, not prepared, or without these features.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError("tfds: sources need the train extra: pip install 'nextstep_jax[train]'") from error
        self._arguments = (name, split, data_dir, image, caption, template)
        self.name = f"{name}/{split}"
        self._image, self._caption, self._template = image, caption, template
        if template.count("{}") != 1:
            raise InputError(f"template must contain {{}} once, found {template!r}")
        try:
            builder = tfds.builder(name, data_dir=data_dir)
            features = builder.info.features
            missing = [feature for feature in (image, caption) if feature not in features]
            if missing:
                raise InputError(f"{name}: no feature {', '.join(missing)} (it has {', '.join(features)})")
            self._data = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
            self._version = str(builder.info.full_name)
        except InputError:
            raise
        except Exception as error:  # TFDS has no base class of its own for these
            raise InputError(f"{name}: cannot be opened by TFDS ({' '.join(str(error).split())[:300]})") from error
        self._label: Callable[[int], str] | None = getattr(features[caption], "int2str", None)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> records.Sample:
        """Raises InputError naming the sample if it cannot be used (an ImageError or CaptionError where that is why)."""
        key = f"{self.name}/{index}"
        try:
            example = self._data[index]
        except Exception as error:
            raise InputError(f"{key}: cannot be read ({' '.join(str(error).split())[:200]})") from error
        texts = [self._to_text(value, key) for value in np.ravel(np.asarray(example[self._caption], object))]
        if not texts or not texts[0].strip():
            raise records.CaptionError(f"{key}: empty caption")
        texts = [self._template.replace("{}", text) for text in texts if text.strip()]
        text = captions.Text(texts[0], {f"caption.{i}": other for i, other in enumerate(texts) if i}, {})
        if not isinstance(example[self._image], bytes):
            raise InputError(f"{key}: the feature {self._image} is not an image file")
        return captions.make_sample(key, "pair", text, [records.ImagePart.from_bytes(example[self._image], key)], key)

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes with the dataset's version and the reading of its features."""
        return f"{self._version} {self._image} {self._caption} {self._template}"

    def __getstate__(self) -> tuple:
        return self._arguments

    def __setstate__(self, arguments: tuple) -> None:
        self.__init__(*arguments)

    def _to_text(self, value, key: str) -> str:
        if self._label is not None:
            return self._label(int(value)).replace("_", " ")
        try:
            return value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise records.CaptionError(f"{key}: the caption is not UTF-8") from error
