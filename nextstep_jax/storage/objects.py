"""Objects of a bucket, Google's (`gs://`) or one that speaks S3 (`s3://`), through TensorStore's key-value drivers.

TensorStore writes the arrays there anyway, so one client and one set of credentials serve all of a run's files:

    gs://   application default credentials (`gcloud auth application-default login`, or the machine's service account)
    s3://   AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or the machine's role; AWS_REGION;
            AWS_ENDPOINT_URL for a store that is not Amazon's

What is built on: writing one object is all or nothing and seen at once by readers and listings; a write can be made to succeed
only if there is no such object, or only if it is still the version that was read. There is no renaming, no appending and no
time of change that a client could set.
"""

import fnmatch
import functools
import io
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorstore as ts

from nextstep_jax.errors import InputError
from nextstep_jax.storage import tensorstore_context

_SAY_AFTER_S = 10.0  # seconds after which the log says what is being waited for
_READ_BYTES = 1 << 25  # bytes of one read of a large object
_GCS_EMULATOR = "STORAGE_EMULATOR_HOST"  # as Google's own clients have it

logger = logging.getLogger(__name__)

Version = bytes  # identifies what an object held when it was read or written
ABSENT: Version = b"\x02"  # TensorStore's name for the version of what does not exist


class ChangedError(Exception):
    """An object is not the version that a write was to replace."""


class StoreError(OSError):
    """A bucket could not be read or written. `strerror` is one line; `filename` the address."""

    def __init__(self, address: str, reason: str):
        super().__init__(5, reason, address)  # EIO


class _Size(NamedTuple):
    st_size: int


@functools.total_ordering
class ObjectPath(os.PathLike):
    """The address of an object, or of the "folder" of all objects that begin with it; has `pathlib.Path`'s names for what it
    can do. Reading what is not there raises FileNotFoundError, any other failure StoreError.
    """

    __slots__ = ("bucket", "key", "scheme")

    def __init__(self, address: str):
        found = re.fullmatch(r"(gs|s3)://([A-Za-z0-9][A-Za-z0-9._-]{1,221})(?:/(.*))?", address)
        key = (found[3] or "").strip("/") if found else ""
        if not found or ".." in key.split("/") or not key.isprintable() or re.search(r"//|\\|[*?#\[\]]", key):
            raise InputError(f"{address}: expected gs://BUCKET/NAME or s3://BUCKET/NAME")
        self.scheme, self.bucket, self.key = found[1], found[2], key

    # --- names --------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: "ObjectPath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(f"{self}/{name}")

    def __getstate__(self) -> str:
        return str(self)

    def __setstate__(self, state: str) -> None:
        ObjectPath.__init__(self, state)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        base, dot, end = self.name.rpartition(".")
        return dot + end if base else ""

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(f"{self.scheme}://{self.bucket}/{self.key.rpartition('/')[0]}")

    def with_name(self, name: str) -> "ObjectPath":
        return self.parent / name

    def relative_to(self, folder: "ObjectPath") -> str:
        return str(self).removeprefix(f"{folder}/")

    def resolve(self) -> "ObjectPath":
        return self

    # --- reading ------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return bool(self.key) and self._read(slice(0, 0)).state == "value"

    def is_dir(self) -> bool:
        return next(self.below(), None) is not None

    def is_symlink(self) -> bool:
        return False

    def below(self, cuts: Sequence[str] = ()) -> Iterator[str]:
        """The names, relative to this folder, of all its objects, sorted. A listing comes in pages of a thousand, one after the
        other; the parts between the names `cuts`, in ascending order, are listed side by side.
        """
        prefix, store = f"{self.key}/" if self.key else "", self._store()
        ends = [prefix, *(prefix + cut for cut in cuts), prefix[:-1] + "0" if prefix else ""]
        ranges = [ts.KvStore.KeyRange(first, last) for first, last in itertools.pairwise(ends)]
        parts = [store.list(range=keys, strip_prefix_length=len(prefix)) for keys in ranges]
        for part in parts:
            yield from sorted(name.decode() for name in self._wait(part))

    def iterdir(self) -> Iterator["ObjectPath"]:
        """The objects and folders right below."""
        yield from (self / name for name in sorted({name.partition("/")[0] for name in self.below()}) if name)

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Those right below whose name fits."""
        yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def read(self, start: int, stop: int | None) -> bytes:
        """The bytes from start up to stop, None being the end. StoreError if there are fewer."""
        result = self._read(slice(start, stop))
        if result.state != "value":
            raise FileNotFoundError(2, "no such object", str(self))
        return bytes(result.value)

    def read_bytes(self) -> bytes:
        return self.read(0, None)

    def read_versioned(self) -> tuple[bytes, Version]:
        """Its bytes and what identifies them; (b"", ABSENT) if there is no such object."""
        result = self._read(slice(0, None))
        return bytes(result.value), bytes(result.stamp.generation)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb", buffering: int = _READ_BYTES) -> io.BufferedReader:
        """A file object to read from, in ranges of `buffering` bytes: memory does not follow the object's size."""
        if mode != "rb":
            raise ValueError(f"objects are opened for reading bytes, found mode {mode!r}")
        if not self.is_file():
            raise FileNotFoundError(2, "no such object", str(self))
        return io.BufferedReader(_Ranges(self), buffering)

    def stat(self) -> _Size:
        """Its size, for which the object is read."""
        with self.open() as file:
            return _Size(sum(len(block) for block in iter(lambda: file.read(_READ_BYTES), b"")))

    # --- writing ------------------------------------------------------------------------------------------------------

    def write_bytes(self, data: bytes) -> Version:
        """Write the object, in place of an earlier one."""
        return self._write(data, None)

    def write_text(self, text: str, encoding: str = "utf-8") -> Version:
        return self.write_bytes(text.encode(encoding))

    def replace_version(self, data: bytes, version: Version) -> Version:
        """Write the object if it is still the version that was read; ABSENT: if there is none. Returns its new version.

        A write whose answer is lost is repeated by the client and then meets itself, so contents must tell writers apart.

        Raises:
          ChangedError: it is another version now, and not these bytes.
        """
        written = self._write(data, version)
        if not written:
            held, now = self.read_versioned()
            if held != data or now == ABSENT:
                raise ChangedError(str(self))
            return now
        return written

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete the object; whether there was one makes no difference."""
        self._wait(self._store().write(self.key, None))

    def remove_below(self) -> None:
        """Delete all the objects of this folder."""
        store = self._store()
        deletions = [store.write(f"{self.key}/{name}", None) for name in self.below()]
        for deletion in deletions:
            self._wait(deletion)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there once it has an object."""

    # --- the client ---------------------------------------------------------------------------------------------------

    def kvstore(self) -> dict[str, Any]:
        """TensorStore's spec of this folder."""
        return _spec(self.scheme, self.bucket, f"{self.key}/" if self.key else "")

    def require_bucket(self) -> None:
        """InputError, in one line, for a bucket that is not there, cannot be reached or does not let us in."""
        probe = ts.KvStore.KeyRange(f"{self.key}/.probe", f"{self.key}/.probe0")
        try:
            self._wait(self._store().list(range=probe))
        except StoreError as error:
            raise InputError(f"{self.scheme}://{self.bucket}: {error.strerror}") from error

    def _store(self) -> ts.KvStore:
        return _open(self.scheme, self.bucket, os.environ.get(_endpoint_variable(self.scheme)))

    def _read(self, part: slice) -> ts.KvStore.ReadResult:
        return self._wait(self._store().read(self.key, byte_range=part))

    def _write(self, data: bytes, version: Version | None) -> Version:
        return bytes(self._wait(self._store().write(self.key, data, if_equal=version)).generation)

    def _wait(self, future: ts.Future) -> Any:
        """The result. Says so when it takes long; the client gives up by itself."""
        while True:
            try:
                return future.result(timeout=_SAY_AFTER_S)
            except TimeoutError:
                logger.warning("%s: still waiting for the bucket", self)
            except (ValueError, RuntimeError, OSError) as error:
                raise StoreError(str(self), explain(error, self.scheme)) from error


