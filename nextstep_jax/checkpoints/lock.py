"""One run at a time in a working directory.

On one machine the kernel decides: a record lock on `run.lock` lives exactly as long as its process, `kill -9` included. Between
machines file locks cannot be relied on, so the owner also keeps writing `run.json`; a lock left by another machine counts as
free once that file stays untouched for `STALE_AFTER_S` seconds.

`run.json`, in a bucket as on a file system, is the run's sign of life, for whoever watches it:

    {"pid": int, "host": str, "machine": str, "beats": how often it was written, "step": the step reached, "time": UTC}
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nextstep_jax import storage
from nextstep_jax.errors import InputError
from nextstep_jax.storage.files import identity

if TYPE_CHECKING:
    from nextstep_jax.checkpoints.bucket_lock import BucketLock

OWNER_FILE = "run.json"
HEARTBEAT_S = 10.0  # seconds between two signs of life
STALE_AFTER_S = 60.0  # seconds
_TAKEN = (errno.EAGAIN, errno.EACCES)

logger = logging.getLogger(__name__)

_held: set[pathlib.Path] = set()  # record locks do not exclude their own process


class RunLock:
    """Holds the directory from construction to `release`.

    Raises:
      InputError: another run holds it (naming its process and machine), or the directory is not writable.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory, self._owner_file = directory.resolve(), directory.resolve() / OWNER_FILE
        if self._directory in _held:
            raise self._refusal()
        try:
            self._descriptor = os.open(self._directory / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{directory}: cannot be written ({error.strerror})") from error
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(self._directory)
        self._beats = 0
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="run_lock", daemon=True)
        self._heartbeat.start()

    problem = ""  # why this is not the owner any more
    step = 0  # the step reached, for those who watch

    def confirm(self) -> None:
        """Nothing: nobody can take the folder while this process lives."""

    def release(self) -> None:
        """Make room for the next run."""
        self._released.set()
        self._heartbeat.join()
        self._owner_file.unlink(missing_ok=True)
        os.close(self._descriptor)
        _held.discard(self._directory)

    def _take(self) -> None:
        kernel_decides = True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise self._refusal() from None
            kernel_decides = False  # this file system has no locks
        here = identity()
        if self._owner_file.exists():
            dead = kernel_decides and self._owner().get("machine") == here["machine"]
            if not dead and self._is_touched():
                raise self._refusal()
        storage.of(self._owner_file).write(self._owner_file, sign_of_life(here, 0, self.step))

    def _is_touched(self) -> bool:
        """Watch for a sign of life. Opening the file makes network file systems fetch its true time."""
        logger.warning("%s: waiting up to %d s to see whether its last run lives", self._directory, STALE_AFTER_S)
        first, deadline = self._last_touch(), time.monotonic() + STALE_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(STALE_AFTER_S / 60)
            if self._last_touch() != first:
                return True
        return False

    def _last_touch(self) -> int:
        with open(self._owner_file, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns

    def _beat(self) -> None:
        me, store = identity(), storage.of(self._owner_file)
        while not self._released.wait(HEARTBEAT_S):
            self._beats += 1
            try:
                store.write(self._owner_file, sign_of_life(me, self._beats, self.step))
            except OSError:  # a full disk takes no file, but a touch
                with contextlib.suppress(OSError):
                    os.utime(self._owner_file)

    def _owner(self) -> dict[str, Any]:
        try:
            return json.loads(self._owner_file.read_bytes())
        except (OSError, ValueError):
            return {}

    def _refusal(self) -> InputError:
        return refusal(self._directory, self._owner())


def lock_run(directory: storage.Place) -> "RunLock | BucketLock":
    """The lock of a run's folder, of the kind that its store has. Raises as `RunLock`."""
    from nextstep_jax.checkpoints.bucket_lock import BucketLock

    return RunLock(directory) if isinstance(directory, pathlib.Path) else BucketLock(directory)


def sign_of_life(me: Mapping[str, Any], beats: int, step: int) -> bytes:
    """What `run.json` says."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return json.dumps({**me, "beats": beats, "step": step, "time": now}).encode()


def refusal(directory: storage.Place, owner: Mapping[str, Any]) -> InputError:
    """What to say to a run that is not the owner."""
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
    return InputError(f"{directory}: in use by another run ({who}); stop it or choose another workdir")
