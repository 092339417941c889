"""Training checkpoints: a run's whole state, saved while the run goes on, verified when it comes back.

What lies in the run's folder:

    checkpoints/1000/           a complete step; while it is being written it is called 1000.partial
        state/                  the arrays, written by Orbax: every process its own slices
        process_0-of-2.json     of each process: its data iterator's state; size and digest of the files it wrote; from process
                                0 also the leaves with their digests, the configuration and the library versions
    checkpoints/damaged-1000/   a step that was found damaged when an older one was restored instead

A leaf of the state is named by its key path, e.g. params/model/embedding/embedding.
"""

import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nextstep_jax import storage
from nextstep_jax.checkpoints import manifest, processes, steps
from nextstep_jax.checkpoints.digests import check_dtype, defer_digest
from nextstep_jax.checkpoints.lock import OWNER_FILE, lock_run
from nextstep_jax.checkpoints.state_writers import new_state_writer
from nextstep_jax.errors import DamagedDataError, InputError

_VISIBILITY_TIMEOUT_S = 60.0  # seconds after which a file that another process wrote must be seen
_ABANDON_TIMEOUT_S = 20.0  # seconds for a save under way when the run fails
_LIBRARIES = ("nextstep-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "grain")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored step.

    Attributes:
      step: as given to `save`.
      state: like the target, bit-identical to what was saved.
      data_states: what each saving process gave as `data_state`, by process index.
      config: the run's configuration when it was saved.
      versions: {library: version} when it was saved.
      warnings: what was found incomplete or damaged on the way, one line each.
    """

    step: int
    state: Any
    data_states: tuple[Any, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    warnings: tuple[str, ...]


class TrainCheckpointer:
    """Saves and restores the state of one run. Every process of the run makes one and calls it at the same points.

    Args:
      workdir: the run's folder, on a file system that all processes see or in a bucket. One run at a time may use it.
      config: the run's configuration (JSON-able), stored with every step.
      checkpoint_config: config.json of the parameter checkpoints exported from this run.
      keep_last: how many of the newest complete steps to keep.
      keep_every: also keep the steps that are multiples of it.
      save_timeout: seconds after which processes give up a save that another process does not finish.

    Attributes:
      last_good: the newest complete step, None before there is one.
      failed_saves: how many saves of this run did not succeed; each was logged with its reason.
      pinned: a step that stays, however old; None: none does.

    Raises:
      InputError: the folder is in use by another run or not writable.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        config: Mapping[str, Any],
        checkpoint_config: Mapping[str, Any] | None = None,
        keep_last: int = 3,
        keep_every: int | None = None,
        save_timeout: int = 900,
    ):
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise InputError(f"keep_last and keep_every must be at least 1, found {keep_last} and {keep_every}")
        self._directory = storage.at(workdir) / "checkpoints"
        self._store = storage.of(self._directory)
        self._store.require(self._directory)
        self._description = {"config": dict(config), "checkpoint_config": checkpoint_config, "versions": _versions()}
        self._keep_last, self._keep_every, self._timeout = keep_last, keep_every, save_timeout
        self._warnings: list[str] = []
        self._lock = self._take_lock()
        self._writer = new_state_writer(self._directory, save_timeout)
        self._barrier = ocp.multihost.get_barrier_sync_fn()
        self._saving: threading.Thread | None = None
        self._saves = 0
        self._preempted, self._default_handler = threading.Event(), None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._default_handler = signal.signal(signal.SIGTERM, lambda *_: self._preempted.set())
        self.last_good = max(steps.list_steps(self._directory), default=None)
        self.failed_saves = 0
        self.pinned: int | None = None

    def __enter__(self) -> "TrainCheckpointer":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None and jax.process_count() > 1:
            self._abandon()
        else:
            self.close()

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, data_state: Any = None) -> None:
        """Start saving; what is left of the save before this one is waited for first.

        When this returns the state has been copied to host memory and may be donated. A save that fails (disk full, input or
        output error, another process gone) is logged and counted, not raised: the run goes on and the last complete step stays.

        Args:
          step: name of the step. A step that is already complete is not saved again.
          state: pytree of arrays.
          data_state: this process's data iterator state: bytes, or anything JSON-able.

        Raises:
          InputError: a leaf or the data state cannot be stored, or another run has taken the folder.
        """
        self.wait()
        if problem := processes.broadcast(self._lock.problem if self._lock is not None else ""):
            raise InputError(problem)
        self._saves += 1
        content = {"step": step, "process": jax.process_index(), "data_state": steps.to_json(data_state)}
        leaves = _storable(state)
        verdict = processes.broadcast(self._make_room(step, leaves))
        if verdict:
            if verdict != "complete":
                self._give_up(step, verdict)
            return
        digests = {path: defer_digest(leaf) for path, leaf in leaves.items()}
        try:
            self._writer.start(self._partial(step) / steps.STATE, leaves)
        except (OSError, ValueError, RuntimeError) as error:
            self._give_up(step, _reason(error))
            self._writer.renew()
            return
        if jax.process_index() == 0:
            shapes = {path: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for path, leaf in leaves.items()}
            content |= self._description | {"leaves": shapes}
        self._saving = threading.Thread(target=self._finish, args=(step, content, digests), name="checkpoint_save", daemon=True)
        self._saving.start()

    def wait(self) -> None:
        """Return when no save is under way."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None

    def close(self) -> None:
        """Finish the save under way and leave the folder to the next run."""
        try:
            self.wait()
            self._writer.close()
        finally:
            if self._default_handler is not None:
                signal.signal(signal.SIGTERM, self._default_handler)
            if self._lock is not None:
                self._lock.release()

    def _abandon(self) -> None:
        """After an error, when other processes may be gone: give a save under way a moment, then leave the folder."""
        if self._saving is not None:
            self._saving.join(_ABANDON_TIMEOUT_S)
        if self._lock is not None:
            self._lock.release()

    def reached_preemption(self, step: int) -> bool:
        """Whether the run was asked to stop (SIGTERM) and should save and leave after this step.

        To be called once a step, by every process: all of them get True at the same step, whichever received the signal. The
        run's sign of life tells the step from then on.
        """
        if self._lock is not None:
            self._lock.step = step
        if jax.process_count() > 1:
            return ocp.multihost.reached_preemption(step)
        return self._preempted.is_set()

    def _make_room(self, step: int, leaves: Mapping[str, Any]) -> str:
        """On process 0: make the folder to write into. Returns why there is nothing to write, or ""."""
        if jax.process_index() != 0:
            return ""
        try:
            if self._store.is_complete(self._directory / str(step)):
                return "complete"
            self._store.begin_step(self._directory / str(step))
            needed, free = sum(leaf.nbytes for leaf in leaves.values()), self._store.free_bytes(self._directory)
        except OSError as error:
            return _reason(error)
        if free is not None and free < needed:
            return f"no space left: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        return ""

    def _finish(self, step: int, content: dict[str, Any], digests: Mapping[str, Callable[[], str]]) -> None:
        """In the background: wait for the arrays, describe what this process wrote, and make the step complete."""
        problem = ""
        for part, stage in (("written", self._write), ("described", self._describe), ("complete", self._complete)):
            try:
                if not problem:
                    stage(step, content, digests)
            except Exception as error:  # whatever it is, the run must go on
                problem = _reason(error)
            try:  # also after a problem, so that nobody waits for this process
                self._barrier(key=f"checkpoint_{self._saves}_{part}", timeout_ms=1000 * self._timeout)
            except Exception as error:
                problem = problem or _reason(error)
                break
        if not problem and not _becomes_true(lambda: self._store.is_complete(self._directory / str(step))):
            problem = "process 0 could not complete it"
        if problem:
            self._give_up(step, problem)
            self._writer.renew()
            return
        self.last_good = step
        if jax.process_index() == 0:
            self._remove_old()

    def _write(self, *_) -> None:
        self._writer.wait()

    def _describe(self, step: int, content: dict[str, Any], digests: Mapping[str, Callable[[], str]]) -> None:
        """Once all arrays are kept: write what this process knows about its files."""
        partial, process = self._partial(step), jax.process_index()
        if process == 0:
            self._writer.merge(partial / steps.STATE)
            for path, digest in digests.items():
                content["leaves"][path]["digest"] = digest()
        mine = [name for name in self._store.list_files(partial) if steps.writer_of(name) == process]
        content["files"] = manifest.describe_files(partial, mine)
        self._store.write(partial / steps.process_file(process, jax.process_count()), manifest.seal(content))

    def _complete(self, step: int, *_) -> None:
        """On process 0, once all processes have described their parts: give the step its name."""
        partial, count = self._partial(step), jax.process_count()
        if jax.process_index() == 0:
            for process in range(count):
                if not _becomes_true((partial / steps.process_file(process, count)).exists):
                    raise OSError(f"process {process} could not save its part")
            assert self._lock is not None
            self._lock.confirm()
            self._store.complete_step(self._directory / str(step))

    def _give_up(self, step: int, reason: str) -> None:
        self.failed_saves += 1
        kept = "there is no complete checkpoint yet" if self.last_good is None else f"the last complete one is {self.last_good}"
        logger.warning("checkpoint %d could not be saved (%s); %s", step, reason, kept)
        if jax.process_index() == 0:
            try:
                self._store.drop_step(self._directory / str(step))
            except OSError as error:  # the next save of this step, or the next run, clears it away
                logger.warning("what there is of checkpoint %d could not be removed (%s)", step, _reason(error))

    def _remove_old(self) -> None:
        complete = steps.list_steps(self._directory)
        periodic = {step for step in complete if self._keep_every and step % self._keep_every == 0}
        for step in set(complete[: -self._keep_last]) - periodic - {self.pinned}:
            try:
                self._store.remove_step(self._directory / str(step))
            except OSError as error:
                logger.warning("old checkpoint %d could not be removed (%s)", step, _reason(error))

    def _partial(self, step: int) -> Any:
        return self._store.step_in_progress(self._directory / str(step))

    def _take_lock(self) -> Any:
        """On process 0: the lock. Clears away what an interrupted run left half done."""
        lock, problem = None, ""
        if jax.process_index() == 0:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                lock = lock_run(self._directory.parent)
                for step in self._store.clear_leftovers(self._directory):
                    self._warn(f"checkpoint {step} was not written whole (the run stopped while saving it); removed")
            except InputError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{self._directory}: cannot be written ({error.strerror})"
        problem = processes.broadcast(problem)
        if not problem:
            seen = processes.gather(str(_becomes_true((self._directory.parent / OWNER_FILE).exists)))
            blind = [i for i, sees in enumerate(seen) if sees != "True"]
            if blind:
                problem = (
                    f"{self._directory.parent}: processes {blind} do not see it as process 0 does; use a shared file system"
                )
        if problem:
            if lock is not None:
                lock.release()
            raise InputError(problem)
        return lock

    # --- restoring ----------------------------------------------------------------------------------------------------

    def restore(self, target: Any, *, cast: bool = False) -> Restored | None:
        """The newest step that is wholly as it was written; None if none was ever completed.

        Newer steps that are damaged are named in the log and in `Restored.warnings` and set aside.

        Args:
          target: pytree of arrays or `jax.ShapeDtypeStruct`. A leaf's sharding says where to restore it, whatever mesh or
            number of processes saved it; without one it goes to the default device.
          cast: convert leaves whose stored dtype is another than the target's; otherwise that is an error.

        Raises:
          InputError: the stored leaves are not the target's; names the first that differs.
          DamagedDataError: there are complete steps and every one of them is damaged; lists them. Nothing is set aside.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in json.loads(processes.broadcast(json.dumps(steps.list_steps(self._directory)[::-1]))):
            try:
                stored, state = steps.restore_step(self._directory / str(step), target, cast)
                break
            except DamagedDataError as error:
                damaged[step] = str(error)
        else:
            if damaged:
                raise DamagedDataError(f"no checkpoint of this run is whole: {'; '.join(damaged.values())}")
            return None
        for bad, problem in damaged.items():
            self._set_aside(bad)
            self._warn(f"checkpoint {bad} is damaged ({problem}); set aside, restored {step} instead")
        self.last_good = step
        data_states = tuple(steps.from_json(part["data_state"]) for part in stored)
        return Restored(step, state, data_states, stored[0]["config"], stored[0]["versions"], tuple(self._warnings))

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._store.set_aside(self._directory / str(step))

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)
        self._warnings.append(text)


def _storable(state: Any) -> dict[str, jax.Array | np.ndarray]:
    """The leaves by path; those that are this process's own become NumPy arrays, which process 0 writes."""
    leaves: dict[str, jax.Array | np.ndarray] = {}
    for path, leaf in steps.name_leaves(state).items():
        if not isinstance(leaf, jax.Array) or (leaf.is_fully_addressable and jax.process_count() > 1):
            leaf = np.asarray(leaf)
        try:
            check_dtype(leaf.dtype)
        except InputError as error:
            raise InputError(f"leaf {path}: {error}") from error
        leaves[path] = leaf
    if len({path.replace("/", ".") for path in leaves}) < len(leaves):
        raise InputError("two leaves of the state have the same name once the keys are joined by dots")
    return leaves


def _versions() -> dict[str, str]:
    """The versions of everything that takes part in a training step."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _becomes_true(is_visible: Callable[[], bool]) -> bool:
    """Whether this process sees what another wrote; network file systems may take a moment."""
    deadline = time.monotonic() + _VISIBILITY_TIMEOUT_S
    while not is_visible():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
