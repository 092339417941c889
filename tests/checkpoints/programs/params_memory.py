"""Write and read a checkpoint far larger than the memory it may use; prints the peaks in bytes as JSON."""

import json
import pathlib
import sys
import threading
import time

import numpy as np

from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import arrays

LEAF, LEAVES = 10_000_000, 40
arrays.CHUNK_BYTES, arrays._COMMIT_BYTES, arrays._PREFETCH_BYTES = (
    LEAF // 4,
    3 * LEAF,
    LEAF,
)  # in proportion to leaves smaller than real ones
folder = pathlib.Path(sys.argv[1]) / "checkpoint"
peak = 0


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.002)


def measure(action):
    global peak
    peak = before = resident()
    action()
    return peak - before


def leaves():
    for i in range(LEAVES):
        yield f"model/layers_{i}/kernel", lambda i=i: np.full((LEAF // 10_000, 2_500), i, np.float32)


def read():
    for _, array in checkpoints.iterate_params(folder):
        del array


threading.Thread(target=watch, daemon=True).start()
saving = measure(lambda: checkpoints.save_params(folder, leaves(), {}))
print(json.dumps({"saving": saving, "reading": measure(read), "written": LEAF * LEAVES, "bound": 0.4 * LEAF * LEAVES}))
