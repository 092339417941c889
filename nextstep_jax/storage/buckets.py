"""`Store` in a bucket: nothing is renamed; a folder is complete while its marker is there, which is written last.

checkpoints/1000/...           a step as on a file system, written in its place
checkpoints/1000/COMPLETE      written last; without it the rest is no step
checkpoints/1000/DELETING      written before anything is removed
checkpoints/1000/DAMAGED       in place of COMPLETE, once the step was found damaged
checkpoints/LATEST             the newest complete step, for a listing that does not show it yet
"""

import contextlib
import errno
import json
import pathlib
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO, cast

from nextstep_jax.errors import InputError
from nextstep_jax.storage.files import identity, is_alive
from nextstep_jax.storage.objects import ABSENT, ChangedError, ObjectPath, StoreError

COMPLETE, DELETING, DAMAGED, LATEST = "COMPLETE", "DELETING", "DAMAGED", "LATEST"
_FILLING = ".filling"  # in a folder that `new_folder` has begun and not ended
_UPLOAD_EVERY_S = 30.0  # seconds between two writes of a file that grows


class _Appended:
    """A growing file as an object, which cannot grow: written anew now and then, and whenever it must be seen."""

    def __init__(self, path: ObjectPath, text: str):
        self._path, self._text, self._written, self._lock = path, text, 0.0, threading.Lock()
        self._dirty = True
        self.sync()

    def write(self, text: str) -> None:
        self._text += text
        self._dirty = True

    def flush(self) -> None:
        if time.monotonic() - self._written >= _UPLOAD_EVERY_S:
            with contextlib.suppress(StoreError):  # the next one may succeed; `sync` must
                self.sync()

    def sync(self) -> None:
        with self._lock:
            if self._dirty:
                self._written, self._dirty = time.monotonic(), False
                try:
                    self._path.write_text(self._text)
                except StoreError:
                    self._dirty = True
                    raise

    def close(self) -> None:
        self.sync()


