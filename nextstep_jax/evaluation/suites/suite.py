"""What a benchmark is: prompts with the files their images go to, questions for a judge, and a score.

A suite's module subclasses `Suite`. Everything else (drawing, judging, reading and writing results, the commands) works on
`Suite` alone.
"""

import abc
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, ClassVar, TypeVar

from nextstep_jax.chat import Answer, Question
from nextstep_jax.data import files
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Key, Report, sha256

MAX_FILE = 256 << 20  # bytes of a file of prompts or questions
MODEL = "nextstep"  # the folder that official scorers take for a model's name

T = TypeVar("T", bound=Sized)
Scores = Mapping[Key, float | None]  # None: the judge's reply could not be read


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt of a suite.

    Attributes:
      id: unique in the suite.
      prompt: what is drawn; of an edit, the instruction.
      files: where the images go, relative to OUT/images: one file for each image, or one grid of all.
      groups: the categories it counts for.
      record: of the official file, as the judge and the score need it.
      source: reads the image to be edited, a PNG, JPEG or WebP file; None where an image is drawn from the prompt alone.
    """

    id: str
    prompt: str
    files: tuple[str, ...]
    groups: tuple[str, ...] = ()
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: Callable[[], bytes] | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Ask:
    """One question about one image, whose answer decides one or several criteria.

    Attributes:
      parse: a number for each criterion; None for a reply that does not hold them.
      top_logprobs: how many candidates of the reply's first token `parse` needs.
    """

    criteria: tuple[str, ...]
    question: Question
    parse: Callable[[Answer], Sequence[float] | None]
    max_tokens: int
    top_logprobs: int = 0

    @property
    def prompt_sha256(self) -> str:
        """Of all that the judge is told in words."""
        return sha256(json.dumps([self.question.system, self.question.text]).encode())


class Suite(abc.ABC):
    """A benchmark whose files have been read.

    Attributes:
      name: what the commands call it.
      title: what its numbers are called.
      samples: images of a prompt.
      grid: whether the images of a prompt share a file, two by two: top left, top right, bottom left, bottom right.
      quirks: {name: what the official scorer does}, reproduced only on request.
      items: the prompts, in the official order.
      files: the official files that were read.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    samples: ClassVar[int] = 1
    grid: ClassVar[bool] = False
    quirks: ClassVar[Mapping[str, str]] = {}

    items: Sequence[Item]
    files: "OfficialFiles"

    @abc.abstractmethod
    def __init__(self, data: pathlib.Path | None, unofficial: bool = False):
        """Read the official files in `data`, see `OfficialFiles`."""

    def beside(self, item: Item) -> dict[str, bytes]:
        """Further files of the official layout that belong to a prompt, relative to OUT/images."""
        return {}

    @abc.abstractmethod
    def criteria(self, item: Item) -> Sequence[str]:
        """What a judge decides about each image of a prompt."""

    @abc.abstractmethod
    def asks(self, item: Item, image: bytes) -> list[Ask]:
        """What a judge is asked about an image file; the criteria are those of `criteria`, each once."""

    @abc.abstractmethod
    def score(self, scores: Scores, quirks: bool = False) -> Report:
        """The published numbers. What has no score is left out of every mean."""

    @abc.abstractmethod
    def read_official(self, data: bytes, name: str) -> Scores:
        """Scores from what the official scorer wrote. InputError, naming the file, for anything else."""


class OfficialFiles:
    """The files of a benchmark in the user's folder, checked against the official ones.

    Args:
      folder: where they are.
      source: where they come from, for a message.
      unofficial: take files that differ from the official ones; `official` is False then.
    """

    def __init__(self, folder: str | os.PathLike, source: str, unofficial: bool = False):
        self.folder, self.source, self.unofficial = pathlib.Path(folder), source, unofficial
        self.digests: dict[str, str] = {}
        self.official = True

    def read(
        self,
        name: str,
        parse: Callable[[bytes, pathlib.Path], T],
        count: int | None,
        digest: str | None = None,
        what: str = "entries",
    ) -> T:
        """A file as `parse(bytes, path)` makes it.

        Args:
          count: entries that the official file has; None where that is not known.
          digest: its sha256, or git's id of its content; None where there is no one such file.

        Raises:
          InputError: not there, or not the official file.
        """
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path}: not there; {self.source}")
        data = files.read_bytes(path, MAX_FILE)
        value = parse(data, path)
        self.digests[name] = sha256(data)
        found = git_id(data) if digest is not None and len(digest) == 40 else self.digests[name]
        if count not in (None, len(value)) or digest not in (None, found):
            self.differ(path, _described(count, what, digest), _described(len(value), what, found if digest else None))
        return value

    def differ(self, path: str | os.PathLike, expected: str, found: str) -> None:
        """InputError for a file that is not the official one; unless such are taken."""
        if not self.unofficial:
            raise InputError(f"{path}: expected {expected}, found {found}; with unofficial it is taken as it is")
        self.official = False


