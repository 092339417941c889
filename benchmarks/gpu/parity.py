"""Part "parity": the golden files of the PyTorch releases on this device: float32 within its bounds, bfloat16's distance.

The figures of float32 are those of `nextstep-jax parity`, matrix products in the highest precision. `worst` are the arrays that
come nearest to their bounds, or pass them; `of_bound` is the difference as a share of the bound. In bfloat16 the same passes
run with bfloat16 products; `relative` is the largest difference over the largest entry of the golden array.
"""

import dataclasses
import pathlib

from benchmarks.gpu.record import Record, run_part

GOLDENS = pathlib.Path(__file__).parents[2] / "tests" / "goldens"
BFLOAT16 = ("backbone.final_hidden", "backbone.logits", "head.velocity")  # what is compared in bfloat16
WORST = 5


def measure(record: Record, _) -> None:
    from nextstep_jax.conversion.parity import PARTS

    for part in ("networks",) if record.tiny else PARTS:
        record.attempt(f"float32/{part}", lambda part=part: float32(part), needs=5)
    record.attempt("bfloat16", bfloat16, needs=5)


def float32(part: str) -> dict:
    """The verdicts of a part of the comparison. AssertionError if something misses."""
    from nextstep_jax.conversion.parity import run_parity

    report = run_parity(GOLDENS, parts=(part,))
    by_share = sorted(report.rows, key=lambda row: row.max_abs / row.bound if row.bound else row.max_abs, reverse=True)
    figures = {
        "arrays": len(report.rows),
        "misses": [row.array for row in report.misses],
        "worst": [
            {"array": row.array, "max_abs": row.max_abs, "of_bound": row.max_abs / row.bound}
            for row in by_share[:WORST]
            if row.bound
        ],
    }
    if report.misses:
        raise AssertionError(f"parity misses: {figures}")
    return figures


def bfloat16() -> dict:
    """{array: relative distance} of single passes."""
    from nextstep_jax.conversion.parity import networks
    from nextstep_jax.conversion.parity.goldens import Goldens
    from nextstep_jax.conversion.parity.reference import Reference
    from nextstep_jax.conversion.parity.report import Report

    goldens, report = Goldens(GOLDENS), Report()
    reference = Reference.load(goldens)
    reference = dataclasses.replace(reference, config=reference.config.with_transformer(dtype="bfloat16"))
    networks.compare(goldens, reference, report)
    return {"relative": {row.array: row.max_rel for row in report.rows if row.array in BFLOAT16}}


if __name__ == "__main__":
    run_part(measure)
