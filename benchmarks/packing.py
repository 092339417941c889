"""How much of a batch is padding: best-fit packing over the mixes of the paper's stages.

    python -m benchmarks.packing [--rows 2000] [--json FILE]

Lengths are drawn from made-up but plausible laws (the real data is not public); shares of tokens are the paper's Table 1. For
each stage: waste with 1 to 64 rows open, waste when whole samples are put one after another until one does not fit (what the
February 2026 release does for each grid), and how fast rows of real arrays are put together.
"""

import argparse
import json
import time

import numpy as np

from nextstep_jax.data.packing import BestFit, assemble
from nextstep_jax.data.sequence import KIND_IDS, Segment

# Stage: (length of a row, image tokens from, to, shares of tokens).
STAGES = {
    "stage 1": (16384, 256, 256, {"text": 0.2, "pair": 0.6, "interleaved": 0.2}),
    "stage 2": (16384, 256, 1024, {"text": 0.2, "pair": 0.6, "interleaved": 0.2}),
    "annealing": (16384, 256, 1024, {"text": 0.2, "pair": 0.6, "edit": 0.1, "interleaved": 0.1}),
    "sft": (8192, 256, 1024, {"pair": 0.9, "edit": 0.1}),
}
OPEN_ROWS = (1, 4, 16, 64)
CHANNELS = 64


def sample_lengths(kind: str, length: int, tokens: tuple[int, int], draw: np.random.Generator) -> list[int]:
    """Positions of one sample: documents of 30 to 100,000 ids cut into rows, captions of some 90, instructions of some 20."""

    def words(median: float, spread: float) -> int:
        return max(1, round(draw.lognormal(np.log(median), spread)))

    def picture() -> int:
        areas = np.arange(tokens[0], tokens[1] + 1, 256)
        return int(draw.choice(areas)) - int(draw.integers(0, 5)) + 8  # a bucket's h*w falls a little short; area and markers

    if kind == "text":
        whole = min(100_000, max(30, words(600, 1.2)))
        return [length] * (whole // length) + ([whole % length] if whole % length else [])
    if kind == "pair":
        return [words(90, 0.6) + picture() + 1]
    if kind == "edit":
        return [words(20, 0.6) + sum(picture() for _ in range(draw.choice((2, 3), p=(0.8, 0.2)))) + 1]
    count = min(draw.integers(2, 24), length // (2 * tokens[1]))
    return [min(length, sum(words(60, 0.8) + picture() for _ in range(count)) + 1)]


def lengths_of_a_mixture(stage: str, rows: int, seed: int = 0) -> list[int]:
    """Lengths in the order in which a mixture reads them: the kind furthest behind its share of tokens is next."""
    length, low, high, shares = STAGES[stage]
    draw = np.random.default_rng(seed)
    tokens = dict.fromkeys(shares, 0)
    found: list[int] = []
    while sum(tokens.values()) < rows * length:
        kind = min(shares, key=lambda kind: tokens[kind] / shares[kind])
        pieces = sample_lengths(kind, length, (low, high), draw)
        tokens[kind] += sum(pieces)
        found += pieces
    return found


def waste_best_fit(lengths: list[int], length: int, open_rows: int) -> float:
    """Padding in the rows closed while reading, as a share of their positions."""
    packing: BestFit[int] = BestFit((length,), open_rows)
    rows = [row for size in lengths if (row := packing.add(size, (size,))) is not None]
    return 1 - sum(map(sum, rows)) / (len(rows) * length)


def waste_in_order(lengths: list[int], length: int) -> float:
    rows, used = [], 0
    for size in lengths:
        if used + size > length:
            rows.append(used)
            used = 0
        used += size
    return 1 - sum(rows) / (len(rows) * length)


def seconds_a_row(length: int) -> float:
    """Time to put a row of image-text pairs together, arrays and all."""
    size = 360
    is_image = np.arange(size) < 256
    tokens = np.ones((256, CHANNELS), np.float32)
    weight = np.ones(size, np.float32)
    segment = Segment(np.ones(size, np.int32), is_image, tokens, weight, weight)
    row = [(segment, KIND_IDS["pair"])] * (length // size)
    assemble([row], 1, length, CHANNELS, 0, separated=True)
    start = time.perf_counter()
    for _ in range(20):
        assemble([row], 1, length, CHANNELS, 0, separated=True)
    return (time.perf_counter() - start) / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="rows' worth of tokens to pack")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    print(f"{'stage':<12}{'row':>7}" + "".join(f"{count:>8} open" for count in OPEN_ROWS) + f"{'in order':>12}{'ms a row':>12}")
    for stage, (length, *_) in STAGES.items():
        lengths = lengths_of_a_mixture(stage, arguments.rows)
        waste = {str(count): waste_best_fit(lengths, length, count) for count in OPEN_ROWS}
        waste["in order"] = waste_in_order(lengths, length)
        speed = 1000 * seconds_a_row(length)
        figures[stage] = {"length": length, "waste": waste, "milliseconds a row": speed}
        columns = "".join(f"{100 * waste[str(count)]:>12.2f}%" for count in OPEN_ROWS)
        print(f"{stage:<12}{length:>7}{columns}{100 * waste['in order']:>11.2f}%{speed:>12.1f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