def require_folder(data: pathlib.Path | None, name: str) -> pathlib.Path:
    """The folder of a suite's files. InputError for none, or none that exists."""
    if data is None:
        raise InputError(f"{name}: data must name the folder of its official files, which the package does not have")
    if not data.is_dir():
        raise InputError(f"{data}: not a folder")
    return data


def git_id(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _described(count: int | None, what: str, digest: str | None) -> str:
    kind = f"{'git id' if len(digest) == 40 else 'sha256'} {digest[:16]}" if digest else ""
    return " with ".join(filter(None, ("" if count is None else f"{count} {what}", kind)))


# --- parts of files ---------------------------------------------------------------------------------------------------


def json_list(*fields: str) -> Callable[[bytes, pathlib.Path], list[dict[str, Any]]]:
    """Reads a JSON list of objects that all have these fields."""

    def parse(data: bytes, path: pathlib.Path) -> list[dict[str, Any]]:
        value = files.parse_json(data, path)
        if not isinstance(value, list):
            raise InputError(f"{path}: expected a list, found {type(value).__name__}")
        return [require_fields(entry, fields, f"{path}, entry {i}") for i, entry in enumerate(value)]

    return parse


def json_object(*fields: str) -> Callable[[bytes, pathlib.Path], dict[str, Any]]:
    """Reads a JSON object; with `fields`, one of objects that all have them."""

    def parse(data: bytes, path: pathlib.Path) -> dict[str, Any]:
        value = files.parse_json(data, path)
        if not isinstance(value, dict):
            raise InputError(f"{path}: expected an object, found {type(value).__name__}")
        for key, entry in value.items() if fields else ():
            require_fields(entry, fields, f"{path}, entry {key!r}")
        return value

    return parse


def table(*columns: str) -> Callable[[bytes, pathlib.Path], list[dict[str, str]]]:
    """Reads a CSV file that has these columns."""

    def parse(data: bytes, path: pathlib.Path) -> list[dict[str, str]]:
        try:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read as CSV ({error})") from error
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: expected the columns {', '.join(columns)}, found no {', '.join(missing)}")
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise InputError(f"{path}, row {number}: expected {len(reader.fieldnames or ())} columns")
        return rows

    return parse


def table_number(text: str, best: float, place: str) -> float:
    """A score from 0 to `best` in a table. InputError names `place` and what stands there instead."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= best:
        raise InputError(f"{place}: expected a score from 0 to {best:g}, found {text!r:.50}")
    return value


def require_fields(entry: Any, fields: Iterable[str], place: str) -> dict[str, Any]:
    """An object that has these fields. InputError names the place."""
    missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
    if missing:
        raise InputError(f"{place}: expected an object with {', '.join(fields)}, found no {', '.join(missing)}")
    return entry


def safe_name(text: Any, place: str) -> str:
    """A text that a file of the layout may be called. InputError for one that leads elsewhere."""
    name = str(text)
    if not name or name.startswith(".") or set(name) & set("/\\\0") or len(name) > 200:
        raise InputError(f"{place}: expected a name of a file, found {name!r:.80}")
    return name


def require_unique(items: Sequence[Item], place: str | os.PathLike) -> Sequence[Item]:
    """The items. InputError if two have the same id."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InputError(f"{place}: the id {item.id!r} occurs twice")
        seen.add(item.id)
    return items


# --- parts of scores --------------------------------------------------------------------------------------------------


def samples_of(scores: Scores) -> dict[tuple[str, int], dict[str, float | None]]:
    """{(id, sample): {criterion: score}}."""
    found: dict[tuple[str, int], dict[str, float | None]] = {}
    for (id, sample, criterion), score in scores.items():
        found.setdefault((id, sample), {})[criterion] = score
    return found


def by_group(items: Iterable[Item], values: Mapping[tuple[str, int], float]) -> dict[str, dict[str, list[float]]]:
    """{group: {id: values of its images}} of one value for each image (id, sample); an item counts in all its groups."""
    of_item: dict[str, list[float]] = {}
    for (id, _), value in sorted(values.items()):
        of_item.setdefault(id, []).append(value)
    groups: dict[str, dict[str, list[float]]] = {}
    for item in items:
        for group in item.groups:
            members = groups.setdefault(group, {})
            if item.id in of_item:
                members[item.id] = of_item[item.id]
    return groups


def yes_or_no(answer: Answer) -> list[float] | None:
    """[1.0] for a reply that is or begins with the word yes, [0.0] for no; None for anything else."""
    word = (answer.text or "").strip().lower().strip("*\"'`").split(maxsplit=1)[:1]
    return {"yes": [1.0], "no": [0.0]}.get(word[0].rstrip(".,:;!*\"'`") if word else "")


def lines_of(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines of a text that are not blank. InputError if it is none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: cannot be read as text ({error})") from error
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
