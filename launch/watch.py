"""A process with a watcher: where native code ends it, somebody is left to say so.

When a run's first process dies, JAX's client in the others ends them on the spot, and a library for collectives may do the
same: no Python runs any more, no line says what to do, and the exit code is a signal's.
"""

import ctypes
import os
import signal
import subprocess
import sys

_WATCHER = "NEXTSTEP_WATCHER"  # in the environment of a watched process: its watcher's number
_PR_SET_PDEATHSIG = 1


def watch() -> int | None:
    """Start this program once more and wait for its end. To be called before anything that cannot be there twice.

    SIGTERM is passed on. Where the kernel can do it (Linux), the watched process does not outlive its watcher.

    Returns:
      the exit code, 1 where a signal ended the watched process (after a line that says so); None in that process itself.
    """
    if watcher := os.environ.pop(_WATCHER, ""):
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(watcher):  # it was gone before the kernel was told
            os._exit(1)
        return None
    child = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | {_WATCHER: str(os.getpid())})
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    code = child.wait()
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(
        f"error: this process was ended by {name}, for the reason above if there is one (when another process of the run is "
        "gone or does not come, JAX ends the rest); start all processes again",
        file=sys.stderr,
        flush=True,
    )
    return 1
