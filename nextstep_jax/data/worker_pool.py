"""Jobs over worker processes that share one state, such as an opened source."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from nextstep_jax.errors import NextStepError

Result = TypeVar("Result")
Function = Callable[..., Result]


def map_jobs(
    function: Function[Result], state: Any, jobs: Sequence[tuple], workers: int, name: str
) -> Iterator[tuple[int, Result]]:
    """(number, function(state, *jobs[number])) of every job, in the order in which they are finished.

    One worker works in this process. Otherwise function, state and jobs are sent to processes of their own, the state once
    each; an interrupt ends them, and so does the end of this process.

    Raises:
      NextStepError: naming `name`, a worker process died.
    """
    if workers == 1:
        for number, job in enumerate(jobs):
            yield number, function(state, *job)
        return
    # Spawned, because forking a process in which an accelerator library runs threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, max(1, len(jobs))), context, initializer=_start_worker, initargs=(function, state, os.getpid())
    )
    try:
        futures = {pool.submit(_run, job): number for number, job in enumerate(jobs)}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise NextStepError(
            f"{name}: a worker process died (out of memory?); the same command continues where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[Function, Any] | None = None


def _start_worker(function: Function, state: Any, parent: int) -> None:
    global _worker
    _worker = function, state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle

    def watch() -> None:  # a killed parent sends no signal, and its workers would wait forever
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: tuple) -> Any:
    assert _worker is not None, "set when the worker starts"
    function, state = _worker
    return function(state, *job)
