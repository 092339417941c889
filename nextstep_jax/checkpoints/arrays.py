"""Arrays on disk, in Orbax's format: zarr arrays in one OCDBT database, named by their path in the tree.

Orbax writes the training state; this module reads what Orbax wrote and writes, leaf by leaf, what Orbax reads. Going
through TensorStore here keeps memory at one leaf, whatever the size of the tree.
"""

import collections
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from nextstep_jax import storage
from nextstep_jax.checkpoints import processes
from nextstep_jax.checkpoints.digests import check_dtype, defer_digest, host_digest
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage import Place

CHUNK_BYTES = 1 << 24  # bytes of one zarr chunk, the unit of reading: a process on a mesh reads the chunks its slices touch
_COMMIT_BYTES = 1 << 26  # bytes written to the database at a time
_PREFETCH_BYTES = 1 << 28  # bytes read ahead of the leaf being used
_STORAGE_ERRORS = (ValueError, RuntimeError, OSError)  # how TensorStore reports unreadable data

Index = tuple[slice, ...]
# A leaf's path and array -> what is to be in its place, by path.
Convert = Callable[[str, jax.Array], Mapping[str, jax.Array]]
LeafEntries = Mapping[str, Mapping[str, Any]]  # the manifest's entries: {path: {"shape", "dtype", "digest"}}


class ArrayWriter:
    """Writes one leaf after another; `close` makes the folder a tree that Orbax restores.

    A leaf's bytes are stored as they are: weights hardly compress, and uncompressed chunks are read at the disk's speed.
    """

    def __init__(self, directory: Place):
        self._directory, self._context = directory, _context()
        self._transaction, self._pending = ts.Transaction(), 0
        self._chunks: dict[str, list[int]] = {}

    def add(self, path: str, array: np.ndarray) -> dict[str, Any]:
        """Write a leaf; returns its entry for the manifest.

        Raises:
          InputError: for a dtype that a checkpoint cannot hold.
          OSError: the disk is full or fails.
        """
        try:
            dtype = check_dtype(array.dtype)
        except InputError as error:
            raise InputError(f"leaf {path}: {error}") from error
        chunk = _chunk_shape(array.shape, dtype.itemsize)
        self.add_parts(path, array.shape, dtype, chunk, [(_whole(list(array.shape)), array)])
        return {"shape": list(array.shape), "dtype": dtype.name, "digest": host_digest(array)}

    def add_parts(
        self, path: str, shape: tuple[int, ...], dtype: np.dtype, chunk: list[int], parts: Iterable[tuple[Index, np.ndarray]]
    ) -> None:
        """Write parts of a leaf, (where they are in it, values), each of whole chunks. OSError if that fails."""
        self._chunks[path] = chunk
        metadata = {"shape": list(shape), "chunks": chunk, "compressor": None}
        spec = _spec(self._directory, path) | {"dtype": dtype.name, "metadata": metadata}
        spec["store_data_equal_to_fill_value"] = True  # every chunk exists, so that one that is gone is noticed
        try:
            store = ts.open(spec, create=True, context=self._context, transaction=self._transaction).result()
            for where, array in parts:
                for start in itertools.product(*(range(0, n, c) for n, c in zip(array.shape, chunk, strict=True))):
                    index = tuple(slice(i, min(i + c, n)) for i, c, n in zip(start, chunk, array.shape, strict=True))
                    place = tuple(slice(w.start + i.start, w.start + i.stop) for w, i in zip(where, index, strict=True))
                    store[place].write(array[index]).result()
                    self._pending += array[index].nbytes
                    if self._pending >= _COMMIT_BYTES:
                        self._commit()
                        store = store.with_transaction(self._transaction)
        except (ValueError, RuntimeError) as error:
            raise OSError(_first_line(error)) from error

    def commit(self) -> None:
        """All that was added is kept when this returns. OSError if that fails."""
        try:
            self._commit()
        except (ValueError, RuntimeError) as error:
            raise OSError(_first_line(error)) from error

    def close(self) -> None:
        """Commit the rest and write Orbax's description of the tree. OSError if that fails."""
        self.commit()
        describe_tree(self._directory, self._chunks)

    def _commit(self) -> None:
        self._transaction.commit_async().result()
        self._transaction, self._pending = ts.Transaction(), 0