class Buckets:
    """See `Store`."""

    def require(self, place: ObjectPath) -> None:
        place.require_bucket()

    # --- files --------------------------------------------------------------------------------------------------------

    def write(self, path: ObjectPath, data: bytes) -> None:
        path.write_bytes(data)

    def append(self, path: ObjectPath, text: str) -> _Appended:
        return _Appended(path, text)

    def open_inside(self, path: ObjectPath, root: ObjectPath | None = None) -> BinaryIO:
        return cast(BinaryIO, path.open())

    def open_regular(self, path: ObjectPath) -> BinaryIO:
        return cast(BinaryIO, path.open())

    def check_inside(self, path: ObjectPath, root: ObjectPath) -> None:
        """A bucket has no links; an address does not leave its folder."""

    def list_files(self, root: ObjectPath) -> list[str]:
        return [name for name in root.below() if name != _FILLING]

    @contextlib.contextmanager
    def local_file(self, path: ObjectPath) -> Iterator[pathlib.Path]:
        with tempfile.TemporaryDirectory(prefix="nextstep_jax-") as folder:
            yield pathlib.Path(folder) / path.name
            path.write_bytes((pathlib.Path(folder) / path.name).read_bytes())

    @contextlib.contextmanager
    def local_folder(self, path: ObjectPath) -> Iterator[pathlib.Path]:
        with tempfile.TemporaryDirectory(prefix="nextstep_jax-") as folder:
            try:
                yield pathlib.Path(folder)
            finally:
                _upload(pathlib.Path(folder), path)

    @contextlib.contextmanager
    def exclusive(self, path: ObjectPath) -> Iterator[None]:
        """What a process of this machine that has ended still holds is free; of other machines nobody can tell."""
        owner, version = path.read_versioned()
        me, holder = identity(), parse_owner(owner)
        if version != ABSENT and (holder.get("machine") != me["machine"] or is_alive(holder.get("pid"))):
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            raise BlockingIOError(errno.EAGAIN, f" ({who}); if it is gone, delete {path}", str(path))
        try:
            path.replace_version(json.dumps(me | {"token": uuid.uuid4().hex}).encode(), version)
        except ChangedError:
            raise BlockingIOError(errno.EAGAIN, "") from None
        try:
            yield
        finally:
            path.unlink()

    def free_bytes(self, folder: ObjectPath) -> None:
        return None

    def kvstore(self, folder: ObjectPath) -> dict:
        return folder.kvstore()

    # --- folders that are complete or not there -----------------------------------------------------------------------

    def require_new(self, folder: ObjectPath, marker: str) -> None:
        folder.require_bucket()
        if not folder.key:
            raise InputError(f"{folder}: name a folder in the bucket")
        if folder.is_dir() and ((folder / marker).is_file() or not (folder / _FILLING).is_file()):
            raise InputError(f"{folder}: already exists; choose another folder or remove it")

    @contextlib.contextmanager
    def new_folder(self, folder: ObjectPath, marker: str) -> Iterator[ObjectPath]:
        self.require_new(folder, marker)
        folder.remove_below()  # what a writer that was killed has left
        filling = folder / _FILLING
        filling.write_bytes(b"")
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(StoreError):
                (folder / marker).unlink()
                folder.remove_below()
            raise
        filling.unlink()

    @contextlib.contextmanager
    def new_local_folder(self, folder: ObjectPath, marker: str) -> Iterator[pathlib.Path]:
        with self.new_folder(folder, marker), tempfile.TemporaryDirectory(prefix="nextstep_jax-") as local:
            yield pathlib.Path(local)
            _upload(pathlib.Path(local), folder, last=marker)

    @contextlib.contextmanager
    def replacing_folder(self, folder: ObjectPath, marker: str) -> Iterator[ObjectPath]:
        (folder / marker).unlink()
        folder.remove_below()
        yield folder

    def remove_folder(self, folder: ObjectPath) -> None:
        folder.remove_below()

    # --- steps of a run -----------------------------------------------------------------------------------------------

    def begin_step(self, step: ObjectPath) -> None:
        self.drop_step(step)

    def step_in_progress(self, step: ObjectPath) -> ObjectPath:
        return step

    def complete_step(self, step: ObjectPath) -> None:
        (step / COMPLETE).write_bytes(b"")
        (step.parent / LATEST).write_text(step.name)

    def is_complete(self, step: ObjectPath) -> bool:
        return (step / COMPLETE).is_file()

    def list_steps(self, folder: ObjectPath) -> list[int]:
        names = [name.removesuffix(f"/{COMPLETE}") for name in folder.below() if name.endswith(f"/{COMPLETE}")]
        found = {int(name) for name in names if name.isdigit()}
        with contextlib.suppress(FileNotFoundError, ValueError):
            latest = int((folder / LATEST).read_text())
            if latest not in found and self.is_complete(folder / str(latest)):
                found.add(latest)
        return sorted(found)

    def remove_step(self, step: ObjectPath) -> None:
        (step / DELETING).write_bytes(b"")
        self.drop_step(step)

    def drop_step(self, step: ObjectPath) -> None:
        (step / COMPLETE).unlink()
        for name in step.below():
            if name != DELETING:
                (step / name).unlink()
        (step / DELETING).unlink()

    def set_aside(self, step: ObjectPath) -> None:
        (step / DAMAGED).write_bytes(b"")
        (step / COMPLETE).unlink()

    def clear_leftovers(self, folder: ObjectPath) -> list[str]:
        half_written = []
        names = list(folder.below())
        for step in sorted({name.partition("/")[0] for name in names if "/" in name}):
            # A listing may be late: an object is asked for itself before anything is removed.
            if not step.isdigit() or (folder / step / DAMAGED).is_file():
                continue
            removing = (folder / step / DELETING).is_file()
            if removing or not self.is_complete(folder / step):
                half_written += [] if removing else [step]
                self.drop_step(folder / step)
        return half_written


def parse_owner(owner: bytes) -> dict:
    """What a lock says of its owner; {} if it says nothing."""
    try:
        found = json.loads(owner)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _upload(local: pathlib.Path, folder: ObjectPath, last: str | None = None) -> None:
    """Write the files of a local folder as objects, `last` at the end."""
    names = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        (folder / name).write_bytes((local / name).read_bytes())


OBJECTS = Buckets()
