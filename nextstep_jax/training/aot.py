"""Programs lowered for a mesh whose devices need not be present: the training step of a config, and decoding.

Only shapes and shardings are made, never an array, so a 14B step is lowered in seconds on a laptop; what `.compile()` then
gives is what a run on that mesh would execute.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from nextstep_jax.batch import Batch
from nextstep_jax.config import NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.flow.samplers import timesteps
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.token_loop import Prompt, decode_tokens, prefill
from nextstep_jax.models.attention import CACHE_AXES
from nextstep_jax.models.nextstep import init_params
from nextstep_jax.sharding.mesh import batch_shardings, replicated
from nextstep_jax.sharding.params import state_shardings, with_shardings
from nextstep_jax.sharding.rules import shape_spec
from nextstep_jax.sharding.topologies import GIB, Chip
from nextstep_jax.training import multitask
from nextstep_jax.training.flops import Work, flow_head_forward, full_row_work, multitask_flops, transformer_forward
from nextstep_jax.training.hlo_cost import read_cost
from nextstep_jax.training.program import make_program
from nextstep_jax.training.settings import MultitaskConfig, RunConfig


class Lowered(NamedTuple):
    """A program before compilation.

    Attributes:
      program: its `.compile()` compiles it.
      bytes_by_kind: what its arguments hold on each device.
      flops: useful FLOPs of one run, over all devices.
      tokens: positions of one run, over all devices.
    """

    program: jax.stages.Lowered
    bytes_by_kind: dict[str, int]
    flops: float
    tokens: int


def lower_train_step(config: RunConfig, mesh: Mesh) -> Lowered:
    """The multitask training step that launch/train.py would run with `config` on `mesh`: same loss, optimizer, EMA, shardings
    and donation.

    Raises:
      InputError: settings that make no step, or rows that do not divide over the mesh.
    """
    config = _multitask(config)
    model, rows, length = config.model, config.data.batch_size, config.data.seq_len
    for what, parts, size in (
        ("config.data.batch_size", mesh.shape["data"] * mesh.shape["fsdp"] * config.grad_accum_steps, rows),
        ("config.data.seq_len", mesh.shape["sequence"], length),
    ):
        if size < 1 or size % parts:
            raise InputError(f"{what} must be a multiple of {parts} on this mesh, found {size}")
    with jax.set_mesh(mesh):
        objective = multitask.make_objective(model, **multitask.max_targets(config), settings=config.loss)
        program = make_program(config, objective, mesh)
        batch = (abstract_batch(model, rows, length), jax.ShapeDtypeStruct((rows, length), jnp.int8))
        state, batch = (
            with_shardings(program.state, program.state_shardings),
            with_shardings(batch, batch_shardings(batch, mesh, objective.batch_axes)),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
        lowered = program.jit_step().lower(state, batch, key)
    kinds = {"parameters": state.params, "optimizer": state.opt_state, "average": state.ema, "batch": batch}
    work = row_work(rows, length)
    return Lowered(lowered, {k: bytes_per_device(v) for k, v in kinds.items()}, multitask_flops(model, work), rows * length)


def _multitask(config: RunConfig) -> MultitaskConfig:
    if not isinstance(config, MultitaskConfig):
        raise InputError(f"config.objective must be multitask to be compiled ahead of time, found {config.objective!r}")
    return config


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


def lower_generation(config: RunConfig, mesh: Mesh, prompt: int = 128) -> Lowered:
    """The token loop for one image of the config's size at guidance 7.5, after a prompt of `prompt` positions; its figures are
    those of one image token. Parameters are bfloat16 and lie as in training, heads and MLPs split over `tensor`.

    Raises:
      InputError: settings that make no model.
    """
    # Fused projections would have to be cut apart again on every device, in the middle of what it holds.
    changes = dict(dtype="bfloat16", scan_layers=False, fused_projections=False, remat="none")
    model = _multitask(config).model.with_transformer(**changes)
    settings = GenerationConfig(image_size=256).sampler_config(False)
    tokens = (model.latent_size // model.patch) ** 2
    rows = settings.branches
    with jax.set_mesh(mesh):
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), params)
        params = with_shardings({"model": params}, state_shardings({"model": params}, mesh))["model"]
        ids = jax.ShapeDtypeStruct((rows, prompt), jnp.int32)
        images = jax.ShapeDtypeStruct((rows, prompt, model.token_channels), jnp.float32)
        inputs = Prompt(ids, images, jax.ShapeDtypeStruct((rows, prompt), jnp.bool_), jax.ShapeDtypeStruct((rows,), jnp.int32))
        state = jax.eval_shape(functools.partial(prefill, model, branches=rows, tokens=tokens), params, inputs)
        lies = jax.tree.map(lambda _: replicated(mesh), state)
        layers = jax.tree.map(lambda s: NamedSharding(mesh, shape_spec(CACHE_AXES, s.shape, mesh)), state.cache.layers)
        state = with_shardings(state, lies._replace(cache=lies.cache._replace(layers=layers)))
        noise, guidance = (tokens, settings.num_noise_draws, 1, model.token_channels), (tokens, 2)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated(mesh)) for shape in (noise, guidance)]
        stop = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
        program = decode_tokens.lower(model, settings, params, state, *arrays, stop)
    kinds = {"parameters": params, "cache": state.cache}
    work = Work(rows, rows * (prompt + tokens), 0, 0, rows)
    times = len(timesteps(settings.sampler, settings.steps, settings.shift))
    head = dataclasses.replace(model.flow_head, batch_mul=times)
    flops = transformer_forward(model.transformer, work)
    flops += flow_head_forward(head, model.token_channels, model.transformer.width, rows)
    return Lowered(program, {k: bytes_per_device(v) for k, v in kinds.items()}, flops, 1)


def compile_report(lowered: Lowered, chip: Chip, devices: int, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Compile, and what the compiler says of the program: see launch/aot_compile.py for what the entries mean. A program for
    which there is not enough memory has `fits` False, a reason, and the bytes it wanted; where the compiler refused it, it has
    nothing else.

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
        return {"fits": False, "bytes_per_chip": size, "reason": reason, "estimated_mfu": None}
    memory: Any = compiled.memory_analysis()
    cost = read_cost(compiled.as_text() or "", chip, devices)
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    known = {kind: size for kind, size in lowered.bytes_by_kind.items() if size}
    known["gradients and activations"] = memory.temp_size_in_bytes
    known["program"] = memory.generated_code_size_in_bytes
    fits = total <= chip.memory
    why = {} if fits else {"reason": f"{total / GIB:.2f}G set aside of {chip.memory / GIB:.2f}G hbm"}
    return why | {
        "fits": fits,
        "bytes_per_chip": total,
        "peak_bytes": memory.peak_memory_in_bytes,
        "bytes_by_kind": known,
        "attention_kernels": cost.kernels,
        "collectives": {kind: c._asdict() for kind, c in cost.collectives.items()},
        "estimated_seconds": cost.seconds,
        "seconds_by_kind": {
            "instructions": cost.compute_seconds,
            "attention kernels": cost.kernel_seconds,
            "blocking collectives": cost.blocking_seconds,
            "overlapped collectives": cost.overlapped_seconds,
        },
        "program_flops": cost.flops * devices,
        "useful_flops": lowered.flops,
        "estimated_mfu": lowered.flops / (cost.seconds * devices * chip.flops),
    }