def describe_tree(directory: Place, chunks: Mapping[str, list[int]]) -> None:
    """Write Orbax's description of a tree of arrays, {path: shape of its chunks}."""
    entries = {}
    for path, chunk in chunks.items():
        keys = path.split("/")
        value = {"value_type": "np.ndarray", "skip_deserialize": False, "write_shape": chunk}
        # key_type 2 is a key of a dictionary.
        entries[str(tuple(keys))] = {"key_metadata": [{"key": k, "key_type": 2} for k in keys], "value_metadata": value}
    tree = {"tree_metadata": entries, "use_ocdbt": True, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    storage.of(directory).write(directory / "_METADATA", json.dumps(tree | {"custom_metadata": None}).encode())


def merge_databases(directory: Place, parts: Iterable[str]) -> None:
    """Make the databases in subfolders one, which refers to their bytes where they are. OSError if that fails."""
    context = _context()

    def database(folder: Place) -> ts.KvStore:
        return ts.KvStore.open({"driver": "ocdbt", "base": storage.of(folder).kvstore(folder)}, context=context).result()

    try:
        whole = database(directory)
        for part in parts:
            database(directory / part).experimental_copy_range_to(whole).result()
    except (ValueError, RuntimeError) as error:
        raise OSError(_first_line(error)) from error


class ArrayReader:
    """Reads leaves of a folder written by `ArrayWriter` or by Orbax."""

    def __init__(self, directory: Place, leaves: LeafEntries):
        self._directory, self._leaves, self._context = directory, leaves, _context()

    def read(self, requests: Iterable[tuple[str, list[Index]]]) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Yield (path, pieces) in the order of the requests (path, indices of the wanted pieces), reading ahead within bounds.

        Raises:
          DamagedDataError: naming the leaf that is missing, unreadable or of another shape or dtype.
        """
        queue: collections.deque[tuple[str, list[ts.Future], int]] = collections.deque()
        ahead = 0
        for path, indices in requests:
            store = self._open(path)
            futures = [store[index].read() for index in indices]
            size = sum(store[index].size for index in indices) * store.dtype.numpy_dtype.itemsize
            queue.append((path, futures, size))
            ahead += size
            while queue and ahead > _PREFETCH_BYTES:
                ahead -= queue[0][-1]
                yield self._finish(*queue.popleft()[:2])
        while queue:
            yield self._finish(*queue.popleft()[:2])

    def check_digest(self, path: str, found: str) -> None:
        """Raise DamagedDataError if `found` is not the leaf's digest."""
        if found != self._leaves[path]["digest"]:
            raise DamagedDataError(f"{self._directory}: leaf {path} does not match its digest")

    def _open(self, path: str) -> ts.TensorStore:
        spec = _spec(self._directory, path) | {"fill_missing_data_reads": False}
        try:
            store = ts.open(spec, open=True, read=True, context=self._context).result()
        except _STORAGE_ERRORS as error:
            raise self._unreadable(path, error) from error
        entry = self._leaves[path]
        if list(store.shape) != entry["shape"] or store.dtype.name != entry["dtype"]:
            found = f"{store.dtype.name}{list(store.shape)}"
            raise DamagedDataError(f"{self._directory}: leaf {path} is {found}, expected {entry['dtype']}{entry['shape']}")
        if math.prod(n or 1 for n in store.chunk_layout.read_chunk.shape or ()) > 2**store.rank * max(
            1, math.prod(store.shape)
        ):
            raise DamagedDataError(f"{self._directory}: leaf {path} has chunks far larger than itself")
        return store

    def _finish(self, path: str, futures: list[ts.Future]) -> tuple[str, list[np.ndarray]]:
        try:
            return path, [future.result() for future in futures]
        except _STORAGE_ERRORS as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: Exception) -> DamagedDataError:
        return DamagedDataError(f"{self._directory}: leaf {path} cannot be read: {_first_line(error)}")


