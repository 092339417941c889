"""Running a function of a batch on all devices of this process, each with its share of the batch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nextstep_jax.sharding.mesh import batch_shardings, make_mesh, replicated


def on_all_devices(function: Callable[..., Any], params: Any) -> Callable[..., Any]:
    """`function(params, *arrays)` compiled, as a function of the arrays [B, ...] whose results are [B, ...] as well.

    The rows are dealt to the devices; batches that do not divide are filled up with their last row, which is cut off again.
    """
    mesh = make_mesh({"data": -1}, jax.local_devices())
    params = jax.device_put(params, replicated(mesh))
    compiled = jax.jit(function)

    def call(*arrays: np.ndarray) -> Any:
        rows = len(arrays[0])
        missing = -rows % mesh.size
        filled = tuple(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in arrays)
        placed = jax.device_put(filled, batch_shardings(filled, mesh, ("batch",)))
        return jax.tree.map(lambda result: result[:rows] if missing else result, compiled(params, *placed))

    return call