class _Ranges(io.RawIOBase):
    """An object as a file, read range by range; its size is found by reaching its end."""

    def __init__(self, path: ObjectPath):
        self._path, self._at, self._ended = path, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self._ended:
            return 0
        try:
            data = self._path.read(self._at, self._at + len(buffer))
        except StoreError as error:
            if "OUT_OF_RANGE" not in str(error.__cause__):
                raise
            data, self._ended = self._rest(), True
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _rest(self) -> bytes:
        try:
            return self._path.read(self._at, None)
        except StoreError as error:
            if "OUT_OF_RANGE" not in str(error.__cause__):
                raise
            return b""


def explain(error: Exception, scheme: str) -> str:
    """What a driver of TensorStore says, in one line, and what to do about it."""
    said = " ".join(str(error).split(" [")[0].split())[:300]
    login = "gcloud auth application-default login" if scheme == "gs" else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if re.search(r"NoSuchBucket|bucket does not exist", str(error)) or said.startswith("NOT_FOUND"):
        return "no such bucket"
    if re.search(r"UNAUTHENTICATED|PERMISSION_DENIED|http_response_code='40[13]'|[Cc]redentials|AccessDenied", str(error)):
        return f"access denied; credentials are taken from the environment ({login}): {said}"
    if re.search(r"CURL error|resolve|connect", str(error)):
        return f"cannot be reached: {said}"
    return said


def _endpoint_variable(scheme: str) -> str:
    return _GCS_EMULATOR if scheme == "gs" else "AWS_ENDPOINT_URL"


def _spec(scheme: str, bucket: str, prefix: str) -> dict[str, Any]:
    endpoint = os.environ.get(_endpoint_variable(scheme))
    if scheme == "gs":
        if endpoint:  # TensorStore reads these
            os.environ["TENSORSTORE_GCS_HTTP_URL"] = endpoint if "://" in endpoint else f"http://{endpoint}"
            os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        return {"driver": "gcs", "bucket": bucket, "path": prefix, "gcs_request_retries": "gcs_request_retries"}
    spec = {"driver": "s3", "bucket": bucket, "path": prefix, "s3_request_retries": "s3_request_retries"}
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        spec |= {"endpoint": endpoint, "aws_region": region}
    return spec


@functools.lru_cache
def _open(scheme: str, bucket: str, endpoint: str | None) -> ts.KvStore:
    del endpoint  # it is in the spec; another one is another store
    store = ts.KvStore.open(_spec(scheme, bucket, ""), context=ts.Context(tensorstore_context()))
    try:
        return store.result()
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{scheme}://{bucket}: {explain(error, scheme)}") from error
