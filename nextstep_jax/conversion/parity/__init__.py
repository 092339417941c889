"""Number-by-number comparison with what the PyTorch releases give, stored as a folder of golden files.

Every array of the folder is compared or used as input; sizes, settings and names of cases are read from the files.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
from flax.errors import FlaxError

from nextstep_jax.conversion.parity import generation, networks, samplers, sequences, training
from nextstep_jax.conversion.parity.goldens import Goldens
from nextstep_jax.conversion.parity.reference import Reference
from nextstep_jax.conversion.parity.report import Report
from nextstep_jax.errors import InputError, NextStepError, one_line

PARTS = {
    "networks": networks.compare,
    "samplers": samplers.compare,
    "generation": generation.compare,
    "training": training.compare,
    "sequences": sequences.compare,
}
# What comes of sizes and settings in one file that contradict those in another.
_CONTRADICTIONS = (ArithmeticError, LookupError, TypeError, ValueError, FlaxError)


def run_parity(
    folder: str | os.PathLike, on_part: Callable[[str], None] = lambda name: None, parts: Sequence[str] = tuple(PARTS)
) -> Report:
    """Compare everything in `folder` with this library, in float32.

    Args:
      on_part: called with the name of each part before it runs.
      parts: which of PARTS to compare. Only with all of them has every file to be understood.

    Raises:
      InputError: a file that has to be compared is absent, unreadable or not understood; or nothing missed although a file
        is not the one that SHA256SUMS lists.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder of golden files")
    if unknown := set(parts) - set(PARTS):
        raise InputError(f"parts of a comparison must be among {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    goldens, report = Goldens(folder), Report()
    # Accelerators multiply float32 matrices in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"), _quick_compiles():
        reference = Reference.load(goldens)
        for name in parts:
            on_part(name)
            try:
                PARTS[name](goldens, reference, report)
            except NextStepError:
                raise
            except _CONTRADICTIONS as error:
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise InputError(f"{folder}: the files of part {name!r} do not fit together ({reason})") from error
    if set(parts) == set(PARTS):
        goldens.require_all_read()
    if not report.misses:
        goldens.require_sums()
    return report


@contextlib.contextmanager
def _quick_compiles() -> Iterator[None]:
    """On CPUs, compile without LLVM's optimizations: every program here runs for milliseconds, and takes seconds to compile."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, before or jax.default_backend() == "cpu")
    try:
        yield
    finally:
        jax.config.update(name, before)
