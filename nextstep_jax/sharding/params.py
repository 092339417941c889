"""Where every parameter lies: path -> logical axes -> PartitionSpec, for the models, their optimizer state and their EMA.

Paths are those of the parameter tree, joined with "/" from the root ("model/...", "image_tokenizer/..."). Optimizer moments and
the EMA repeat the parameters' tree, so a leaf's place in it says which parameter it belongs to.

Letters: V vocabulary, D model width, N/K query and key/value heads, H head dim, F MLP width, C channels of an image token,
W flow-head width, M its hidden width.
"""

import math
import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextstep_jax.errors import InputError
from nextstep_jax.sharding.rules import shape_spec

ROOTS = ("model", "image_tokenizer", "discriminator")

# A parameter above this share of the total that no sharding axis splits is taken for a mistake.
REPLICATED_SHARE = 0.02

# Parameter path (layer numbers left out) -> what its dimensions are. The first match counts.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"model/embedding/embedding", ("vocab", "embed")),
    (r"model/lm_head/kernel", ("embed", "vocab")),
    (r"model/decoder/layers/attention/(q|qkv)/kernel", ("embed", "heads", "head_dim")),
    (r"model/decoder/layers/attention/(q|qkv)/bias", ("heads", "head_dim")),
    (r"model/decoder/layers/attention/[kv]/kernel", ("embed", "kv_heads", "head_dim")),
    (r"model/decoder/layers/attention/[kv]/bias", ("kv_heads", "head_dim")),
    (r"model/decoder/layers/attention/o/kernel", ("heads", "head_dim", "embed")),
    (r"model/decoder/layers/attention/o/bias", (None,)),
    (r"model/decoder/layers/mlp/(gate|up)/kernel", ("embed", "mlp")),
    (r"model/decoder/layers/mlp/gate_up/kernel", ("embed", None, "mlp")),
    (r"model/decoder/layers/mlp/down/kernel", ("mlp_rows", "embed")),
    (r"model/decoder/.*norm/scale", (None,)),
    (r"model/image_in_projector/kernel", ("channels", "embed")),
    (r"model/image_out_projector/kernel", ("embed", None)),
    (r"model/flow_head/time_embed/in/kernel", (None, "flow_width")),
    (r"model/map_head/jump_in/kernel", (None, "flow_width")),
    (r"model/(flow_head/time_embed/out|map_head/jump_out)/kernel", ("flow_width", "flow_mlp")),
    (r"model/(flow_head|map_head)/(condition|unconditional)/kernel", ("embed", "flow_mlp")),
    (r"model/(flow_head|map_head)/input/kernel", ("channels", "flow_width")),
    (r"model/(flow_head|map_head)/blocks/mlp_out/kernel", ("flow_mlp", "flow_width")),
    (r"model/(flow_head|map_head)/(blocks/mlp_in|blocks/modulation|final/modulation|gates)/kernel", ("flow_width", "flow_mlp")),
    (r"model/(flow_head|map_head)/final/output/kernel", ("flow_width", "channels")),
    (r"model/.*(bias|scale)", (None,)),
    (r"(image_tokenizer|discriminator)/.*(conv\w*|downsample|upsample)/kernel", (None, None, None, "features")),
    (r"(image_tokenizer|discriminator)/.*kernel", (None, "features")),
    (r"(image_tokenizer|discriminator)/.*(bias|scale)", (None,)),
)


def path_string(path: Sequence) -> str:
    """A key path of the JAX tree utilities as "a/b/c", dictionary keys only."""
    return "/".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def parameter_path(path: Sequence) -> str | None:
    """The path of the parameter that a state leaf belongs to; None for counters and keys."""
    keys = path_string(path).split("/")
    starts = [i for i, key in enumerate(keys) if key in ROOTS]
    return "/".join(keys[starts[0] :]) if starts else None


def logical_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """What the dimensions of a parameter are; the stacked form's leading layer axis comes from the path.

    Raises:
      InputError: no rule covers the parameter, or the rule has another number of dimensions.
    """
    bare = re.sub(r"/(layers|blocks)_\d+/", r"/\1/", path)
    stacked = bare == path and re.match(r"model/(decoder/layers|(flow_head|map_head)/blocks)/", path)
    whole = bare.removesuffix("_scale") if bare.endswith("/kernel_scale") else bare
    for pattern, names in PARAMETER_AXES:
        if re.fullmatch(pattern, whole):
            names = names if whole == bare else names[-rank:]  # the outputs of a kernel in int8
            names = ("layers", *names) if stacked else names
            if len(names) != rank:
                raise InputError(f"{path}: the sharding table says {len(names)} dimensions {names}, found {rank}")
            return names
    raise InputError(f"{path}: no rule of the sharding table covers this parameter")


def parameter_spec(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How a parameter is split on `mesh`, see `rules.shape_spec`. A dimension that no axis divides stays whole."""
    return shape_spec(logical_axes(path, len(shape)), tuple(shape), mesh)


def shards(spec: PartitionSpec, mesh: Mesh) -> int:
    """Into how many parts a PartitionSpec cuts an array."""
    axes = [axis for entry in spec if entry is not None for axis in ((entry,) if isinstance(entry, str) else entry)]
    return math.prod(mesh.shape[axis] for axis in axes)


def state_shardings(tree, mesh: Mesh):
    """NamedShardings of a tree of arrays or ShapeDtypeStructs: parameters, or a whole training state around them.

    Raises:
      InputError: naming the parameter, when a rule is missing, or when a parameter of more than REPLICATED_SHARE
        of the total is on a mesh that shards parameters and yet not split at all.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    sizes = {path: math.prod(leaf.shape) for key, leaf in leaves if (path := parameter_path(key))}
    total, sharding_devices = sum(sizes.values()), math.prod(mesh.shape.get(axis, 1) for axis in ("fsdp", "tensor"))
    placed = []
    for key, leaf in leaves:
        path = parameter_path(key)
        spec = parameter_spec(path, leaf.shape, mesh) if path and leaf.shape else PartitionSpec()
        if path and sharding_devices > 1 and shards(spec, mesh) == 1 and sizes[path] > REPLICATED_SHARE * total:
            raise InputError(
                f"{path} {tuple(leaf.shape)} holds {sizes[path] / total:.1%} of the parameters and would be copied to each "
                f"of {sharding_devices} devices: no mesh axis divides a dimension of it"
            )
        placed.append(NamedSharding(mesh, spec))
    return jax.tree_util.tree_unflatten(structure, placed)


def with_shardings(tree, shardings):
    """A tree of shapes (anything with `shape` and `dtype`) as ShapeDtypeStructs with their shardings."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), tree, shardings)


def sharding_table(params, mesh: Mesh) -> str:
    """One line per parameter: shape, how it is split, megabytes on each device; and their sum."""
    rows, total = [("parameter", "shape", "split over", "MB a device")], 0.0
    for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = parameter_path(key) or jax.tree_util.keystr(key)
        spec = parameter_spec(path, leaf.shape, mesh)
        megabytes = math.prod(leaf.shape) * leaf.dtype.itemsize / shards(spec, mesh) / 1e6
        total += megabytes
        entries = ["+".join(e) if isinstance(e, tuple) else (e or "-") for e in spec]
        rows.append((path, "x".join(map(str, leaf.shape)), ", ".join(entries), f"{megabytes:.3f}"))
    rows.append(("total", "", "", f"{total:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    )
