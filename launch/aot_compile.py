"""Compile a stage's training step, or what it draws, for a TPU that is not here, and say what it will cost.

    nextstep-jax aot --config nextstep_14b_stage1 --topology v5p:4x4x4 [--slices 2]
        [--what train|generate|rollouts] [--tokens-per-chip 16384] [--images 1] [--flags launch|none|NAME=VALUE,...]
        [--top N] [--hlo FILE] [--json] [--config.key=value ...]

Runs on any CPU machine with the extra `tpu` (libtpu holds the compiler). The program is the one that launch/train.py runs: the
same loss, optimizer, EMA, shardings, donated state; nothing is executed. A stage of preferences is compiled with its reference
counted in. With --what generate it is the token loop at guidance 7.5 for --images images of 256 tokens, bfloat16 parameters
split over `tensor`; with --what rollouts all that an online stage draws in a step.

What it prints are the compiler's figures, not measurements:

  fits            the compiler found room for everything in the chips' memory, and what it set aside adds up to no more than
                  that; if not, how much it wanted
  bytes           of a chip's memory, all that is set aside: parameters, optimizer and average as sharded; gradients,
                  activations and temporaries (peak_bytes in the JSON: the most that is in use at one time)
  collectives     from the compiled program, each as often as it runs
  seconds         sum over all instructions of the cycles the compiler expects, each as often as it runs (XLA's own sum counts
                  the body of the loop over layers once); attention kernels, which it does not estimate, by the blocks of pairs
                  that they visit at half the chip's peak (v6e, tpu7x: 0.35); collectives by bytes over link speed, added where
                  nothing runs beside them; copies to and from the host at 12 GB/s a chip, beside all else. Gathers and
                  scatters by id are left out: the compiler says nothing of these either
  program FLOPs   of the matrix products that the program executes, recomputation and empty places of the heads included
  MFU             useful FLOPs / (seconds * chips * peak). Useful: training/flops.py, forward once and backward twice, for rows
                  of one sample each, half of it image tokens. Packed short samples see fewer pairs in the same time.

--top N adds the N instructions that take longest, with the operation of the model that each comes from; --hlo FILE keeps the
compiled program's text.

The compiler gets the flags that the launchers set (xla_flags.py) unless --flags says otherwise: none for its own defaults,
NAME=VALUE,... for others on top of the launchers'.

Exit codes: 0 compiled, 1 it does not fit, 2 an option, config or topology that cannot be used.
"""

import json
import os
import pathlib
import sys
import time
from typing import Any

# libtpu only compiles here. It would wait for a metadata server, complain that this is no TPU host, and refuse to be loaded by
# two processes at a time.
for _name, _value in {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}.items():
    os.environ.setdefault(_name, _value)

# ruff: noqa: E402 (JAX reads the environment when it is imported)
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.launch.flag_parsing import parse
from nextstep_jax.launch.xla_flags import compiler_options
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.sharding.topologies import CHIPS, generation, topology_devices
from nextstep_jax.training.aot import compile_report, lower_train_step
from nextstep_jax.training.aot_decoding import lower_generation, lower_rollouts
from nextstep_jax.training.config import resolve
from nextstep_jax.training.hlo_cost import read_cost

FLAGS = flags.FlagValues()  # its own: launch/train.py has a flag of the same name
_OWN: dict[str, Any] = {"flag_values": FLAGS}
flags.DEFINE_string("config", None, "The stage: a shipped config or a file, NAME.py; with :laptop, shrunk.", **_OWN)
_TOPOLOGY = flags.DEFINE_string("topology", None, "GENERATION:SHAPE, e.g. v5p:4x4x4, v6e:16x16, v5e:2x4, tpu7x:4x4x4.", **_OWN)
_SLICES = flags.DEFINE_integer("slices", 1, "How many of them, between slices along the mesh axis data.", **_OWN)
_WHAT = flags.DEFINE_enum("what", "train", ["train", "generate", "rollouts"], "Which program.", **_OWN)
_TOKENS = flags.DEFINE_integer("tokens_per_chip", 16384, "Sets the batch size; 0 leaves the config's.", **_OWN)
_IMAGES = flags.DEFINE_integer("images", 1, "Of --what generate: drawn at a time.", lower_bound=1, **_OWN)
_FLAGS = flags.DEFINE_string("flags", "launch", "Compiler flags: launch, none or NAME=VALUE,...", **_OWN)
_TOP = flags.DEFINE_integer("top", 0, "How many of the costliest instructions to list.", lower_bound=0, **_OWN)
_HLO = flags.DEFINE_string("hlo", "", "A file for the compiled program's text.", **_OWN)
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON.", **_OWN)


