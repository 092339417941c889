"""One table from logical axis names to mesh axes, and the constraint that activations pass through.

Mesh axes: `data` (between slices, over DCN), `fsdp`, `tensor`, `sequence`. A logical name maps to one mesh axis, several,
or none; axes the current mesh lacks are ignored, so the same program runs on one device and on a pod.
"""

import math
from collections.abc import Collection

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# What an activation or parameter dimension is -> the mesh axes it is split over.
LOGICAL_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("sequence",),
    "positions": ("data", "fsdp", "sequence"),  # flattened [B * S] positions gathered for a head
    "width": (),  # activations' model width
    "embed": ("fsdp",),  # parameters' model width
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "mlp_rows": ("tensor", "fsdp"),  # of the MLP's last kernel, which is gathered on its first dimension
    "vocab": ("tensor",),
    "layers": (),
    "channels": (),
    "flow_width": ("fsdp",),
    "flow_mlp": ("tensor",),
    "features": ("fsdp",),  # output channels of the image tokenizer's layers
}


def partition_spec(names: tuple[str | None, ...], mesh_axes: tuple[str, ...] = MESH_AXES) -> PartitionSpec:
    """The PartitionSpec of dimensions called `names`, on a mesh that has `mesh_axes`."""
    entries = []
    for name in names:
        axes = tuple(a for a in LOGICAL_RULES[name] if a in mesh_axes) if name is not None else ()
        entries.append(spec_entry(axes))
    return PartitionSpec(*entries)


def dividing_axes(name: str | None, size: int, mesh, taken: Collection[str] = ()) -> tuple[str, ...]:
    """The axes of `mesh` that a dimension called `name` is split over: those of the table that are not `taken`, without the
    last ones while they do not divide its `size`. Such a dimension stays whole along them.
    """
    axes = [axis for axis in (LOGICAL_RULES[name] if name else ()) if axis in mesh.axis_names and axis not in taken]
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
        axes.pop()
    return tuple(axes)


def spec_entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Mesh axes as an entry of a PartitionSpec."""
    return axes[0] if len(axes) == 1 else (axes or None)


def shape_spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh) -> PartitionSpec:
    """How dimensions called `names`, of these sizes, are split on `mesh`. An axis that several of them could be split over goes
    to the first that it divides.
    """
    entries: list[tuple[str, ...]] = []
    for name, size in zip(names, shape, strict=True):
        entries.append(dividing_axes(name, size, mesh, [axis for axes in entries for axis in axes]))
    return PartitionSpec(*map(spec_entry, entries))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrain x's sharding on the mesh entered with `jax.set_mesh`; without one, x unchanged."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, shape_spec(names, x.shape, mesh))


def whole(x: jax.Array, axis: int) -> jax.Array:
    """x with dimension `axis` split over no device, its others as the compiler has them."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    spec = (None if i == axis else PartitionSpec.UNCONSTRAINED for i in range(x.ndim))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def row_major(x: jax.Array, *names: str | None) -> jax.Array:
    """x, of dimensions called `names`, with its last dimension contiguous in memory, also where the compiler would choose
    another layout. The compiler partitions no such constraint, so each device has its own, for its part.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def lay_out(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    if mesh.empty:
        return lay_out(x)
    spec = shape_spec(names, x.shape, mesh)
    return jax.shard_map(lay_out, mesh=mesh, in_specs=spec, out_specs=spec)(x)
