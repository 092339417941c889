"""Where a dataset's shards lie: in a local folder, or in a bucket with local copies of those that are read.

ArrayRecord reads local files. A shard of a bucket is therefore copied when it is first needed, in ranges read side by side,
checked against its digest, and kept under that digest in

    $NEXTSTEP_JAX_SHARDS, or $XDG_CACHE_HOME/nextstep_jax/shards, or ~/.cache/nextstep_jax/shards

for all processes and runs of the machine. The copies used least recently go when the disk has less than a tenth of its room
left. Copies of a few more shards are made ahead, in the order of the index.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nextstep_jax import storage
from nextstep_jax.data import files
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.untrusted import check_inside

if TYPE_CHECKING:
    from nextstep_jax.data.shards import Shard
    from nextstep_jax.storage.objects import ObjectPath

FOLDER_VARIABLE = "NEXTSTEP_JAX_SHARDS"
_RANGE_BYTES = 8 << 20  # bytes of one read
_READS = 8  # ranges of a shard that are read at a time
_AHEAD = 4  # shards copied ahead of those that are needed
_ROOM = 0.1  # part of the disk that copies leave free


class ShardFiles(Protocol):
    """The shards of one dataset."""

    def survey(self, shards: "Sequence[Shard]", unused: Unused) -> Iterator[str]:
        """The files of the folder, beside what goes to `unused`. DamagedDataError names a shard that is missing or cut."""

    def local(self, shard: "Shard") -> pathlib.Path:
        """A local file with the shard's records. DamagedDataError if it is not what was written."""

    def digest(self, shard: "Shard") -> str:
        """The SHA-256 of its bytes as they are now."""

    def ahead(self, shards: "Sequence[Shard]") -> None:
        """These are probably needed next."""


def shard_files(directory: storage.Place) -> ShardFiles:
    """The shards in a dataset's folder."""
    return LocalShards(directory) if isinstance(directory, pathlib.Path) else BucketShards(directory)


class LocalShards:
    """Shards in a local folder, read where they are."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory

    def survey(self, shards: "Sequence[Shard]", unused: Unused) -> Iterator[str]:
        for shard in shards:
            check_inside(self._directory / shard.file, self._directory)
            self._require_size(shard)
        return files.walk(self._directory, unused.add)

    def local(self, shard: "Shard") -> pathlib.Path:
        return self._directory / shard.file

    def digest(self, shard: "Shard") -> str:
        self._require_size(shard)
        return files.sha256(self._directory / shard.file)

    def ahead(self, shards: "Sequence[Shard]") -> None:
        """The kernel reads ahead."""

    def _require_size(self, shard: "Shard") -> None:
        path = self._directory / shard.file
        if not path.is_file():
            raise DamagedDataError(f"{path}: missing, but listed in the index")
        if path.stat().st_size != shard.bytes:
            raise DamagedDataError(f"{path}: {path.stat().st_size} bytes, expected {shard.bytes}")


class BucketShards:
    """Shards in a bucket, read from local copies."""

    def __init__(self, directory: "ObjectPath"):
        self._directory, self._folder = directory, copies_folder()
        self._pool = concurrent.futures.ThreadPoolExecutor(_AHEAD, "shard_copies")
        self._copying: dict[str, concurrent.futures.Future[pathlib.Path]] = {}
        self._lock = threading.Lock()

    def survey(self, shards: "Sequence[Shard]", unused: Unused) -> Iterator[str]:
        names = storage.of(self._directory).list_files(self._directory)  # one listing, however many shards there are
        present = set(names)
        for shard in shards:
            if shard.file not in present:
                raise DamagedDataError(f"{self._directory / shard.file}: missing, but listed in the index")
        return iter(names)

    def local(self, shard: "Shard") -> pathlib.Path:
        copy = self._folder / shard.sha256
        if not copy.is_file() or copy.stat().st_size != shard.bytes:
            copy = self._start(shard).result()
        with contextlib.suppress(OSError):
            os.utime(copy)  # the copies used least recently go first
        return copy

    def digest(self, shard: "Shard") -> str:
        found = hashlib.sha256()
        with (self._directory / shard.file).open() as file:
            while block := file.read(_RANGE_BYTES):
                found.update(block)
        return found.hexdigest()

    def ahead(self, shards: "Sequence[Shard]") -> None:
        for shard in shards[:_AHEAD]:
            if not (self._folder / shard.sha256).is_file():
                self._start(shard)

    def _start(self, shard: "Shard") -> concurrent.futures.Future:
        with self._lock:
            future = self._copying.get(shard.sha256)
            if future is None or future.done():
                future = self._copying[shard.sha256] = self._pool.submit(self._copy, shard)
            return future

    def _copy(self, shard: "Shard") -> pathlib.Path:
        source, target = self._directory / shard.file, self._folder / shard.sha256
        make_room(self._folder, shard.bytes)
        starts = range(0, shard.bytes, _RANGE_BYTES)
        found = hashlib.sha256()
        try:
            with (
                storage.of(target).local_file(target) as temporary,
                open(temporary, "wb") as file,
                concurrent.futures.ThreadPoolExecutor(_READS) as readers,
            ):
                ranges = [readers.submit(source.read, at, min(at + _RANGE_BYTES, shard.bytes)) for at in starts]
                for number, part in enumerate(ranges):
                    found.update(part.result())
                    file.write(part.result())
                    ranges[number] = None  # type: ignore[call-overload]  # its bytes go
                file.flush()
                if found.hexdigest() != shard.sha256:
                    raise DamagedDataError(f"{source}: digest {found.hexdigest()[:16]}..., expected {shard.sha256[:16]}...")
        except FileNotFoundError as error:
            raise DamagedDataError(f"{source}: missing, but listed in the index") from error
        except OSError as error:
            if "OUT_OF_RANGE" in str(error.strerror):
                raise DamagedDataError(f"{source}: fewer bytes than the {shard.bytes} expected") from error
            raise InputError(f"{source}: cannot be read ({error.strerror or error})") from error
        return target

    def __getstate__(self) -> Any:
        return self._directory

    def __setstate__(self, state: Any) -> None:
        type(self).__init__(self, state)


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
    """Remove the copies used least recently until `needed` bytes and a tenth of the disk are free, or none is left."""
    copies = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.stat().st_mtime)
    for copy in copies:
        disk = shutil.disk_usage(folder)
        if disk.free - needed >= _ROOM * disk.total:
            return
        copy.unlink(missing_ok=True)  # who reads it has it open, and keeps it
