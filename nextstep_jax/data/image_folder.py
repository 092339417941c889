"""A folder of images with captions beside them or in tables, as people and the Hugging Face hub ("imagefolder") keep them."""

import csv
import hashlib
import io
import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from nextstep_jax.data import captions, files, images, records
from nextstep_jax.data.source import ARCHIVE_EXTENSIONS, IMAGE_EXTENSIONS, Unused
from nextstep_jax.data.webdataset import MAX_TEXT_BYTES
from nextstep_jax.errors import InputError
from nextstep_jax.untrusted import check_inside

TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")
_FILE_COLUMNS = ("file", "file_name")
_MAX_TABLE_BYTES = 1 << 30


class FolderSource:
    """Images in a folder and its subfolders, each with a caption: pairs, sorted by path.

    The caption of cat.png is its row in the nearest table above it, else cat.json (as in WebDataset tars), else cat.txt. A
    table is a captions.csv or metadata.csv with the columns file (or file_name) and caption (or text); "caption..." columns are
    caption variants, as are further rows for the same file, and other columns are metadata. Or it is a metadata.jsonl with
    objects like those of cat.json and a file_name. Files are named relative to the table. Nothing outside the folder is read,
    whatever links and tables say.

    Attributes:
      names: the images' paths within the folder, sorted; they are the samples' keys.
      unused: what is in the folder and in no sample.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        self.name = self.directory.resolve().name
        self.unused = Unused()
        found, tables = set(), []
        self._beside: dict[str, dict[str, str]] = {}  # captions by the image's path without extension, then by extension
        for name in files.walk(self.directory, self.unused.add):
            stem, extension = os.path.splitext(name)
            extension = extension[1:].lower()
            if extension in IMAGE_EXTENSIONS:
                found.add(name)
            elif os.path.basename(name) in TABLES:
                tables.append(name)
            elif extension in ("json", "txt"):
                self._beside.setdefault(stem, {})[extension] = name
            else:
                self.unused.add("archive that is not read" if extension in ARCHIVE_EXTENSIONS else "other file", name)
        self._rows: dict[str, tuple[str, captions.Text]] = {}  # the table and the caption of each image it names
        for table in sorted(tables, key=lambda name: (-name.count("/"), TABLES.index(os.path.basename(name)))):
            self._add_rows(table)
        self.names = sorted(found | set(self._rows))
        self._missing = set(self.names) - found
        self._account(found)
        if not self.names:
            raise InputError(f"{directory}: no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> records.Sample:
        """Raises InputError naming the file if it cannot be used (an ImageError or CaptionError where that is why)."""
        name = self.names[index]
        path = self.directory / name
        self._require_there(name)
        text = self._text(name, path)
        return captions.make_sample(name, "pair", text, [self.read_image(index)], str(path))

    def read_image(self, index: int) -> records.ImagePart:
        """The image of a sample alone, which may be without a caption. Raises InputError as `self[index]` does."""
        name = self.names[index]
        self._require_there(name)
        path = self.directory / name
        return records.ImagePart.from_bytes(self._read(path, images.MAX_FILE_BYTES), str(path))

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the files of the samples start..stop-1 do."""
        names = self.names[start:stop]
        tables = sorted({self._rows[name][0] for name in names if name in self._rows})
        read = [name for image in names for name in (image, *self._sidecars(image))]
        return " ".join([*tables, *names, *(files.fingerprint(self.directory / name) for name in (*tables, *read))])

    def identity(self) -> str:
        """Changes with the images' names and sizes."""
        digest = hashlib.sha256()
        for name in self.names:
            size = 0 if name in self._missing else os.stat(self.directory / name).st_size
            digest.update(repr((name, size)).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def _add_rows(self, table: str) -> None:
        path, folder = self.directory / table, os.path.dirname(table)
        read = _read_csv if table.endswith(".csv") else _read_jsonl
        for name, text in read(self._read(path, _MAX_TABLE_BYTES), str(path)).items():
            name = pathlib.PurePosixPath(folder, name).as_posix()
            if name in self._rows:
                self.unused.add("row for an image that has a row elsewhere", f"{table}: {name}")
            else:
                self._rows[name] = table, text

    def _account(self, found: set[str]) -> None:
        """Name the caption files that no image takes."""
        stems: dict[str, bool] = {}  # whether an image of this stem has no row, and so takes the file beside it
        for name in found:
            stem = os.path.splitext(name)[0]
            stems[stem] = stems.get(stem, False) or name not in self._rows
        for stem, beside in sorted(self._beside.items()):
            taken = "json" if "json" in beside else "txt"
            for extension, name in beside.items():
                if stem not in stems:
                    self.unused.add("caption without an image", name)
                elif not stems[stem]:
                    self.unused.add("caption of an image that has a row in a table", name)
                elif extension != taken:
                    self.unused.add("caption beside a .json", name)

    def _sidecars(self, name: str) -> tuple[str, ...]:
        return tuple(self._beside.get(os.path.splitext(name)[0], {}).values())

    def _require_there(self, name: str) -> None:
        if name in self._missing:
            raise images.ImageError(f"{self.directory / name}: listed in {self._rows[name][0]}, but not there")

    def _text(self, name: str, path: pathlib.Path) -> captions.Text:
        if name in self._rows:
            table, text = self._rows[name]
            if not text.caption.strip():
                raise records.CaptionError(f"{path}: empty caption in {table}")
            return text
        beside = self._beside.get(os.path.splitext(name)[0], {})
        for extension in ("json", "txt"):
            if extension in beside:
                where = self.directory / beside[extension]
                return captions.parse_text(self._read(where, MAX_TEXT_BYTES), extension == "json", str(where))
        raise records.CaptionError(f"{path}: no caption (no .json or .txt beside it, no row in a table)")

    def _read(self, path: pathlib.Path, limit: int) -> bytes:
        check_inside(path, self.directory)
        return files.read_bytes(path, limit)


def _read_csv(data: bytes, name: str) -> dict[str, captions.Text]:
    """A table of captions by file. InputError names the table and the line."""
    rows: dict[str, captions.Text] = {}
    reader = csv.DictReader(io.StringIO(_decode(data, name), newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        file = next((column for column in _FILE_COLUMNS if column in columns), None)
        caption = next((column for column in ("caption", "text") if column in columns), None)
        if file is None or caption is None or len(set(columns)) < len(columns):
            found = ", ".join(columns)[:200] or "nothing"
            raise InputError(f"{name}: expected a first line with the columns file and caption, found {found}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{name}: line {reader.line_num} does not have the {len(columns)} columns of the first line")
            key, text = row.pop(file), row.pop(caption).strip()
            variants = {column: value for column, value in row.items() if column.startswith("caption") and value.strip()}
            metadata = {column: value for column, value in row.items() if not column.startswith("caption") and column}
            _add_row(rows, key, captions.Text(text, variants, metadata))
    except csv.Error as error:
        raise InputError(f"{name}: after line {reader.line_num}: {error}") from error
    return rows


def _read_jsonl(data: bytes, name: str) -> dict[str, captions.Text]:
    """JSON objects, one a line, by their file_name. InputError names the table and the line."""
    rows: dict[str, captions.Text] = {}
    for number, line in enumerate(_decode(data, name).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        value: Any = files.parse_json(line.encode("utf-8", "surrogatepass"), where)
        key = value.get("file_name") if isinstance(value, Mapping) else None
        if not isinstance(key, str):
            raise InputError(f"{where}: expected an object with a file_name")
        _add_row(rows, key, captions.from_json({k: v for k, v in value.items() if k != "file_name"}, where))
    return rows


def _add_row(rows: dict[str, captions.Text], file: str, text: captions.Text) -> None:
    """A further row for a file is a caption variant."""
    key = pathlib.PurePosixPath(file).as_posix()
    if key not in rows:
        rows[key] = text
    else:
        variants = rows[key].caption_variants
        for caption in (text.caption, *text.caption_variants.values()):
            if caption.strip():
                numbers = itertools.count(len(variants) + 1)
                variants[next(name for n in numbers if (name := f"caption.{n}") not in variants)] = caption


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 ({error.reason} at byte {error.start})") from error
