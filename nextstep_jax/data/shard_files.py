"""Where a dataset's shards lie: in a local folder, or in a bucket with local copies of those that are read.

ArrayRecord reads local files. Of a shard in a bucket there is therefore a local copy, kept under its digest in

    $NEXTSTEP_JAX_SHARDS, or $XDG_CACHE_HOME/nextstep_jax/shards, or ~/.cache/nextstep_jax/shards

for all processes and runs of the machine. Records that are read at random, as training reads them, are fetched one by one, and
the copy holds those that were read (`partial_copy.py`). Where records are read in order, the shard and a few after it are
copied whole, in ranges read side by side, and checked against their digests; so are small ones. The copies used least recently
go when the disk runs full (`make_room`).
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from nextstep_jax import storage
from nextstep_jax.data import files
from nextstep_jax.data.partial_copy import PartialCopy, UnknownLayoutError
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.untrusted import check_inside

if TYPE_CHECKING:
    from nextstep_jax.data.shards import Shard
    from nextstep_jax.storage.objects import ObjectPath

FOLDER_VARIABLE = "NEXTSTEP_JAX_SHARDS"
_RANGE_BYTES = 8 << 20  # bytes of one read
_READS = 8  # ranges of a shard that are read at a time
_LISTED = 5000  # names in a part of a listing; the parts are listed side by side
_AHEAD = 4  # shards copied ahead of those that are needed
_SMALL_BYTES = 1 << 20  # of a shard that is copied whole
_SERIES = 16  # records in order after which the next ones are expected
_OVERTAKEN = 64  # records among which a record's predecessor is looked for
_ROOM = 0.1  # of the disk, what copies leave free
_SLACK = 0.1  # of that room, what is freed beyond it
_ACCOUNT_BYTES = 64 << 20  # bytes fetched singly between two looks at the room on the disk
_PART = ".part"
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_OPEN_SHARDS = 64

T = TypeVar("T")


class ShardFiles(Protocol):
    """The shards of one dataset, in their order. Shared by threads."""

    def survey(self, unused: Unused) -> Iterator[str]:
        """The files of the folder, beside what goes to `unused`. DamagedDataError names a shard that is missing or cut."""

    def read(self, number: int, place: int) -> bytes:
        """Record `place` of shard `number`. DamagedDataError if it, or the shard, is not what was written."""

    def digest(self, number: int) -> str:
        """The SHA-256 of the bytes of shard `number` as they are now. FileNotFoundError if there is none."""


def shard_files(directory: storage.Place, shards: "Sequence[Shard]") -> ShardFiles:
    """These shards in a dataset's folder."""
    return LocalShards(directory, shards) if isinstance(directory, pathlib.Path) else BucketShards(directory, shards)


