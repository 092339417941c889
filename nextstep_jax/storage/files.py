"""`Store` on a file system: files are renamed into place once their bytes are on disk, and so are folders."""

import contextlib
import errno
import fcntl
import glob
import io
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO

from nextstep_jax import untrusted
from nextstep_jax.errors import InputError

_PARTIAL, _DELETING = ".partial", ".deleting"


class _Appended(io.TextIOWrapper):
    def sync(self) -> None:
        self.flush()


class Files:
    """See `Store`."""

    def require(self, place: pathlib.Path) -> None:
        """A path is found missing by whoever uses it."""

    # --- files --------------------------------------------------------------------------------------------------------

    def write(self, path: pathlib.Path, data: bytes) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(path.parent)

    def append(self, path: pathlib.Path, text: str) -> _Appended:
        temporary = path.with_suffix(_PARTIAL)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        return _Appended(open(path, "ab"), encoding="utf-8")

    def open_inside(self, path: pathlib.Path, root: pathlib.Path | None = None) -> BinaryIO:
        return untrusted.open_inside(path, root)

    def open_regular(self, path: pathlib.Path) -> BinaryIO:
        return untrusted.open_regular(path)

    def check_inside(self, path: pathlib.Path, root: pathlib.Path) -> None:
        untrusted.check_inside(path, root)

    def list_files(self, root: pathlib.Path) -> list[str]:
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    @contextlib.contextmanager
    def local_file(self, path: pathlib.Path) -> Iterator[pathlib.Path]:
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextlib.contextmanager
    def local_folder(self, path: pathlib.Path) -> Iterator[pathlib.Path]:
        yield path

    @contextlib.contextmanager
    def exclusive(self, path: pathlib.Path) -> Iterator[None]:
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(errno.EAGAIN, "") from None
            yield

    def free_bytes(self, folder: pathlib.Path) -> int | None:
        disk = shutil.disk_usage(folder)
        return disk.free if disk.total else None  # some network file systems report no sizes

    def kvstore(self, folder: pathlib.Path) -> dict[str, Any]:
        return {"driver": "file", "path": f"{folder}/"}

    # --- folders that are complete or not there -----------------------------------------------------------------------

    def require_new(self, folder: pathlib.Path, marker: str) -> None:
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise InputError(f"{folder}: already exists; choose another folder or remove it")

    @contextlib.contextmanager
    def new_folder(self, folder: pathlib.Path, marker: str) -> Iterator[pathlib.Path]:
        self.require_new(folder, marker)
        host, pid = socket.gethostname(), os.getpid()
        partial = folder.with_name(f".{folder.name}.{host}.{pid}{_PARTIAL}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.{glob.escape(host)}.*{_PARTIAL}"):
            if not is_alive(leftover.name.split(".")[-2]):
                shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            sync_folders(partial)
            os.rename(partial, folder)
            sync_directory(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    new_local_folder = new_folder

    @contextlib.contextmanager
    def replacing_folder(self, folder: pathlib.Path, marker: str) -> Iterator[pathlib.Path]:
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            yield fresh
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def remove_folder(self, folder: pathlib.Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    # --- steps of a run -----------------------------------------------------------------------------------------------

    def begin_step(self, step: pathlib.Path) -> None:
        partial = self.step_in_progress(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def step_in_progress(self, step: pathlib.Path) -> pathlib.Path:
        return step.with_name(step.name + _PARTIAL)

    def complete_step(self, step: pathlib.Path) -> None:
        partial = self.step_in_progress(step)
        sync_folders(partial)
        os.rename(partial, step)
        sync_directory(step.parent)

    def is_complete(self, step: pathlib.Path) -> bool:
        return step.is_dir()

    def list_steps(self, folder: pathlib.Path) -> list[int]:
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and path.is_dir())

    def remove_step(self, step: pathlib.Path) -> None:
        stale = step.with_name(step.name + _DELETING)
        os.rename(step, stale)
        shutil.rmtree(stale)

    def drop_step(self, step: pathlib.Path) -> None:
        shutil.rmtree(self.step_in_progress(step), ignore_errors=True)

    def set_aside(self, step: pathlib.Path) -> None:
        names = [f"damaged-{step.name}", *(f"damaged-{step.name}-{n}" for n in range(2, 1000))]
        free = next(name for name in names if not step.with_name(name).exists())
        os.rename(step, step.with_name(free))

    def clear_leftovers(self, folder: pathlib.Path) -> list[str]:
        half_written = []
        for leftover in folder.glob(f"*{_PARTIAL}"):
            half_written.append(leftover.name.removesuffix(_PARTIAL))
            shutil.rmtree(leftover)
        for leftover in folder.glob(f"*{_DELETING}"):
            shutil.rmtree(leftover)
        return half_written


def sync_directory(directory: pathlib.Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(root: pathlib.Path) -> None:
    """Make the entries of every folder from `root` down durable; the files themselves are synced as they are written."""
    for folder, _, _ in os.walk(root):
        sync_directory(pathlib.Path(folder))


def is_alive(pid: Any) -> bool:
    """Whether a process of this machine with that id runs."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError, TypeError):
        return False
    return True


def identity() -> dict[str, Any]:
    """This process. `machine` tells this machine from another of the same name and from itself before a restart."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return {"pid": os.getpid(), "host": socket.gethostname(), "machine": f"{socket.gethostname()} {boot}"}


FILES = Files()