def main(argv: list[str]) -> int:
    """Parse the command line, compile, print, and return the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        usage = "nextstep-jax aot --config NAME --topology v5p:4x4x4"
        config = parse(argv, FLAGS, ("config", "topology"), usage)
        target = _TOPOLOGY.value, _SLICES.value
        report, hlo = compile_for(config, *target, _WHAT.value, _TOKENS.value, _FLAGS.value, _IMAGES.value)
        if hlo and _TOP.value:
            cost = read_cost(hlo, CHIPS[generation(_TOPOLOGY.value)], report["chips"])
            report["costliest"] = [item._asdict() for item in cost.costliest(_TOP.value)]
        if _HLO.value:
            write_text(_HLO.value, hlo)
    except NextStepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report) if _JSON.value else text(report))
    return 0 if report["fits"] else 1


def compile_for(
    config: ConfigDict, topology: str, slices: int, what: str, tokens_per_chip: int, spec: str, images: int
) -> tuple[dict, str]:
    """The report, JSON-able, and the compiled program's text; `spec` says which compiler flags
    (`xla_flags.compiler_options`). InputError for what cannot be compiled.
    """
    chip, options = CHIPS[generation(topology)], compiler_options(generation(topology), spec)
    devices = topology_devices(topology, slices)
    if config.mesh.data == 1:
        config.mesh.data = slices
    mesh = make_mesh({"tensor": -1} if what == "generate" else config.mesh.to_dict(), devices)
    if what == "train" and tokens_per_chip:
        if tokens_per_chip * mesh.size % config.data.seq_len:
            rows = f"{mesh.size} chips is not a number of rows of {config.data.seq_len} positions"
            raise InputError(f"--tokens-per-chip {tokens_per_chip} on {rows}")
        config.data.batch_size = tokens_per_chip * mesh.size // config.data.seq_len
    run = resolve(config)
    if what == "generate":
        lowered = lower_generation(run, mesh, images)
    else:
        lowered = lower_train_step(run, mesh) if what == "train" else lower_rollouts(run, mesh)
    began = time.perf_counter()
    compiled, hlo = compile_report(lowered, chip, mesh.size, options)
    report = {
        "what": what,
        "topology": topology,
        "slices": slices,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "flags": options,
        "remat": config.model.transformer.remat,
        "grad_accum_steps": config.grad_accum_steps,
        "tokens_per_chip": lowered.tokens / mesh.size,
        "compile_seconds": round(time.perf_counter() - began, 1),
    }
    return report | compiled, hlo


def text(report: dict) -> str:
    """The report for people."""
    head = f"{report['what']} on {report['slices']} x {report['topology']}, {report['chips']} chips, mesh {report['mesh']}"
    used = " ".join(f"{name}={value}" for name, value in report["flags"].items()) or "the compiler's own"
    lines = [head, f"flags: {used}", f"compiled in {report['compile_seconds']:.0f} s"]
    if not report["fits"]:
        lines.append(f"does not fit: {report['reason']}")
    if "bytes_by_kind" not in report:
        return "\n".join(lines)
    verdict = "fits" if report["fits"] else "set aside"
    host = f", and {report['host_bytes_per_chip'] / 2**30:.2f} GiB of its host" if report["host_bytes_per_chip"] else ""
    lines.append(f"{verdict}: {report['bytes_per_chip'] / 2**30:.2f} GiB a chip{host}, of which")
    lines += [f"  {kind:<28}{size / 2**30:8.2f} GiB" for kind, size in report["bytes_by_kind"].items()]
    for kind, c in report["collectives"].items():
        lines.append(f"{kind:<30}{c['count']:8.0f} times, {c['bytes'] / 2**30:.2f} GiB a chip and run")
    lines.append(f"estimated seconds: {report['estimated_seconds']:.4f}")
    lines += [f"  {kind:<28}{value:8.4f}" for kind, value in report["seconds_by_kind"].items()]
    lines.append(f"program FLOPs / useful FLOPs: {report['program_flops'] / report['useful_flops']:.3f}")
    lines.append(f"estimated MFU: {report['estimated_mfu']:.1%} for {report['tokens_per_chip']:g} tokens a chip")
    for item in report.get("costliest", ()):
        where = "/".join(item["source"].split("/")[-6:]) or item["kind"]
        shape = item["shape"] if len(item["shape"]) <= 60 else item["shape"][:57] + "..."
        lines.append(f"{item['seconds'] * 1e3:10.2f} ms {item['times']:6.0f} x {item['name']} {shape}  {where}")
    return "\n".join(lines)


def write_text(path: str, text: str) -> None:
    """InputError where it cannot be written."""
    try:
        pathlib.Path(path).write_text(text)
    except OSError as error:
        raise InputError(f"--hlo {path}: {error.strerror}") from error


if __name__ == "__main__":
    absl_logging.set_verbosity(absl_logging.WARNING)
    sys.exit(main(sys.argv))