class _Newest(Generic[T]):
    """The open things that were used last."""

    def __init__(self, limit: int):
        self._limit, self._lock = limit, threading.Lock()
        self._open: collections.OrderedDict[int, T] = collections.OrderedDict()

    def get(self, number: int, make: Callable[[int], T]) -> T:
        """The one of that number, made if need be."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        made = make(number)
        with self._lock:
            found = self._open.setdefault(number, made)  # another thread may have been faster
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
            return found


class LocalShards:
    """Shards in a local folder, read where they are."""

    def __init__(self, directory: pathlib.Path, shards: "Sequence[Shard]"):
        self._directory, self._shards, self._readers = directory, shards, _Newest[Any](_OPEN_SHARDS)

    def survey(self, unused: Unused) -> Iterator[str]:
        with os.scandir(self._directory) as entries:  # one pass, however many shards there are
            links = {entry.name: entry.is_symlink() for entry in entries}
        for number, shard in enumerate(self._shards):
            if links.get(shard.file):
                check_inside(self._directory / shard.file, self._directory)
            self._require_size(number)
        return files.walk(self._directory, unused.add)

    def read(self, number: int, place: int) -> bytes:
        return self._readers.get(number, self._open).read([place])[0]

    def digest(self, number: int) -> str:
        self._require_size(number)
        return files.sha256(self._directory / self._shards[number].file)

    def _open(self, number: int) -> Any:
        path = self._directory / self._shards[number].file
        return open_shard(path, self._shards[number], path)

    def _require_size(self, number: int) -> None:
        shard = self._shards[number]
        path = os.path.join(self._directory, shard.file)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise DamagedDataError(f"{path}: missing, but listed in the index")
        if status.st_size != shard.bytes:
            raise DamagedDataError(f"{path}: {status.st_size} bytes, expected {shard.bytes}")


class BucketShards:
    """Shards in a bucket, read from local copies: whole ones, or such that hold the records read so far."""

    def __init__(self, directory: "ObjectPath", shards: "Sequence[Shard]"):
        self._directory, self._shards, self._folder = directory, shards, copies_folder()
        self._pool = concurrent.futures.ThreadPoolExecutor(_AHEAD + 1, "shard_copies")
        self._copying: dict[int, concurrent.futures.Future[None]] = {}
        self._readers, self._parts = _Newest[Any](_OPEN_SHARDS), _Newest[PartialCopy | None](_OPEN_SHARDS)
        self._order, self._expected = _InOrder(), -1
        self._lock, self._unaccounted = threading.Lock(), _ACCOUNT_BYTES

    def survey(self, unused: Unused) -> Iterator[str]:
        cuts = sorted(shard.file for shard in self._shards)[_LISTED::_LISTED]
        names = list(self._directory.below(cuts))  # one listing, however many shards there are
        present = set(names)
        for shard in self._shards:
            if shard.file not in present:
                raise DamagedDataError(f"{self._directory / shard.file}: missing, but listed in the index")
        return iter(names)

    def read(self, number: int, place: int) -> bytes:
        shard = self._shards[number]
        if self._order.goes_on(number, place) and self._expected != number:
            self._expected = number
            for following in range(number, min(number + 1 + _AHEAD, len(self._shards))):
                self._start(following)
        if not self._is_copied(number):
            if shard.bytes > _SMALL_BYTES and (part := self._parts.get(number, self._open_part)):
                return part.read(place)
            if copying := self._start(number):
                copying.result()
        return self._readers.get(number, self._open).read([place])[0]

    def digest(self, number: int) -> str:
        found = hashlib.sha256()
        with (self._directory / self._shards[number].file).open() as file:
            while block := file.read(_RANGE_BYTES):
                found.update(block)
        return found.hexdigest()

    def _copy_of(self, number: int) -> pathlib.Path:
        return self._folder / self._shards[number].sha256

    def _is_copied(self, number: int) -> bool:
        try:
            return self._copy_of(number).stat().st_size == self._shards[number].bytes
        except OSError:
            return False

    def _open(self, number: int) -> Any:
        copy = self._copy_of(number)
        with contextlib.suppress(OSError):
            os.utime(copy)  # the copies used least recently go first
        return open_shard(copy, self._shards[number], self._directory / self._shards[number].file)

    def _open_part(self, number: int) -> PartialCopy | None:
        """None for a shard whose records cannot be fetched one by one."""
        shard, file = self._shards[number], self._copy_of(number).with_suffix(_PART)
        try:
            return PartialCopy(file, shard.bytes, shard.samples, functools.partial(self._fetch_part, number))
        except UnknownLayoutError:
            file.unlink(missing_ok=True)
            return None

    def _fetch_part(self, number: int, start: int, stop: int) -> bytes:
        with self._lock:
            self._unaccounted += stop - start
            account = self._unaccounted >= _ACCOUNT_BYTES
            self._unaccounted *= not account
        if account:
            make_room(self._folder, _ACCOUNT_BYTES)
        return self._fetch(number, start, stop)

    def _fetch(self, number: int, start: int, stop: int) -> bytes:
        """Bytes of a shard."""
        source = self._directory / self._shards[number].file
        try:
            return source.read(start, stop)
        except FileNotFoundError as error:
            raise DamagedDataError(f"{source}: missing, but listed in the index") from error
        except OSError as error:
            if "OUT_OF_RANGE" in str(error.strerror):
                size = self._shards[number].bytes
                raise DamagedDataError(f"{source}: fewer bytes than the {size} expected") from error
            raise InputError(f"{source}: cannot be read ({error.strerror or error})") from error

    def _start(self, number: int) -> concurrent.futures.Future[None] | None:
        """The copying of a shard, begun if need be; None for one that is there. Raises what ended an earlier try."""
        with self._lock:
            future = self._copying.get(number)
            if future is not None and not future.done():
                return future
            if future is not None:
                del self._copying[number]
                future.result()
            if self._is_copied(number):
                return None
            self._copying[number] = self._pool.submit(self._copy, number)
            return self._copying[number]

    def _copy(self, number: int) -> None:
        shard, target = self._shards[number], self._copy_of(number)
        make_room(self._folder, shard.bytes)
        starts = range(0, shard.bytes, _RANGE_BYTES)
        found = hashlib.sha256()
        try:
            with (
                storage.of(target).local_file(target) as temporary,
                open(temporary, "wb") as file,
                concurrent.futures.ThreadPoolExecutor(_READS) as readers,
            ):
                stops = [min(at + _RANGE_BYTES, shard.bytes) for at in starts]
                for part in readers.map(functools.partial(self._fetch, number), starts, stops):
                    found.update(part)
                    file.write(part)
                file.flush()
                if found.hexdigest() != shard.sha256:
                    digests = f"digest {found.hexdigest()[:16]}..., expected {shard.sha256[:16]}..."
                    raise DamagedDataError(f"{self._directory / shard.file}: {digests}")
        except OSError as error:
            raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
        target.with_suffix(_PART).unlink(missing_ok=True)  # who reads it has it open

    def __getstate__(self) -> Any:
        return self._directory, self._shards

    def __setstate__(self, state: Any) -> None:
        type(self).__init__(self, *state)


class _InOrder:
    """Notices that records are read one after the other, if not strictly so: threads overtake each other."""

    def __init__(self):
        self._latest: collections.deque[tuple[int, int]] = collections.deque(maxlen=_OVERTAKEN)
        self._run, self._lock = 0, threading.Lock()

    def goes_on(self, number: int, place: int) -> bool:
        """Whether this record continues a series."""
        with self._lock:
            found = (number, place - 1) in self._latest if place else any(n == number - 1 for n, _ in self._latest)
            self._run = min(self._run + 1, 2 * _SERIES) if found else max(self._run - _SERIES // 2, 0)
            self._latest.append((number, place))
            return self._run >= _SERIES


def open_shard(file: pathlib.Path, shard: "Shard", name: Any) -> Any:
    """ArrayRecord's reader of a local file. DamagedDataError, naming `name`, if it has not the shard's records."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(file), _READ_OPTIONS)
    if reader.num_records() != shard.samples:
        raise DamagedDataError(f"{name}: {reader.num_records()} records, expected {shard.samples}")
    return reader


