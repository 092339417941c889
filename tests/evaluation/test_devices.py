"""Batches dealt to several devices: the same results as on one, for every number of rows."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from nextstep_jax.evaluation.devices import on_all_devices

assert jax.local_device_count() == 4
w = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

def run(params, x, scale):
    return {"y": x @ params["w"], "z": (x * scale[:, None]).sum(1)}

call = on_all_devices(run, {"w": w})
for rows in (1, 3, 4, 6, 8):
    x = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
    scale = np.arange(rows, dtype=np.float32)
    found = jax.device_get(call(x, scale))
    assert found["y"].shape == (rows, 3) and found["z"].shape == (rows,)
    np.testing.assert_allclose(found["y"], x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["z"], (x * scale[:, None]).sum(1), rtol=1e-5, atol=1e-6)
whole = call(np.ones((8, 5), np.float32), np.ones(8, np.float32))["y"]
assert len(whole.sharding.device_set) == 4
print("equal")
"""


def test_rows_are_dealt_to_all_devices():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.stdout == "equal\n", done.stderr
