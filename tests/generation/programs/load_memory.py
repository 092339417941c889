"""load_memory.py FOLDER STORED DTYPE: write a model in the dtype STORED and load it as DTYPE; prints the bytes that this takes
at its peak, the bytes that stay and those of the largest leaf, as JSON.
"""

import ctypes
import gc
import json
import pathlib
import sys
import threading
import time

import jax
import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np

from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import arrays
from nextstep_jax.config import FlowHeadConfig, NextStepConfig, TransformerConfig
from nextstep_jax.conversion import names
from nextstep_jax.generation.load import load_model

ids = dict(bos_id=499, eos_id=499, pad_id=500, begin_of_image_id=502, end_of_image_id=503, image_placeholder_id=504)
transformer = TransformerConfig(vocab_size=12_000, width=1024, layers=8, heads=8, kv_heads=4, head_dim=128, mlp_width=3072)
config = NextStepConfig(transformer, FlowHeadConfig(512, 2), **ids)
folder, stored = pathlib.Path(sys.argv[1]) / "checkpoint", np.dtype(sys.argv[2])
entries = names.model_entries(config)
LARGEST = max(int(np.prod(entry.shape)) for entry in entries) * stored.itemsize
arrays._PREFETCH_BYTES = LARGEST // 4  # in proportion to leaves smaller than real ones
M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 18)  # give freed arrays back at once, as is done with real ones for their size
peak = 0


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.001)


rng = np.random.default_rng(0)
leaves = ((f"model/{entry.path}", rng.standard_normal(entry.shape, np.float32).astype(stored)) for entry in entries)
checkpoints.save_params(folder, leaves, {"model": config.to_released(), "image_tokenizer": None})
load_model(folder, sys.argv[3])  # compiles
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
threading.Thread(target=watch, daemon=True).start()
peak = before = resident()
params = load_model(folder, sys.argv[3])["params"]
kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"peak": peak - before, "kept": kept, "largest": LARGEST}))
