"""One run at a time in a bucket's folder: an object that is created only if absent, and replaced only by who knows its version.

`run.json` names the owner, who writes it anew every `_HEARTBEAT_S` seconds. A lock that stays as it is for
`lock.STALE_AFTER_S` seconds is free; who takes it over replaces exactly the version that was watched, so that of two who try
one succeeds, and an owner that had only been out of reach learns at its next heartbeat that it is not the owner any more.
"""

import contextlib
import logging
import threading
import time
import uuid

from nextstep_jax.checkpoints import lock
from nextstep_jax.errors import InputError
from nextstep_jax.storage.buckets import parse_owner
from nextstep_jax.storage.files import identity, is_alive
from nextstep_jax.storage.objects import ABSENT, ChangedError, ObjectPath, StoreError, Version

logger = logging.getLogger(__name__)


class BucketLock:
    """Holds the folder from construction to `release`. See `lock.RunLock`."""

    step = 0  # the step reached, for those who watch

    def __init__(self, directory: ObjectPath):
        directory.require_bucket()
        self._directory, self._file = directory, directory / lock.OWNER_FILE
        self._me = identity() | {"token": uuid.uuid4().hex}
        self._beats, self._beating, self.problem = 0, threading.Lock(), ""
        self._version = self._take()
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="run_lock", daemon=True)
        self._heartbeat.start()

    def release(self) -> None:
        """Make room for the next run."""
        self._released.set()
        self._heartbeat.join()
        with contextlib.suppress(StoreError, InputError):
            self.confirm()
            self._file.unlink()

    def confirm(self) -> None:
        """A heartbeat now. InputError if another run has taken the folder; StoreError if nobody can tell."""
        with self._beating:
            try:
                if not self.problem:
                    self._version = self._file.replace_version(self._content(), self._version)
            except ChangedError:
                self.problem = f"{self._directory}: another run has taken it over while this one gave no sign of life"
        if self.problem:
            raise InputError(self.problem)

    def _take(self) -> Version:
        try:
            owner, version = self._file.read_versioned()
            if version != ABSENT and not self._is_dead(owner) and self._is_touched(version):
                raise self._refusal(self._file.read_versioned()[0])
            return self._file.replace_version(self._content(), version)
        except ChangedError:
            raise self._refusal(self._file.read_versioned()[0]) from None
        except StoreError as error:
            raise InputError(f"{self._directory}: cannot be written ({error.strerror})") from error

    def _is_touched(self, version: Version) -> bool:
        """Watch for a sign of life."""
        logger.warning("%s: waiting up to %d s to see whether its last run lives", self._directory, lock.STALE_AFTER_S)
        deadline = time.monotonic() + lock.STALE_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(lock.STALE_AFTER_S / 60)
            if self._file.read_versioned()[1] != version:
                return True
        return False

    def _is_dead(self, owner: bytes) -> bool:
        """Whether it was a process of this machine that has ended."""
        found = parse_owner(owner)
        return found.get("machine") == self._me["machine"] and not is_alive(found.get("pid"))

    def _beat(self) -> None:
        while not self._released.wait(lock.HEARTBEAT_S):
            try:
                self.confirm()
            except InputError as error:
                logger.error("%s", error)
                return
            except StoreError as error:
                logger.warning("%s: no heartbeat: %s", self._directory, error.strerror)

    def _content(self) -> bytes:
        self._beats += 1
        return lock.sign_of_life(self._me, self._beats, self.step)

    def _refusal(self, owner: bytes) -> InputError:
        return lock.refusal(self._directory, parse_owner(owner))
