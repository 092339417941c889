"""What the processes of one run tell each other about a checkpoint. With one process these are plain functions."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nextstep_jax.checkpoints import manifest
from nextstep_jax.errors import DamagedDataError
from nextstep_jax.storage import Place

T = TypeVar("T")


def gather(text: str) -> list[str]:
    """One text from every process, in process order, known to all. Every process must call it at the same point."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(data.size))).reshape(-1)
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def broadcast(text: str) -> str:
    """What process 0 says."""
    return gather(text if jax.process_index() == 0 else "")[0]


def agree(action: Callable[[], T]) -> T:
    """The action's result, unless it raises DamagedDataError on any process: then that error is raised on all of them."""
    results, problem = [], ""
    try:
        results.append(action())
    except DamagedDataError as error:
        problem = str(error)
    for found in gather(problem):
        if found:
            raise DamagedDataError(found)
    return results[0]


def find_damage_together(root: Place, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`manifest.find_damage` with the files dealt out to the processes; all of them get the whole list."""
    by_size = sorted(files, key=lambda name: (-files[name]["size"], name))
    mine = by_size[jax.process_index() :: jax.process_count()]
    problems = manifest.find_damage(root, {name: files[name] for name in mine})
    return [line for text in gather("\n".join(problems)) for line in text.splitlines()]
