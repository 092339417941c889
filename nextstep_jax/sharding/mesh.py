"""Device meshes over the axes `data`, `fsdp`, `tensor`, `sequence` (rules.py says what is split over them)."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nextstep_jax.errors import InputError
from nextstep_jax.sharding.rules import MESH_AXES, partition_spec


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all `devices` (default: every device of every process); enter it with `jax.set_mesh`.

    The slices of a multi-slice TPU job lie along `data`, the only axis whose traffic is small enough for the network between
    them.

    Args:
      sizes: devices along each of MESH_AXES; absent axes are 1, and one axis may be -1: whatever is left.

    Raises:
      InputError: an unknown axis, more than one -1, sizes whose product is not the number of devices, or a `data` axis that
        does not divide into the slices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise InputError(f"mesh axes must be among {', '.join(MESH_AXES)}, found {', '.join(sorted(unknown))}")
    shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise InputError(
            f"mesh sizes must be positive, at most one of them -1, found {dict(zip(MESH_AXES, shape, strict=True))}"
        )
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise InputError(f"mesh {dict(zip(MESH_AXES, shape, strict=True))} does not fit {len(devices)} devices")
    # Auto: Explicit axes make Linen's logical constraints raise.
    return Mesh(_arrange(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def target_platform() -> str:
    """What a program that is traced now is for, "tpu", "gpu" or "cpu": the platform of the mesh entered with `jax.set_mesh`,
    which need not be this machine's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, neighbours along an axis next to each other in the machine."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise InputError(f"mesh axis data must be a multiple of the {slices} slices, found {shape[0]}")
    within, between = (shape[0] // slices, *shape[1:]), (slices, *[1] * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def batch_shardings(batch, mesh: Mesh, names: tuple[str, ...] = ("batch", "sequence")):
    """Where each array of a batch lies; `names` are the logical axes of its leading dimensions."""

    def place(leaf) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(names[: len(leaf.shape)], mesh.axis_names))

    return jax.tree.map(place, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def global_batch(batch, mesh: Mesh, names: tuple[str, ...] = ("batch", "sequence")):
    """This process's rows (NumPy, whole, the same number on every process; processes whose devices share rows have the same) as
    global device arrays; the copy is asynchronous.
    """
    shardings = batch_shardings(batch, mesh, names)
    rows = NamedSharding(mesh, partition_spec(names[:1], mesh.axis_names))
    parts = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(rows.spec)))
    here = len({index[0].start for index in rows.addressable_devices_indices_map((parts,)).values() if index})

    def place(sharding: NamedSharding, leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, leaf, (leaf.shape[0] * parts // here, *leaf.shape[1:]))

    return jax.tree.map(place, shardings, batch)


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array, on every process; all of them call this together where each holds a part of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
