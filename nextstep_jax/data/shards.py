"""Datasets on disk: samples as msgpack records in ArrayRecord shards, beside an index of counts and digests.

    DIR/index.json                 written last: a folder without it is not a dataset
    DIR/shard-00000.array_record   records as nextstep_jax/data/records.py describes, randomly readable one by one

index.json:

    {"format": "nextstep_jax dataset", "version": 1, "name": str, "samples": int, "images": int, "kinds": {kind: samples},
     "shards": [{"file": str, "samples": int, "bytes": int, "sha256": hex}],   in the order of the samples
     "latents": null | {...}}                                                what encoded the images, if they are latents

ArrayRecord alone reads a truncated file as an empty one, so a shard's size is checked against the index when a dataset is
opened, and its digest by `verify`. (Damage inside a record fails ArrayRecord's own checksum when the record is read.)
"""

import bisect
import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nextstep_jax import storage
from nextstep_jax.data import files, records
from nextstep_jax.data.shard_files import shard_files
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import DamagedDataError, InputError, one_line
from nextstep_jax.progress import progress_bar

FORMAT = "nextstep_jax dataset"
VERSION = 1
INDEX = "index.json"
_INDEX_BYTES = 1 << 28  # of the largest index, some 1.5 million shards
_BEGINNING_BYTES = 4096  # of an index, in which its format is named
_BESIDE = ("report.json",)  # what `data build` writes beside the index and the shards

_WRITE_OPTIONS = "group_size:1,uncompressed"  # image bytes do not compress; single records are what is read


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """One entry of the index."""

    file: str
    samples: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, value: Any) -> "Shard":
        """Raises InputError on anything but a shard's four fields; a file is a bare name."""
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or set(value) != set(fields):
            raise InputError(f"a shard's entry has the keys {', '.join(fields)}, found {str(value)[:200]}")
        for name, kind in fields.items():
            if type(value[name]) is not kind or (kind is int and value[name] < 0):
                raise InputError(
                    f"a shard's {name} must be of type {getattr(kind, '__name__', kind)}, found {value[name]!r}"[:200]
                )
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}", value["file"]):
            raise InputError(f"a shard's file is a bare file name, found {value['file']!r}"[:200])
        return cls(**value)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.array_record"


def write_shard(path: str | os.PathLike, data: Iterable[bytes]) -> Shard:
    """Write packed samples as one shard, whole or not at all. The same samples give the same bytes."""
    from array_record.python import array_record_module

    path = storage.as_given(path)
    count = 0
    with files.replacing(path) as temporary:
        try:
            writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITE_OPTIONS)
            for record in data:
                writer.write(record)
                count += 1
            writer.close()
        except RuntimeError as error:  # how ArrayRecord reports a full disk or a folder that cannot be written
            raise InputError(f"{path}: cannot be written ({one_line(error)})") from error
        shard = Shard(path.name, count, temporary.stat().st_size, files.sha256(temporary))
    return shard


def is_dataset(directory: str | os.PathLike) -> bool:
    """Whether a folder is a dataset, or was to be one: unfinished, or with shards beside a damaged index."""
    path = storage.as_given(directory) / INDEX
    if not path.is_file():
        return (path.parent / "progress" / "plan.json").is_file()
    with path.open("rb", buffering=_BEGINNING_BYTES) as file:
        beginning = file.read(_BEGINNING_BYTES)
    return FORMAT.encode() in beginning or any(path.parent.glob("*.array_record"))


