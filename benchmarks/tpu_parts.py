"""What the TPU compiler expects of single parts of the 14B model, each written in two ways, in seconds instead of minutes.

    python -m benchmarks.tpu_parts [product] [rotation] [parts] [down] [head] [bias] [--topology v6e:16x16]

    product    one product of the MLP, 16,384 positions; and at the chip's peak
    rotation   queries of 16,384 positions and their rotary positions: by halves of a head; by a product with a matrix
    parts      the sum of the attention kernel's eight parts of the queries' gradient: as a reduction; as additions
    down       the MLP's last product with its gradients in a loop over layers, the kernel split over all chips: along its last
               dimension; along its first
    head       the text head's cross-entropy of 12,288 positions with its gradients: in 32 slices of 4,752 ids, a width that is
               no multiple of 128; in 22 of 6,912
    bias       gradients of the kernel and the bias of a flow block's modulations, 49,152 points: the bias's as a sum over
               points; as a row of the kernel's product

All of it with the launchers' compiler flags. Needs the extra `tpu`, no TPU; nothing of this has run on one.
"""

import argparse
import functools
from collections.abc import Callable

# ruff: noqa: I001 (the first import says what libtpu is not to look for)
from nextstep_jax.launch import aot_compile  # noqa: F401

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextstep_jax.config import preset
from nextstep_jax.launch.xla_flags import FLAGS
from nextstep_jax.models import layers
from nextstep_jax.objectives.cross_entropy import SLICE, cross_entropy
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.sharding.topologies import CHIPS, generation, topology_devices
from nextstep_jax.training.hlo_cost import INSTRUCTION, read_cost

POSITIONS, PARTS, TARGETS = 16_384, 8, 12_288
MODEL = preset("14b").transformer


def report(name: str, mesh: Mesh, topology: str, function: Callable, *arguments: jax.ShapeDtypeStruct) -> None:
    """Compile, and print the cycles of all instructions as time, and the three that take longest."""
    kind = generation(topology)
    compiled = jax.jit(function).lower(*arguments).compile(dict(FLAGS[kind]))
    cost = read_cost(compiled.as_text() or "", CHIPS[kind], mesh.size)
    print(f"{name:<28}{1e3 * cost.of(INSTRUCTION):8.3f} ms", flush=True)
    for item in [item for item in cost.costliest(4) if item.kind == INSTRUCTION][:3]:
        print(f"    {1e3 * item.seconds:8.3f} ms {item.times:3.0f} x {item.name} {item.shape[:60]}")


def of_chip(mesh: Mesh, *shape: int, dtype: str = "bfloat16", split: PartitionSpec | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, split or PartitionSpec()))


def product(topology: str, mesh: Mesh) -> None:
    arguments = of_chip(mesh, POSITIONS, MODEL.width), of_chip(mesh, MODEL.width, MODEL.mlp_width)
    report("product", mesh, topology, jnp.matmul, *arguments)
    peak = 2 * POSITIONS * MODEL.width * MODEL.mlp_width / CHIPS[generation(topology)].flops
    print(f"{'at the peak':<28}{1e3 * peak:8.3f} ms")


def rotation(topology: str, mesh: Mesh) -> None:
    shape = (MODEL.width, MODEL.heads, MODEL.head_dim)
    table = of_chip(mesh, 1, POSITIONS, 1, MODEL.head_dim // 2, dtype="float32")
    arguments = (of_chip(mesh, 1, POSITIONS, MODEL.width), of_chip(mesh, *shape), table, table)
    for name, rotate in (("by halves", layers._rotate_halves), ("by a product", layers._rotate_by_product)):

        def queries(x, kernel, cos, sin, rotate=rotate):
            rotated = rotate(jnp.einsum("BSD,DNH->BSNH", x, kernel), cos, sin)
            return jnp.swapaxes(rotated * MODEL.head_dim**-0.5, 1, 2)  # as the attention kernel takes them

        report(f"rotation {name}", mesh, topology, queries, *arguments)


def parts(topology: str, mesh: Mesh) -> None:
    found = of_chip(mesh, PARTS, MODEL.heads, POSITIONS, MODEL.head_dim)
    report("parts reduced", mesh, topology, lambda x: x.sum(axis=0), found)

    def add(x):
        return functools.reduce(jnp.add, (part.astype(jnp.float32) for part in x)).astype(x.dtype)

    report("parts added", mesh, topology, add, found)


def down(topology: str, mesh: Mesh) -> None:
    rows = of_chip(mesh, mesh.size, POSITIONS, MODEL.mlp_width, split=PartitionSpec("fsdp"))
    for name, split in (
        ("last", PartitionSpec(None, None, "fsdp")),
        ("first", PartitionSpec(None, "fsdp")),
    ):
        kernels = of_chip(mesh, 2, MODEL.mlp_width, MODEL.width, dtype="float32", split=split)

        def loss(kernels, rows):
            def layer(x, kernel):
                y = jnp.einsum("BSF,FD->BSD", x, kernel.astype(x.dtype))
                wider = jnp.tile(y, 3)[..., : MODEL.mlp_width]
                return jax.lax.with_sharding_constraint(x + wider, PartitionSpec("fsdp")), None

            y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), rows, kernels)
            return jnp.mean(y.astype(jnp.float32) ** 2)

        with jax.set_mesh(mesh):
            report(f"down, its {name} dimension", mesh, topology, jax.grad(loss), kernels, rows)


def head(topology: str, mesh: Mesh) -> None:
    split = PartitionSpec("fsdp")
    hidden = of_chip(mesh, TARGETS * mesh.size, MODEL.width, split=split)
    kernel = of_chip(mesh, MODEL.width, MODEL.vocab_size, dtype="float32", split=split)
    targets = of_chip(mesh, TARGETS * mesh.size, dtype="int32", split=split)
    for size in (4752, SLICE):

        def gradients(hidden, kernel, targets, size=size):
            found = jax.grad(lambda h, k: cross_entropy(h, k, targets, size).mean(), argnums=(0, 1))(hidden, kernel)
            return jax.lax.with_sharding_constraint(found, split)

        with jax.set_mesh(mesh):
            report(f"head, at most {size} ids", mesh, topology, gradients, hidden, kernel, targets)


def bias(topology: str, mesh: Mesh) -> None:
    width, points = preset("14b").flow_head.width, 4 * TARGETS
    shift_scale_gate = [of_chip(mesh, points, width)] * 3
    arguments = of_chip(mesh, points, width), of_chip(mesh, width, 3 * width), of_chip(mesh, 3 * width), *shift_scale_gate
    for name, modulate in (("a sum", plain), ("a row of the product", layers._product_and_bias)):

        def gradients(cond, kernel, bias, *of_modulations, modulate=modulate):
            _, pull = jax.vjp(lambda *of: modulate("...I,IO->...O", cond, *of), kernel, bias)
            return pull(jnp.concatenate(of_modulations, axis=-1))

        report(f"bias, {name}", mesh, topology, gradients, *arguments)


def plain(equation: str, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, kernel) + bias


PARTS_OF_THE_MODEL = {
    "product": product,
    "rotation": rotation,
    "parts": parts,
    "down": down,
    "head": head,
    "bias": bias,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[*PARTS_OF_THE_MODEL, []])
    parser.add_argument("--topology", default="v6e:16x16")
    options = parser.parse_args()
    devices = topology_devices(options.topology)
    for part in options.part or PARTS_OF_THE_MODEL:
        mesh = make_mesh({"fsdp": -1}, devices if part in ("down", "head") else devices[:1])
        PARTS_OF_THE_MODEL[part](options.topology, mesh)


if __name__ == "__main__":
    main()
