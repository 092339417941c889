"""Restore a parameter checkpoint onto 2x4 devices; prints "ok"."""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import arrays
from nextstep_jax.errors import DamagedDataError

folder = pathlib.Path(sys.argv[1]) / "checkpoint"
mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
tree = {"a": rng.standard_normal((16, 8)).astype("bfloat16"), "b": {"c": np.arange(24, dtype=np.float32), "d": np.float32(2)}}
specs = {"a": PartitionSpec("fsdp", "tensor"), "b": {"c": PartitionSpec("tensor"), "d": PartitionSpec()}}
shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
arrays.CHUNK_BYTES = 64
checkpoints.save_params(folder, {"model": tree}, {})

read = []
original = arrays.ArrayReader.read


def recording(self, requests):
    for path, pieces in original(self, requests):
        read.append((path, [piece.shape for piece in pieces]))
        yield path, pieces


arrays.ArrayReader.read = recording
found = checkpoints.load_params(folder, subtree="model", shardings=shardings)
assert dict(read)["model/a"] == [(8, 2)] * 8 and dict(read)["model/b/c"] == [(6,)] * 4, read
for path, expected in (("a", tree["a"]), ("c", tree["b"]["c"]), ("d", tree["b"]["d"])):
    leaf = found["a"] if path == "a" else found["b"][path]
    assert leaf.sharding.mesh == mesh and np.asarray(leaf).tobytes() == expected.tobytes(), path
everywhere = checkpoints.load_params(folder, shardings=NamedSharding(mesh, PartitionSpec()), dtype="float16")
assert everywhere["model"]["a"].dtype == "float16" and len(everywhere["model"]["a"].sharding.device_set) == 8

# Values that change between the disk and the devices are noticed by the digest, even when every file is intact.
device_put = jax.device_put
jax.device_put = lambda piece, device: device_put(piece + 1 if device.id == 5 else piece, device)
try:
    checkpoints.load_params(folder, subtree="model", shardings=shardings)
except DamagedDataError as error:
    assert "leaf model/a does not match its digest" in str(error), error
    print("ok")