def write_index(
    directory: str | os.PathLike,
    name: str,
    shards: Sequence[Shard],
    *,
    images: int,
    kinds: Mapping[str, int],
    latents: Mapping[str, Any] | None = None,
) -> None:
    """Write index.json, which makes a folder of shards a dataset."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "samples": sum(shard.samples for shard in shards),
        "images": images,
    }
    value |= {"kinds": {kind: kinds[kind] for kind in records.KINDS if kinds.get(kind)}}
    value |= {"shards": [dataclasses.asdict(shard) for shard in shards], "latents": latents}
    files.write_json(storage.as_given(directory) / INDEX, value)


def read_index(directory: str | os.PathLike) -> dict[str, Any]:
    """index.json, checked; its "shards" are `Shard`s. InputError if the folder is not a finished dataset."""
    path = storage.as_given(directory) / INDEX
    storage.of(path).require(path)
    if not path.exists():
        raise InputError(
            f"{directory}: not a dataset (no {INDEX}); one whose build did not finish can be resumed with the same command"
        )
    value = files.read_json(path, _INDEX_BYTES)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f'{path}: not a dataset\'s index (no "format": "{FORMAT}")')
    if value.get("version") != VERSION:
        raise InputError(f"{path}: index version {value.get('version')!r:.100}, this library reads {VERSION}")
    try:
        if not isinstance(value.get("name"), str) or not isinstance(value.get("shards"), list):
            raise InputError("expected a name and a list of shards")
        value["shards"] = [Shard.from_json(entry) for entry in value["shards"]]
        if len({shard.file for shard in value["shards"]}) != len(value["shards"]):
            raise InputError("a shard is listed twice")
        if value.get("samples") != sum(shard.samples for shard in value["shards"]):
            raise InputError(f"samples = {value.get('samples')!r:.100} is not the sum over the shards")
        if not isinstance(value.get("latents"), dict | None):
            raise InputError("latents must be null or a map")
    except InputError as error:
        raise DamagedDataError(f"{path}: {error}") from error
    return value


def verify_shard(directory: str | os.PathLike, shard: Shard) -> None:
    """Compare a shard with its entry, digest included. DamagedDataError names the file and the difference."""
    place = storage.as_given(directory)
    try:
        found = shard_files(place, [shard]).digest(0)
    except FileNotFoundError as error:
        raise DamagedDataError(f"{place / shard.file}: missing, but listed in the index") from error
    if found != shard.sha256:
        digests = f"digest {found[:16]}..., expected {shard.sha256[:16]}..."
        raise DamagedDataError(f"{place / shard.file}: {digests}; the file changed after it was built")


class ArrayRecordSource:
    """A dataset built by `nextstep-jax data build`; sample i is read alone. May be shared by threads and sent to processes.

    Attributes:
      name: the dataset's.
      index: index.json.
      unused: files of the folder that the index does not name.
    """

    def __init__(self, directory: str | os.PathLike):
        self._begin(storage.as_given(directory), read_index(directory), Unused())
        known = {INDEX, *_BESIDE, *(shard.file for shard in self._shards)}
        for name in self._files.survey(self.unused):
            if name not in known and not name.startswith("progress/"):
                self.unused.add("file that the index does not name", name)

    def _begin(self, directory: storage.Place, index: dict[str, Any], unused: Unused) -> None:
        self.directory, self.index, self.unused = directory, index, unused
        self.name = index["name"]
        self._shards: list[Shard] = index["shards"]
        self._files = shard_files(directory, self._shards)
        self._starts = [0, *itertools.accumulate(shard.samples for shard in self._shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> records.Sample:
        """Raises IndexError outside 0 <= index < len, DamagedDataError if the record cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._starts, index) - 1
        path, place = self.directory / self._shards[number].file, int(index - self._starts[number])
        try:
            data = self._files.read(number, place)
        except (RuntimeError, IndexError) as error:
            raise DamagedDataError(f"{path}: record {place} cannot be read ({one_line(error)})") from error
        return records.unpack(data, f"{path}: record {place}")

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the samples start..stop-1 do."""
        first, last = bisect.bisect_right(self._starts, start) - 1, bisect.bisect_left(self._starts, stop)
        return " ".join([f"{start - self._starts[first]}", *(shard.sha256 for shard in self._shards[first:last])])

    def identity(self) -> str:
        """Changes with the shards' digests."""
        return hashlib.sha256(" ".join(shard.sha256 for shard in self._shards).encode()).hexdigest()

    def verify(self, progress: bool = False) -> None:
        """Check every shard's digest."""
        with progress_bar("verifying", "shard", len(self._shards), progress) as bar:
            for shard in self._shards:
                verify_shard(self.directory, shard)
                bar.update()

    def __getstate__(self) -> tuple:
        """Another process need not read the index and look for the files again."""
        return self.directory, self.index, self.unused

    def __setstate__(self, state: tuple) -> None:
        self._begin(*state)
