"""What a comparison reports: one row for each array, and the bounds within which two implementations agree."""

import dataclasses
import json
import sys
from typing import Any

import numpy as np

SINGLE_PASS = 2e-5  # absolute: one pass through a network, one run of a sampler, a loss
END_TO_END = 1e-4  # absolute: the tokens of a whole generation
GRADIENT = 1e-4  # of the tensor's largest entry
LATENTS = 3e-4  # absolute: tokens divided by the tokenizer's scaling
LEVELS = 1.0  # of uint8 images
ROUNDING = 1e-6  # a few float32 operations on numbers around 1
EXACT = 0.0

# Where there is no finite difference (other shapes, NaN), rows say this instead: JSON has no infinity.
NO_NUMBER = sys.float_info.max


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      array: which.
      max_abs: the largest difference; NO_NUMBER if the shapes differ or either side is not finite.
      max_rel: that difference over the largest entry of the reference.
      bound: the largest `max_abs` that is "ok".
      verdict: "ok" or "miss".
      note: for people, why there is no number.
    """

    array: str
    max_abs: float
    max_rel: float
    bound: float
    verdict: str
    note: str = ""


class Report:
    """Rows in the order they were compared."""

    def __init__(self):
        self.rows: list[Row] = []

    @property
    def misses(self) -> list[Row]:
        return [row for row in self.rows if row.verdict != "ok"]

    def compare(self, array: str, ours: Any, reference: Any, bound: float, *, where=None, relative: bool = False) -> None:
        """Compare `ours` with `reference`, where the mask says so.

        Args:
          relative: the bound is a share of the reference's largest entry.
        """
        ours, reference = np.asarray(ours), np.asarray(reference)
        if ours.shape != reference.shape:
            note = f"shape {list(ours.shape)}, the reference's is {list(reference.shape)}"
            self.rows.append(Row(array, NO_NUMBER, NO_NUMBER, bound, "miss", note))
            return
        ours, reference = ours.astype(np.float64), reference.astype(np.float64)
        if where is not None:
            ours, reference = ours[where], reference[where]
        if not (np.isfinite(ours).all() and np.isfinite(reference).all()):
            which = "ours" if np.isfinite(reference).all() else "the reference"
            self.rows.append(Row(array, NO_NUMBER, NO_NUMBER, bound, "miss", f"{which} is not finite"))
            return
        difference = float(np.max(np.abs(ours - reference), initial=0))
        scale = float(np.max(np.abs(reference), initial=0))
        self._add(array, difference, scale, bound * scale if relative else bound)

    def compare_values(self, array: str, ours: Any, reference: Any) -> None:
        """Compare nested dicts and lists exactly; `max_abs` counts the values that differ, `max_rel` is their share."""
        ours, reference = _leaves(ours), _leaves(reference)
        differing = [path for path in {**reference, **ours} if path not in ours or path not in reference]
        differing += [path for path, value in reference.items() if path in ours and ours[path] != value]
        note = f"differs at {differing[0]}" if differing else ""
        self._add(array, float(len(differing)), float(len(reference)), EXACT, note)

    def _add(self, array: str, difference: float, scale: float, bound: float, note: str = "") -> None:
        ratio = difference / scale if scale else (NO_NUMBER if difference else 0.0)
        self.rows.append(Row(array, difference, ratio, bound, "ok" if difference <= bound else "miss", note))

    def table(self) -> str:
        """All rows as aligned text, misses marked."""
        width = max(len(row.array) for row in self.rows)
        lines = [f"{'array':{width}}  {'max abs':>9}  {'max rel':>9}  {'bound':>9}  verdict"]
        for row in self.rows:
            numbers = "  ".join(f"{n:9.2e}" if n < NO_NUMBER else f"{'-':>9}" for n in (row.max_abs, row.max_rel, row.bound))
            lines.append(f"{row.array:{width}}  {numbers}  {row.verdict}{row.note and f': {row.note}'}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """A list of objects `array, max_abs, max_rel, bound, verdict`, as strict JSON."""
        names = ("array", "max_abs", "max_rel", "bound", "verdict")
        return json.dumps([{name: getattr(row, name) for name in names} for row in self.rows], indent=1, allow_nan=False)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """{path: value} of nested dicts and lists; an empty one is a value of its own."""
    if isinstance(value, dict) and value:
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    return {leaf: found for place, item in items for leaf, found in _leaves(item, place).items()}
