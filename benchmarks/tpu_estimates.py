"""What the TPU compiler estimates for the 14B model: every row of the table in docs/pods.md, compiled ahead of time.

    python -m benchmarks.tpu_estimates [ROW ...] [--list]

compiles the named rows, or all, that benchmarks/results/tpu does not hold yet with the same arguments, one after another, and
writes the table anew from what is there. To compile a row again, remove its file. Needs the extra `tpu`, no TPU. On one free
CPU core a training row takes 2 (v5e) to 10 minutes (v6e). Nothing of this has run on a TPU.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

from benchmarks.result_files import result

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


def _stage(config: str, topology: str, *more: str) -> tuple[str, ...]:
    return ("--config", config, "--topology", topology, *more)


_SHORT = "--config.data.seq_len=8192"
_REMAT = "--config.model.transformer.remat="
ROWS = {
    "v6e-256": Row("stage 1, v6e-256", _stage("nextstep_14b_stage1", "v6e:16x16", _SHORT, _REMAT + "attention"), 0.45),
    "v5e-256": Row(
        "stage 1, v5e-256",
        _stage("nextstep_14b_stage1", "v5e:16x16", _SHORT, _REMAT + "block_in:host,attention_out:device"),
        0.48,
    ),
    "v5p-128": Row(
        "stage 1, v5p-128", _stage("nextstep_14b_stage1", "v5p:4x4x4", _SHORT, "--config.mesh.data=4", _REMAT + "gate"), 0.56
    ),
    "2x-v6e-256": Row(
        "stage 1, 2 x v6e-256", _stage("nextstep_14b_stage1", "v6e:16x16", "--slices", "2", _SHORT, _REMAT + "attention"), 0.43
    ),
    "dpo-v5p-128": Row("DPO, v5p-128", _stage("nextstep_14b_dpo", "v5p:4x4x4", "--tokens-per-chip", "8192")),
    "rollouts-v5p-128": Row("NFT rollouts, v5p-128", _stage("nextstep_14b_nft", "v5p:4x4x4", "--what", "rollouts")),
    "decode-v5e-8": Row("one image, v5e-8", _stage("nextstep_14b_stage1", "v5e:2x4", "--what", "generate")),
    "decode-16-v5e-8": Row(
        "16 images, v5e-8", _stage("nextstep_14b_stage1", "v5e:2x4", "--what", "generate", "--images", "16")
    ),
    "decode-16-v6e-8": Row(
        "16 images, v6e-8", _stage("nextstep_14b_stage1", "v6e:2x4", "--what", "generate", "--images", "16")
    ),
}


def compile_row(row: Row) -> dict[str, Any]:
    """The report of `nextstep-jax aot` on a row, and the compiler's version."""
    command = [sys.executable, "-m", "nextstep_jax", "aot", *row.arguments, "--json", "--top", "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if not done.stdout:
        raise SystemExit(done.stderr)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return {"versions": versions, **json.loads(done.stdout)}


def table(results: pathlib.Path = RESULTS) -> str:
    """The table of all rows, from their files."""
    lines = [
        "| 14B | arguments of `nextstep-jax aot` | mesh | fits | GiB a chip (peak) | time, estimated | MFU, estimated | gate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        arguments = " ".join(row.arguments[2:] if row.arguments[1] == "nextstep_14b_stage1" else row.arguments)
        path = results / f"{name}.json"
        open_gate = f"{row.gate:.0%} open" if row.gate else ""
        cells = _cells(json.loads(path.read_text()), row.gate) if path.exists() else ["", "not compiled", "", "", "", open_gate]
        lines.append("| " + " | ".join([row.title, f"`{arguments}`", *cells]) + " |")
    return "\n".join(lines)


def _cells(report: dict[str, Any], gate: float | None) -> list[str]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    if "peak_bytes" not in report:
        return [mesh, "no", f"{report['reason']}", "", "", _verdict(None, gate)]
    size, peak = report["bytes_per_chip"] / 2**30, report["peak_bytes"] / 2**30
    host = f"; {report['host_bytes_per_chip'] / 2**30:.1f} on the host" if report["host_bytes_per_chip"] else ""
    seconds = report["estimated_seconds"]
    spent = f"{seconds * 1e3:.1f} ms a token" if report["what"] == "generate" else f"{seconds:.2f} s"
    mfu = "" if report["what"] == "generate" else f"{report['estimated_mfu']:.1%}"
    fits = "yes" if report["fits"] else "no"
    return [mesh, fits, f"{size:.1f} ({peak:.1f}{host})", spent, mfu, _verdict(report["estimated_mfu"], gate)]


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
