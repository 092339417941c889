"""Prints "same" if eight devices digest every sharding of an array as the host digests the array."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nextstep_jax.checkpoints import digests

mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
array = np.random.default_rng(0).standard_normal((16, 8, 24)).astype("bfloat16")
found = {digests.leaf_digest(array)}
for spec in [(), ("x",), (None, "y"), (("x", "y"),), ("y", None, "x"), (None, "x", "y")]:
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    found.add(digests._seal(np.asarray(digests.device_lanes(sharded)), array.shape, array.dtype))
    found.add(digests.leaf_digest(sharded))
print("same" if len(found) == 1 else found)
