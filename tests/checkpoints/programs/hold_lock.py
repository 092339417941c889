"""Take the lock of a folder, say so, and keep it until killed."""

import pathlib
import sys
import time

from nextstep_jax.checkpoints.lock import RunLock

held = RunLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
