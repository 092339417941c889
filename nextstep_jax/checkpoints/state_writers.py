"""Writing a run's state while the run goes on: through Orbax on a file system, through TensorStore alone in a bucket.

Both leave the same: zarr arrays in one OCDBT database, which `arrays` reads. Orbax renames folders, which a bucket cannot, and
knows one kind of bucket of the two.
"""

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from nextstep_jax.checkpoints import arrays
from nextstep_jax.storage import Place

Leaf = jax.Array | np.ndarray


class StateWriter(Protocol):
    """Writes one state after another."""

    def start(self, folder: Any, leaves: Mapping[str, Leaf]) -> None:
        """Copy this process's parts to host memory and begin to write them. The leaves may change when this returns."""

    def wait(self) -> None:
        """Return when this process's parts are written. OSError, ValueError or RuntimeError if that failed."""

    def merge(self, folder: Any) -> None:
        """On process 0, once all have written: make the parts one."""

    def renew(self) -> None:
        """After a failure: forget all about it."""

    def close(self) -> None: ...


def new_state_writer(directory: Place, timeout_s: int) -> StateWriter:
    """The writer for a run's folder."""
    return OrbaxWriter(timeout_s) if isinstance(directory, pathlib.Path) else BucketWriter()


class OrbaxWriter:
    """Args: timeout_s: seconds after which a save is given up."""

    def __init__(self, timeout_s: int):
        self._timeout = timeout_s
        self._orbax = self._new()

    def start(self, folder: pathlib.Path, leaves: Mapping[str, Leaf]) -> None:
        tree = arrays.unflatten(leaves)
        save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=arrays.CHUNK_BYTES), tree)
        self._orbax.save(folder.resolve(), args=ocp.args.PyTreeSave(tree, save_args))

    def wait(self) -> None:
        self._orbax.wait_until_finished()

    def merge(self, folder: pathlib.Path) -> None:
        """Orbax has done so."""

    def renew(self) -> None:
        """What is left of a failure inside Orbax would otherwise come up in the next save."""
        with contextlib.suppress(Exception):
            self._orbax.close()
        self._orbax = self._new()

    def close(self) -> None:
        self._orbax.close()

    def _new(self) -> ocp.AsyncCheckpointer:
        options = ocp.options.AsyncOptions(timeout_secs=self._timeout, create_directories_asynchronously=False)
        return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False), async_options=options)


class BucketWriter:
    """Every process writes a database of its own, of the slices whose first copy it holds."""

    def __init__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "state_writer")
        self._writing: concurrent.futures.Future | None = None
        self._chunks: dict[str, list[int]] = {}

    def start(self, folder: Any, leaves: Mapping[str, Leaf]) -> None:
        parts = {path: _own_parts(leaf) for path, leaf in leaves.items()}
        kinds = {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves.items()}
        self._chunks = {path: _chunk(leaf) for path, leaf in leaves.items()}
        self._writing = self._pool.submit(self._write, folder / _database(jax.process_index()), parts, kinds, self._chunks)

    def _write(self, folder: Any, parts: Mapping[str, list], kinds: Mapping[str, tuple], chunks: Mapping[str, list]) -> None:
        writer = arrays.ArrayWriter(folder)
        for path, mine in parts.items():
            shape, dtype = kinds[path]
            writer.add_parts(path, shape, dtype, chunks[path], mine)
        writer.commit()

    def wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def merge(self, folder: Any) -> None:
        arrays.merge_databases(folder, [_database(process) for process in range(jax.process_count())])
        arrays.describe_tree(folder, self._chunks)

    def renew(self) -> None:
        if self._writing is not None:
            concurrent.futures.wait([self._writing])
        self._writing = None

    def close(self) -> None:
        self._pool.shutdown()


def _database(process: int) -> str:
    return f"ocdbt.process_{process}"


def _own_parts(leaf: Leaf) -> list[tuple[arrays.Index, np.ndarray]]:
    """(index, values) of what this process writes, copied to host memory. NumPy arrays are process 0's."""
    if not isinstance(leaf, jax.Array):
        whole = tuple(slice(0, n) for n in leaf.shape)
        return [(whole, np.array(leaf))] if jax.process_index() == 0 else []
    mine = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    for shard in mine:
        shard.data.copy_to_host_async()
    bounds = ([part.indices(n)[:2] for part, n in zip(shard.index, leaf.shape, strict=True)] for shard in mine)
    return [(tuple(slice(*pair) for pair in bound), np.array(shard.data)) for bound, shard in zip(bounds, mine, strict=True)]


def _chunk(leaf: Leaf) -> list[int]:
    shape = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
    return arrays.dividing_chunk(tuple(shape), leaf.dtype.itemsize)
