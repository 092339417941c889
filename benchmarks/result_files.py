"""Results as small JSON files that say what they were made with, so that an interrupted program continues where it was."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any


def result(path: pathlib.Path, made_with: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds if it was `made_with` the same; else what `make` returns, written there."""
    made_with = json.loads(json.dumps(made_with))
    if path.exists() and (found := json.loads(path.read_text()))["made_with"] == made_with:
        print(f"{path.name}: there already")
        return found
    start = time.perf_counter()
    values = {"made_with": made_with, **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(partial, path)
    print(f"{path.name}: {time.perf_counter() - start:.0f} s")
    return values


def rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 5) for value in values]