def read_verified(directory: Place, leaves: LeafEntries) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (path, array) for every leaf, one at a time in host memory, each checked against its digest."""
    reader = ArrayReader(directory, leaves)
    for path, (array,) in reader.read((path, [_whole(entry["shape"])]) for path, entry in leaves.items()):
        reader.check_digest(path, host_digest(array))
        yield path, array
        del array  # before the next one is waited for


def read_sharded(
    directory: Place,
    leaves: LeafEntries,
    shardings: Mapping[str, jax.sharding.Sharding],
    convert: Convert = lambda path, array: {path: array},
) -> dict[str, jax.Array]:
    """Every leaf as a `jax.Array` with its sharding, checked against its digest, and then as `convert` gives it.

    A process reads only the slices its devices hold. All processes must call this together: leaves of which a process sees a
    part are checked by a program that runs on all of them. Of leaves that a process sees whole, one at a time is there as it
    was stored.

    Raises:
      DamagedDataError: on every process, naming the leaves that one of them could not read or found changed.
    """
    wanted = {path: _device_indices(shardings[path], entry["shape"]) for path, entry in leaves.items()}
    reader = ArrayReader(directory, leaves)
    unchecked: dict[str, None] = {}

    def place() -> dict[str, jax.Array]:
        loaded: dict[str, jax.Array] = {}
        for path, pieces in reader.read((path, [index for index, _ in slices]) for path, slices in wanted.items()):
            shape = tuple(leaves[path]["shape"])
            if len(pieces) == 1 and pieces[0].shape == shape:
                reader.check_digest(path, host_digest(pieces[0]))
            else:
                unchecked[path] = None
            parts = zip(pieces, wanted[path], strict=True)
            shards = [jax.device_put(piece, device) for piece, (_, devices) in parts for device in devices]
            array = jax.make_array_from_single_device_arrays(shape, shardings[path], shards)
            loaded |= {path: array} if path in unchecked else jax.block_until_ready(convert(path, array))
            del pieces, parts, shards, array  # before the next leaf is waited for
        return loaded

    loaded = processes.agree(place)
    digests = {}
    for path in unchecked:
        array = loaded.pop(path)
        digests[path] = defer_digest(array)
        loaded |= convert(path, array)
    for path, digest in digests.items():
        reader.check_digest(path, digest())
    return loaded


def unflatten(by_path: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a/b": x} as {"a": {"b": x}}, after removing the prefix that all paths share."""
    tree: dict[str, Any] = {}
    for path, value in by_path.items():
        *parents, last = path.removeprefix(prefix).split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _device_indices(sharding: jax.sharding.Sharding, shape: list[int]) -> list[tuple[Index, list[jax.Device]]]:
    """The distinct slices this process needs, each with its devices."""
    by_bounds: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        bounds = tuple(part.indices(n)[:2] for part, n in zip(index or (), shape, strict=True))
        by_bounds.setdefault(bounds, []).append(device)
    return [(tuple(slice(*pair) for pair in bounds), devices) for bounds, devices in by_bounds.items()]


def _whole(shape: list[int]) -> Index:
    return tuple(slice(0, n) for n in shape)


def _chunk_shape(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Halve the longest axis until a chunk is small enough."""
    chunk = [max(1, n) for n in shape]
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        longest = chunk.index(max(chunk))
        chunk[longest] = -(-chunk[longest] // 2)
    return chunk


def dividing_chunk(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Chunks of which a part of this shape is made up exactly, so that two processes never write the same one."""
    chunk = [max(1, n) for n in shape]
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        longest = chunk.index(max(chunk))
        chunk[longest] //= next(factor for factor in range(2, chunk[longest] + 1) if chunk[longest] % factor == 0)
    return chunk


def _first_line(error: Exception) -> str:
    """What TensorStore says, without the trace it appends."""
    return str(error).splitlines()[0].split(" [")[0]


def _context() -> ts.Context:
    return ts.Context({"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}} | storage.tensorstore_context())


def _spec(directory: Place, path: str) -> dict[str, Any]:
    """TensorStore spec of a leaf. Orbax joins the keys of a path with dots."""
    base = storage.of(directory).kvstore(directory)
    kvstore = {"driver": "ocdbt", "base": base, "path": path.replace("/", ".") + "/", "cache_pool": "cache_pool#ocdbt"}
    return {"driver": "zarr", "kvstore": kvstore, "recheck_cached_metadata": False, "recheck_cached_data": False}
