"""Training steps lowered for a mesh whose devices need not be present, and what the compiler says of a lowered program.

Only shapes and shardings are made, never an array, so a 14B step is lowered in seconds on a laptop; what `.compile()` then
gives is what a run on that mesh would execute. aot_decoding.py lowers the programs that draw images.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nextstep_jax.batch import Batch, PairedBatch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.objectives.preference import PairErrors
from nextstep_jax.sharding.mesh import batch_shardings, replicated
from nextstep_jax.sharding.params import with_shardings
from nextstep_jax.sharding.topologies import GIB, Chip
from nextstep_jax.training import multitask, preference
from nextstep_jax.training.flops import Work, full_row_work, multitask_flops
from nextstep_jax.training.hlo_cost import KINDS, Cost, read_cost
from nextstep_jax.training.post_training_settings import PreferenceConfig
from nextstep_jax.training.program import make_program
from nextstep_jax.training.settings import MultitaskConfig, RunConfig
from nextstep_jax.training.step import Objective


class Lowered(NamedTuple):
    """A program before compilation.

    Attributes:
      program: its `.compile()` compiles it.
      bytes_by_kind: what its arguments hold on each device.
      flops: useful FLOPs of one run, over all devices.
      tokens: positions of one run, over all devices.
      beside: what lies on each device while it runs and is no argument of it, in bytes.
    """

    program: jax.stages.Lowered
    bytes_by_kind: dict[str, int]
    flops: float
    tokens: int
    beside: Mapping[str, int] = types.MappingProxyType({})


def lower_train_step(config: RunConfig, mesh: Mesh) -> Lowered:
    """The training step that launch/train.py would run with `config` on `mesh`: same loss, optimizer, EMA, shardings and
    donation. Objectives "multitask" and "preference"; the latter's reference lies beside it.

    Raises:
      InputError: settings that make no step, another objective, or rows that do not divide over the mesh.
    """
    if config.objective not in ("multitask", "preference"):
        found = f"found {config.objective!r}"
        raise InputError(f"config.objective must be multitask or preference for its step to be compiled ahead of time, {found}")
    assert isinstance(config, MultitaskConfig)
    rows, length = config.data.batch_size, config.data.seq_len
    for what, parts, size in (
        ("config.data.batch_size", mesh.shape["data"] * mesh.shape["fsdp"] * config.grad_accum_steps, rows),
        ("config.data.seq_len", mesh.shape["sequence"], length),
    ):
        if size < 1 or size % parts:
            raise InputError(f"{what} must be a multiple of {parts} on this mesh, found {size}")
    with jax.set_mesh(mesh):
        objective, batch, flops = _pairs(config) if isinstance(config, PreferenceConfig) else _rows(config)
        made = make_program(config, objective, mesh)
        state, batch = (
            with_shardings(made.state, made.state_shardings),
            with_shardings(batch, batch_shardings(batch, mesh, objective.batch_axes)),
        )
        program = made.jit_step().lower(state, batch, abstract_key(mesh))
    kinds = {"parameters": state.params, "optimizer": state.opt_state, "average": state.ema, "batch": batch}
    lowered = Lowered(program, {k: bytes_per_device(v) for k, v in kinds.items()}, flops, rows * length)
    if isinstance(config, PreferenceConfig):
        return lowered._replace(beside={"reference": bytes_per_device(state.params)})
    return lowered


def _rows(config: MultitaskConfig) -> tuple[Objective, Any, float]:
    """Objective, batch and useful FLOPs of a multitask step."""
    rows, length = config.data.batch_size, config.data.seq_len
    objective = multitask.make_objective(config.model, **multitask.max_targets(config), settings=config.loss)
    batch = (abstract_batch(config.model, rows, length), jax.ShapeDtypeStruct((rows, length), jnp.int8))
    return objective, batch, multitask_flops(config.model, row_work(rows, length))


def _pairs(config: PreferenceConfig) -> tuple[Objective, Any, float]:
    """The same of a preference step, each of whose rows is two, a winner's and a loser's. Its work: every position of both is
    an image token; the reference's errors are not the step's.
    """
    model, rows, length = config.model, config.data.batch_size, config.data.seq_len
    slots = multitask.max_targets(config)["max_image_targets"]
    packed = PairedBatch(*(abstract_batch(model, rows, length) for _ in range(2)))
    t = jax.ShapeDtypeStruct((rows, slots, config.loss.draws), jnp.float32)
    noise = jax.ShapeDtypeStruct((*t.shape, model.token_channels), jnp.float32)
    errors = jax.eval_shape(lambda: PairErrors(*jnp.zeros((len(PairErrors._fields), rows, slots))))
    unconditional = jax.ShapeDtypeStruct((rows, 2), jnp.float32)
    pairs = (packed, jax.ShapeDtypeStruct((rows, length), jnp.int8))
    batch = jax.eval_shape(preference.PreferenceBatch, pairs, noise, t, errors, unconditional)
    work = full_row_work(2 * rows * length, length, length)
    drawn = dataclasses.replace(model, flow_head=dataclasses.replace(model.flow_head, batch_mul=config.loss.draws))
    return preference.make_objective(config), batch, multitask_flops(drawn, work)


def abstract_key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A run's key."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def row_work(rows: int, length: int) -> Work:
    """The work of full rows of one sample each, half of it image tokens: every position is a target of exactly one head, and
    the heads' costs are so close that the share of images hardly matters.
    """
    return full_row_work(rows * length, length, length // 2)


def abstract_batch(config: NextStepConfig, rows: int, length: int) -> Batch:
    """The shapes of a Batch."""

    def array(dtype, *more):
        return jax.ShapeDtypeStruct((rows, length, *more), dtype)

    ids, weights = array(jnp.int32), array(jnp.float32)
    return Batch(ids, array(jnp.float32, config.token_channels), array(jnp.bool_), ids, ids, weights, weights)


def bytes_per_device(tree) -> int:
    """Bytes that a tree of ShapeDtypeStructs with shardings takes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def compile_report(
    lowered: Lowered, chip: Chip, devices: int, options: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Compile, and what the compiler says of the program: see launch/aot_compile.py for what the entries mean. A program for
    which there is not enough memory has `fits` False, a reason, and the bytes it wanted; where the compiler refused it, it has
    nothing else. Also the compiled program's text, "" for one that it refused.

    Raises:
      InputError: an option of the compiler that it does not know, or a value that it does not take.
    """
    try:
        compiled = lowered.program.compile(dict(options or {}))
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" in str(error) and options:
            raise InputError(f"compiler flags: {str(error).splitlines()[0]}") from error
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        wanted = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+[KMGT]) hbm", str(error))
        size = float(wanted[1]) * 1024 ** (1 + "KMGT".index(wanted[2])) if wanted else None
        reason = f"{wanted[1]}{wanted[2]} wanted of {wanted[3]}" if wanted else str(error).splitlines()[0]
        return {"fits": False, "bytes_per_chip": size, "reason": reason, "estimated_mfu": None}, ""
    memory: Any = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    beside = sum(lowered.beside.values())
    total += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + beside
    known = {kind: size for kind, size in lowered.bytes_by_kind.items() if size} | dict(lowered.beside)
    known["gradients and activations"] = memory.temp_size_in_bytes
    known["program"] = memory.generated_code_size_in_bytes
    fits, text = total <= chip.memory, compiled.as_text() or ""
    why = {} if fits else {"reason": f"{total / GIB:.2f}G set aside of {chip.memory / GIB:.2f}G hbm"}
    of_memory = {
        "fits": fits,
        "bytes_per_chip": total,
        "peak_bytes": memory.peak_memory_in_bytes + beside,
        "host_bytes_per_chip": memory.host_temp_size_in_bytes,
        "bytes_by_kind": known,
    }
    return why | of_memory | cost_report(read_cost(text, chip, devices), lowered.flops, chip, devices), text


def cost_report(cost: Cost, flops: float, chip: Chip, devices: int) -> dict[str, Any]:
    """The part of `compile_report` that follows from the program's text and the useful FLOPs of one run."""
    return {
        "attention_kernels": cost.kernels,
        "collectives": {kind: c._asdict() for kind, c in cost.collectives.items()},
        "estimated_seconds": cost.seconds,
        "seconds_by_kind": {kind: cost.of(kind) for kind in KINDS},
        "program_flops": cost.flops * devices,
        "useful_flops": flops,
        "estimated_mfu": flops / (cost.seconds * devices * chip.flops),
    }