def copies_folder() -> pathlib.Path:
    """The folder of the local copies. InputError if it cannot be made."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(os.environ.get(FOLDER_VARIABLE) or pathlib.Path(cache) / "nextstep_jax" / "shards")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made, for copies of shards ({error.strerror}); set {FOLDER_VARIABLE}") from error
    return folder


def make_room(folder: pathlib.Path, needed: int) -> None:
    """Remove the copies used least recently until the disk has `needed` bytes and the room that copies leave free, which is a
    tenth of the disk, or half of what there is for them on a disk that is full of other things. So that this is rare, a tenth
    of that room more is freed. Some network file systems report no sizes: there all copies stay.
    """

    def is_free(room: float) -> bool:
        return shutil.disk_usage(folder).free - needed >= room

    total = shutil.disk_usage(folder).total
    if not total or is_free(most := _ROOM * total):
        return
    copies = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes some, too
            status = path.stat()
            copies.append((status.st_mtime, path, 512 * status.st_blocks))  # partial copies have holes
    held = sum(size for _, _, size in copies)
    room = min(most, (shutil.disk_usage(folder).free + held) / 2)
    if is_free(room):
        return
    for _, copy, _ in sorted(entry for entry in copies if not entry[1].name.startswith(".")):
        if is_free(room * (1 + _SLACK)):
            return
        copy.unlink(missing_ok=True)  # who reads it has it open, and keeps it
