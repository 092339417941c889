"""Save a state on 2x4 devices; restore it on 8x1, 4x2 and one device. Prints "ok"."""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from nextstep_jax.checkpoints import arrays
from nextstep_jax.checkpoints.training import TrainCheckpointer

workdir = sys.argv[1]
arrays.CHUNK_BYTES = 128
rng = np.random.default_rng(0)
tree = {
    "w": rng.standard_normal((16, 24)).astype("bfloat16"),
    "v": rng.standard_normal((8,)).astype("float32"),
    "n": np.int32(3),
}
specs = {"w": PartitionSpec("fsdp", "tensor"), "v": PartitionSpec("tensor"), "n": PartitionSpec()}


def shardings(*shape):
    if shape == (1, 1):
        return dict.fromkeys(specs, SingleDeviceSharding(jax.devices()[3]))
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


with TrainCheckpointer(workdir, config={}) as checkpointer:
    checkpointer.save(1, jax.device_put(tree, shardings(2, 4)))
    for shape in ((2, 4), (8, 1), (4, 2), (1, 8), (1, 1)):
        wanted = shardings(*shape)
        target = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted[name]) for name, leaf in tree.items()}
        found = checkpointer.restore(target).state
        for name, leaf in found.items():
            assert leaf.sharding == wanted[name] and np.asarray(leaf).tobytes() == tree[name].tobytes(), (shape, name)
print("ok")
