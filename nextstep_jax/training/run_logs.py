"""What a run wrote while it trained, read back for a look or a plot."""

import json
import os
import re

import numpy as np

from nextstep_jax import storage
from nextstep_jax.data.images import load
from nextstep_jax.errors import InputError


def read_metrics(workdir: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (steps [k], values [k] float64)} of all numbers a run reported; what was not finite is NaN.

    Raises:
      InputError: the folder holds no metrics.
    """
    path = storage.at(workdir) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the metrics of a training run ({error})") from error
    found: dict[str, tuple[list, list]] = {}
    for line in lines:
        for name in line.keys() - {"step"}:
            steps, values = found.setdefault(name, ([], []))
            steps.append(line["step"])
            values.append(np.nan if line[name] is None else line[name])
    return {name: (np.asarray(steps), np.asarray(values, float)) for name, (steps, values) in sorted(found.items())}


def read_samples(workdir: str | os.PathLike) -> dict[int, np.ndarray]:
    """{step: image [height, width, 3] uint8} of all sample grids a run drew, in the order of the steps."""
    folder = storage.at(workdir) / "samples"
    paths = [folder / name for name in storage.of(folder).list_files(folder) if re.fullmatch(r"step_\d+\.png", name)]
    return {int(path.stem.removeprefix("step_")): np.asarray(load(path.read_bytes(), str(path))) for path in paths}
