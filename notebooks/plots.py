"""What the notebooks share: how images are laid out, how long a function takes, and whether sizes are shrunk."""

import os
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence

import jax
import matplotlib.pyplot as plt
import numpy as np

# Set by `python -m notebooks.execute --fast`: everything is shown, with fewer images, steps and words.
FAST = os.environ.get("NEXTSTEP_NOTEBOOKS_FAST") == "1"

plt.rcParams.update({"figure.dpi": 100, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "axes.grid": False})


def show(
    images: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    columns: int = 8,
    rows: Sequence[str] = (),
    side: float = 1.25,
    colors: Sequence[str] = (),
) -> None:
    """Images in rows of `columns`, `side` inches each, titles in their colors over the first, a label before each row."""
    columns = min(columns, len(images))
    titles = ["\n".join(textwrap.fill(line, round(15 * side)) for line in title.split("\n")) for title in titles]
    count = -(-len(images) // columns)
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    figure, axes = plt.subplots(
        count, columns, figsize=(side * columns + 0.9 * bool(rows), (side + 0.14 * lines) * count), squeeze=False
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image, interpolation="nearest")
        if i < len(titles):
            axis.set_title(titles[i], fontsize=7.5, pad=3, color=colors[i] if colors else "black")
    for axis, label in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
    figure.tight_layout(pad=0.4)
    plt.show()


def seconds(function: Callable, *arguments, repeats: int = 15) -> float:
    """Median seconds of a call, the compiling one left out."""
    jax.block_until_ready(function(*arguments))
    measured = []
    for _ in range(3 if FAST else repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)
