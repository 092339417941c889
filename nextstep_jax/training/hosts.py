"""Which part of every batch this process makes."""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils

from nextstep_jax.errors import InputError
from nextstep_jax.sharding.mesh import batch_shardings
from nextstep_jax.training.settings import RunConfig


def on_any_process(value: bool) -> bool:
    """Whether `value` is true on any process. All of them call this together."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(value)).any())


def local_data_shards(config: RunConfig) -> tuple[int, ...]:
    """The data shards whose rows of the global batch lie on this process's devices of the current mesh; without one, all.

    Raises:
      InputError: the rows do not divide into data shards and accumulated parts, or the data shards not into the processes.
    """
    rows, data_shards, mesh = config.data.batch_size, config.data.data_shards, jax.sharding.get_mesh()
    if mesh.empty:
        return tuple(range(data_shards))
    (sharding,) = jax.tree.leaves(batch_shardings([jax.ShapeDtypeStruct((rows,), "int32")], mesh, ("batch",)))
    shards = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(sharding.spec)))
    if rows % (shards * config.grad_accum_steps):
        parts = f"{shards} devices with rows x grad_accum_steps {config.grad_accum_steps}"
        raise InputError(f"config.data.batch_size ({rows}) is not a multiple of {parts}")
    here: set[int] = set()
    for (part,) in sharding.addressable_devices_indices_map((rows,)).values():
        here.update(range(*part.indices(rows)))
    size = rows // data_shards
    mine = sorted({row // size for row in here})
    if len(here) != len(mine) * size:
        processes = f"the processes ({jax.process_count()}, this one makes {len(here)} of {rows} rows)"
        raise InputError(f"config.data.data_shards ({data_shards}) do not divide evenly into {processes}; use a multiple")
    return tuple(mine)
