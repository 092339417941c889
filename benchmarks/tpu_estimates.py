"""What the TPU compiler estimates for the 14B model: every row of the table in docs/pods.md, compiled ahead of time.

    python -m benchmarks.tpu_estimates [ROW ...] [--list]

compiles the named rows, or all, that benchmarks/results/tpu does not hold yet with the same arguments, one after another, and
writes the table anew from what is there. To compile a row again, remove its file. Needs the extra `tpu`, no TPU. On one free
CPU core a training row takes 6 (v6e) to over 20 minutes (v5e). Nothing of this has run on a TPU.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

from benchmarks import packing
from benchmarks.result_files import result
from nextstep_jax.config import preset
from nextstep_jax.sharding.topologies import CHIPS, generation
from nextstep_jax.training.flops import Work, multitask_flops

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tpu"
DOCS = ROOT / "docs" / "pods.md"
BEGIN, END = "<!-- estimates -->", "<!-- end of estimates -->"


class Row(NamedTuple):
    """One program.

    Attributes:
      title: of its row.
      arguments: of `nextstep-jax aot`.
      gate: the MFU it was meant to reach, None where none was set.
    """

    title: str
    arguments: tuple[str, ...]
    gate: float | None = None


STAGE_1 = "nextstep_14b_stage1"
MIXTURE_ROWS = 400


def _stage(config: str, topology: str, *more: str) -> tuple[str, ...]:
    return ("--config", config, "--topology", topology, *more)


_LENGTH = "--config.data.seq_len="
_SHORT, _SHORTER = _LENGTH + "8192", _LENGTH + "4096"
# What one fusion may not use of the on-chip memory has room for weights that are fetched ahead: the token loop waits for these.
_PREFETCH = ("--flags", "xla_tpu_scoped_vmem_limit_kib=16384")
_REMAT = "--config.model.transformer.remat="
ROWS = {
    "v6e-256": Row("stage 1, v6e-256", _stage(STAGE_1, "v6e:16x16", _SHORT, _REMAT + "attention"), 0.45),
    "v6e-256-4096": Row(
        "the same in rows of 4,096",
        _stage(STAGE_1, "v6e:16x16", _SHORTER, _REMAT + "attention_out:device,block_middle:device"),
        0.45,
    ),
    "v6e-256-gate": Row(
        "v6e-256, the MLP's gate on the host",
        _stage(STAGE_1, "v6e:16x16", _SHORT, _REMAT + "gate:host,attention_out:device,block_middle:device"),
        0.45,
    ),
    "v5e-256": Row(
        "stage 1, v5e-256",
        _stage(STAGE_1, "v5e:16x16", _SHORT, _REMAT + "block_in:host,attention_out:device"),
        0.48,
    ),
    "v5p-128": Row("stage 1, v5p-128", _stage(STAGE_1, "v5p:4x4x4", _SHORT, "--config.mesh.data=4", _REMAT + "gate"), 0.56),
    "2x-v6e-256": Row(
        "stage 1, 2 x v6e-256", _stage(STAGE_1, "v6e:16x16", "--slices", "2", _SHORTER, _REMAT + "attention"), 0.43
    ),
    "tpu7x-64": Row(
        "stage 1, 64 chips of tpu7x, figures of half a chip",
        _stage(STAGE_1, "tpu7x:4x4x4", _SHORT, "--config.mesh.data=4", _REMAT + "gate"),
    ),
    "dpo-v5p-128": Row("DPO, v5p-128", _stage("nextstep_14b_dpo", "v5p:4x4x4", "--tokens-per-chip", "8192")),
    "rollouts-v5p-128": Row("NFT rollouts, v5p-128", _stage("nextstep_14b_nft", "v5p:4x4x4", "--what", "rollouts")),
    "decode-v5e-8": Row("one image, v5e-8", _stage(STAGE_1, "v5e:2x4", "--what", "generate", *_PREFETCH)),
    "decode-16-v5e-8": Row("16 images, v5e-8", _stage(STAGE_1, "v5e:2x4", "--what", "generate", "--images", "16", *_PREFETCH)),
    "decode-16-v6e-8": Row("16 images, v6e-8", _stage(STAGE_1, "v6e:2x4", "--what", "generate", "--images", "16", *_PREFETCH)),
}


def compile_row(row: Row) -> dict[str, Any]:
    """The report of `nextstep-jax aot` on a row, and the compiler's version."""
    command = [sys.executable, "-m", "nextstep_jax", "aot", *row.arguments, "--json", "--top", "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if not done.stdout:
        raise SystemExit(done.stderr)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    report = json.loads(done.stdout)
    return {"versions": versions, **report, "on_a_mixture": on_a_mixture(row.arguments, report)}


def on_a_mixture(arguments: tuple[str, ...], report: dict[str, Any]) -> dict[str, float] | None:
    """What a stage-1 step that takes as long does on rows packed with the mixture of benchmarks/packing.py: the kernel visits
    the same blocks, and most of their pairs belong to two samples. None for other stages and for what was not compiled.

    Returns:
      tokens_per_second: a chip's, padding not counted.
      mfu: with the pairs that samples see.
    """
    if arguments[1] != STAGE_1 or report["what"] != "train" or "estimated_seconds" not in report:
        return None
    config = importlib.import_module(f"nextstep_jax.configs.{STAGE_1}").get_config()
    given = [int(value.removeprefix(_LENGTH)) for value in arguments if value.startswith(_LENGTH)]
    length, most = (given or [config.data.seq_len])[0], config.max_target_fraction
    limits, items = packing.sizes_of_a_mixture("stage 1", MIXTURE_ROWS, most.text, most.image, length=length)
    positions = sum(n for n, *_ in items)
    padding = packing.waste_best_fit(items, limits, config.data.packing_buffer)
    tokens = report["tokens_per_chip"] * (1 - padding)
    text, image = (tokens * sum(sizes[i] for sizes in items) / positions for i in (1, 2))
    work = Work(tokens, tokens * sum(n * (n + 1) / 2 for n, *_ in items) / positions, image, text, image)
    useful = multitask_flops(preset("14b"), work)
    peak = CHIPS[generation(report["topology"])].flops
    return {"tokens_per_second": tokens / report["estimated_seconds"], "mfu": useful / report["estimated_seconds"] / peak}


def table(results: pathlib.Path = RESULTS) -> str:
    """The table of all rows, from their files."""
    lines = [
        "| 14B | arguments of `nextstep-jax aot` | mesh | fits | GiB a chip (peak) | time | MFU | gate | mixture: tokens/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        arguments = " ".join(row.arguments[2:] if row.arguments[1] == STAGE_1 else row.arguments)
        path = results / f"{name}.json"
        open_gate = f"{row.gate:.0%} open" if row.gate else ""
        cells = (
            _cells(json.loads(path.read_text()), row.gate) if path.exists() else ["", "not compiled", "", "", "", open_gate, ""]
        )
        lines.append("| " + " | ".join([row.title, f"`{arguments}`", *cells]) + " |")
    return "\n".join(lines)


def _cells(report: dict[str, Any], gate: float | None) -> list[str]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    if "peak_bytes" not in report:
        return [mesh, "no", f"{report['reason']}", "", "", _verdict(None, gate), ""]
    size, peak = report["bytes_per_chip"] / 2**30, report["peak_bytes"] / 2**30
    host = f"; {report['host_bytes_per_chip'] / 2**30:.1f} on the host" if report["host_bytes_per_chip"] else ""
    seconds = report["estimated_seconds"]
    spent = f"{seconds * 1e3:.1f} ms a token" if report["what"] == "generate" else f"{seconds:.2f} s"
    mfu = "" if report["what"] == "generate" else f"{report['estimated_mfu']:.1%}"
    fits, mixture = "yes" if report["fits"] else "no", report["on_a_mixture"]
    packed = f"{mixture['tokens_per_second']:,.0f} ({mixture['mfu']:.1%})" if mixture else ""
    return [mesh, fits, f"{size:.1f} ({peak:.1f}{host})", spent, mfu, _verdict(report["estimated_mfu"], gate), packed]


def _verdict(mfu: float | None, gate: float | None) -> str:
    if gate is None:
        return ""
    return f"{gate:.0%} {'reached' if mfu is not None and mfu >= gate else 'missed'}"


def write_docs(docs: pathlib.Path = DOCS) -> None:
    """Put the table between its two marks."""
    before, _, rest = docs.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    partial = docs.with_suffix(".partial")
    partial.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")
    os.replace(partial, docs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; none: all")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    for name in options.rows or ROWS:
        row = ROWS[name]
        if options.list:
            print(name, "nextstep-jax aot", *row.arguments)
        else:
            result(RESULTS / f"{name}.json", {"arguments": row.arguments}, lambda row=row: compile_row(row))
            write_docs()


if __name__ == "__main__":
    main()
