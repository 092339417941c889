"""How much of a batch is padding: best-fit packing over the mixes of the paper's stages.

    python -m benchmarks.packing [--rows 2000] [--text 0.75] [--image 0.75] [--json FILE]

Lengths are drawn from made-up but plausible laws (the real data is not public); shares of tokens are the paper's Table 1. For
each stage: waste with 1 to 64 rows open, waste when whole samples are put one after another until one does not fit (what the
February 2026 release does for each grid), and how fast rows of real arrays are put together. `--text` and `--image` are
config.max_target_fraction: the share of a row's positions that may be targets of each head.
"""

import argparse
import json
import time

import numpy as np

from nextstep_jax.data.packing import BestFit, added, assemble
from nextstep_jax.data.sequence import KIND_IDS, Segment, Sizes, fits

# Stage: (length of a row, image tokens from, to, shares of tokens).
STAGES = {
    "stage 1": (16384, 256, 256, {"text": 0.2, "pair": 0.6, "interleaved": 0.2}),
    "stage 2": (16384, 256, 1024, {"text": 0.2, "pair": 0.6, "interleaved": 0.2}),
    "annealing": (16384, 256, 1024, {"text": 0.2, "pair": 0.6, "edit": 0.1, "interleaved": 0.1}),
    "sft": (8192, 256, 1024, {"pair": 0.9, "edit": 0.1}),
}
OPEN_ROWS = (1, 4, 16, 64)
CHANNELS = 64


def sample_sizes(kind: str, limits: Sizes, tokens: tuple[int, int], draw: np.random.Generator) -> list[Sizes]:
    """`Segment.sizes` of a sample: documents of 30 to 100,000 ids cut to rows, captions of some 90, instructions of some 20."""
    length, max_text_targets, _ = limits

    def words(median: float, spread: float) -> int:
        return max(1, round(draw.lognormal(np.log(median), spread)))

    def picture(target: bool = True) -> Sizes:
        areas = np.arange(tokens[0], tokens[1] + 1, 256)
        area = int(draw.choice(areas)) - int(draw.integers(0, 5))  # a bucket's h*w falls a little short
        return area + 8, 6, area * target  # its size in words, and markers

    def text(count: int) -> Sizes:
        return count, count, 0

    if kind == "text":
        whole, piece = min(100_000, max(30, words(600, 1.2))), min(length, max_text_targets)
        return [text(piece)] * (whole // piece) + ([text(whole % piece)] if whole % piece else [])
    if kind == "pair":
        return [added(text(words(90, 0.6) + 1), picture())]
    if kind == "edit":
        sources = [picture(target=False) for _ in range(draw.choice((1, 2), p=(0.8, 0.2)))]
        return [added(*sources, (words(20, 0.6) + 1, 0, 0), picture())]
    count = min(draw.integers(2, 24), length // (2 * tokens[1]))
    return [added(*(added(text(words(60, 0.8)), picture()) for _ in range(count)), text(1))]


def sizes_of_a_mixture(
    stage: str, rows: int, text: float, image: float, seed: int = 0, length: int | None = None
) -> tuple[Sizes, list[Sizes]]:
    """The limits of a row, and what is put into rows in the order in which a mixture reads it: the kind furthest behind its
    share of tokens is next. What fits into no row is left out. `length` is that of other rows than the stage's.
    """
    stages, low, high, shares = STAGES[stage]
    length = length or stages
    limits = (length, round(text * length), round(image * length))
    draw = np.random.default_rng(seed)
    tokens = dict.fromkeys(shares, 0)
    found: list[Sizes] = []
    while sum(tokens.values()) < rows * length:
        kind = min(shares, key=lambda kind: tokens[kind] / shares[kind])
        pieces = [sizes for sizes in sample_sizes(kind, limits, (low, high), draw) if fits(sizes, limits)]
        tokens[kind] += sum(positions for positions, *_ in pieces)
        found += pieces
    return limits, found


def waste_best_fit(items: list[Sizes], limits: Sizes, packing_buffer: int) -> float:
    """Padding in the rows closed while reading, as a share of their positions."""
    packing: BestFit[int] = BestFit(limits, packing_buffer)
    rows = [row for sizes in items if (row := packing.add(sizes[0], sizes)) is not None]
    return 1 - sum(map(sum, rows)) / (len(rows) * limits[0])


def waste_in_order(items: list[Sizes], limits: Sizes) -> float:
    rows, used = [], (0,) * len(limits)
    for sizes in items:
        if not fits(added(used, sizes), limits):
            rows.append(used[0])
            used = (0,) * len(limits)
        used = added(used, sizes)
    return 1 - sum(rows) / (len(rows) * limits[0])


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
    parser.add_argument("--text", type=float, default=1.0, help="most text targets, as a fraction of a row's positions")
    parser.add_argument("--image", type=float, default=1.0, help="most image targets")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    print(f"{'stage':<12}{'row':>7}" + "".join(f"{count:>8} open" for count in OPEN_ROWS) + f"{'in order':>12}{'ms a row':>12}")
    for stage, (length, *_) in STAGES.items():
        limits, items = sizes_of_a_mixture(stage, arguments.rows, arguments.text, arguments.image)
        waste = {str(count): waste_best_fit(items, limits, count) for count in OPEN_ROWS}
        waste["in order"] = waste_in_order(items, limits)
        speed = 1000 * seconds_a_row(length)
        figures[stage] = {"length": length, "waste": waste, "milliseconds a row": speed}
        columns = "".join(f"{100 * waste[str(count)]:>12.2f}%" for count in OPEN_ROWS)
        print(f"{stage:<12}{length:>7}{columns}{100 * waste['in order']:>11.2f}%{speed:>12.1f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
