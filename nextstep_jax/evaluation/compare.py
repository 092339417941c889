"""Two scores side by side: differences with paired bootstrap intervals, and what the paper reports."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nextstep_jax.data import files
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.intervals import RESAMPLES, Interval, Pairs, bootstrap
from nextstep_jax.evaluation.suites.results import is_number

# Tables 2 to 5 and 8 of the paper: {suite: {metric: {row: value}}}.
_SELF_COT, _REWRITTEN, _BOTH = "NextStep-1, Self-CoT", "NextStep-1, rewritten", "NextStep-1, Self-CoT and rewritten"
_OURS = "NextStep-1"
PAPER: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "geneval": {"overall": {_OURS: 0.63, _SELF_COT: 0.73}},
    "genai-bench": {"basic": {_OURS: 0.88, _SELF_COT: 0.90}, "advanced": {_OURS: 0.67, _SELF_COT: 0.74}},
    "dpg-bench": {"total": {_OURS: 85.28}},
    "oneig-en": {
        "overall": {_OURS: 0.417},
        "alignment": {_OURS: 0.826},
        "text": {_OURS: 0.507},
        "reasoning": {_OURS: 0.224},
        "style": {_OURS: 0.332},
        "diversity": {_OURS: 0.199},
    },
    "wise": {"overall": {_OURS: 0.54, _SELF_COT: 0.67, _REWRITTEN: 0.79, _BOTH: 0.83}}
    | {
        name: {_OURS: value}
        for name, value in zip(
            ("culture", "time", "space", "biology", "physics", "chemistry"), (0.51, 0.54, 0.61, 0.52, 0.63, 0.48), strict=True
        )
    },
    "gedit-en": {"G_SC": {"NextStep-1-Edit": 7.15}, "G_PQ": {"NextStep-1-Edit": 7.01}, "G_O": {"NextStep-1-Edit": 6.58}},
    "gedit-cn": {"G_SC": {"NextStep-1-Edit": 6.88}, "G_PQ": {"NextStep-1-Edit": 7.02}, "G_O": {"NextStep-1-Edit": 6.40}},
    "imgedit": {"overall": {"NextStep-1-Edit": 3.71}},
    "tokenizer": {
        "psnr": {_OURS: 30.60, "Flux VAE": 31.64, "SD3-medium": 30.00},
        "ssim": {_OURS: 0.89, "Flux VAE": 0.91, "SD3-medium": 0.88},
        "ssim_llamagen": {_OURS: 0.89, "Flux VAE": 0.91, "SD3-medium": 0.88},
    },
}
# Settings of which two scores need the same; others may be what is compared.
_SAME_SETTINGS = {"tokenizer": ("protocol", "area", "mode")}


class Row(NamedTuple):
    """A metric of one score or two.

    Attributes:
      change: second less first, and its interval; None for a number that is no weighted mean, or of a single score.
      paper: the paper's rows.
    """

    name: str
    first: float | None
    second: float | None
    change: Interval | None
    paper: Mapping[str, float]


def read_score(path: pathlib.Path) -> dict[str, Any]:
    """A `score.json` (suites/results.py). InputError for anything else, naming the place."""
    score = files.read_json(path, 1 << 30)
    fields = ("suite", "title", "official", "quirks", "metrics", "groups", "judge", "export")
    missing = [name for name in fields if not isinstance(score, dict) or name not in score]
    if missing:
        raise InputError(f"{path}: expected a score (--json of `evaluate SUITE score`), found no {', '.join(missing)}")
    for name, members in _entries(score["groups"], path, "groups"):
        for id, values in _entries(members, path, f"groups: {name}"):
            if not isinstance(values, list) or not all(map(is_number, values)):
                raise InputError(f"{path}: groups: {name}: {id}: expected a list of numbers, found {values!r:.100}")
    for name, metric in _entries(score["metrics"], path, "metrics"):
        weights = metric.get("weights") if isinstance(metric, dict) else ()
        values = [*(weights or {}).values()] if isinstance(weights, dict | None) else [None]
        if not isinstance(metric, dict) or not (metric.get("value") is None or is_number(metric["value"])):
            raise InputError(f"{path}: metrics: {name}: expected a value, found {metric!r:.100}")
        if not all(map(is_number, values)) or not set(weights or ()) <= set(score["groups"]):
            raise InputError(f"{path}: metrics: {name}: expected weights of groups, found {weights!r:.100}")
    return score


def _entries(value: Any, path: pathlib.Path, place: str) -> Sequence[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {place}: expected an object, found {type(value).__name__}")
    return list(value.items())


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """The metrics of two scores of one suite, in the order of the first.

    A difference's interval holds the middle 95 % of its bootstrap: prompts are drawn anew within each group, each with the
    images of both scores, so that what makes a prompt easy for both does not widen it.

    Raises:
      InputError: naming what differs: the suite, its prompts or their files, the judge, the official scorer's oddities, or how
        a tokenizer was measured.
    """
    _require_alike(first, second)
    rows = []
    for name, metric in first["metrics"].items():
        other = second["metrics"].get(name, {"value": None, "weights": None})
        weights, change = metric["weights"], None
        if weights and weights == other["weights"] and None not in (metric["value"], other["value"]):
            groups = {group: _pairs(first["groups"][group], second["groups"][group]) for group in weights}
            change = bootstrap(groups, weights, resamples=resamples, seed=seed)
        rows.append(Row(name, metric["value"], other["value"], change, PAPER.get(first["suite"], {}).get(name, {})))
    return rows


def single(score: Mapping[str, Any]) -> list[Row]:
    """The metrics of one score beside the paper's."""
    paper = PAPER.get(score["suite"], {})
    return [Row(name, metric["value"], None, None, paper.get(name, {})) for name, metric in score["metrics"].items()]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What the two were made with that differs, a line each: checkpoint, seed, settings."""
    lines = []
    a, b = (_flat(score["export"] or {}) for score in (first, second))
    for name in [*a, *(name for name in b if name not in a)]:
        if a.get(name) != b.get(name):
            lines.append(f"{name}: {a.get(name)} and {b.get(name)}")
    return lines


def _flat(export: Mapping[str, Any]) -> dict[str, Any]:
    """{"settings: cfg": 7.5, ...}."""
    flat: dict[str, Any] = {}
    for name, value in export.items():
        if isinstance(value, dict):
            flat |= {f"{name}: {part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _require_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    def judge(score: Mapping[str, Any], field: str) -> Any:
        return (score["judge"] or {}).get(field)

    def export(score: Mapping[str, Any], field: str) -> Any:
        return (score["export"] or {}).get(field)

    pairs: list[tuple[str, Any, Any]] = [("suite", first["suite"], second["suite"])]
    if first["export"] and second["export"]:
        a, b = ((score["export"].get("settings") or {}) for score in (first, second))
        pairs.append(("digests of the prompts", export(first, "files"), export(second, "files")))
        pairs.append(("kinds of settings", sorted(a), sorted(b)))
        pairs += [(name, a.get(name), b.get(name)) for name in _SAME_SETTINGS.get(first["suite"], ())]
    if first["suite"] == "tokenizer":
        pairs.append(("weights_sha256", export(first, "weights_sha256"), export(second, "weights_sha256")))
    pairs += [(f"judge's {field}", judge(first, field), judge(second, field)) for field in ("name", "temperature")]
    pairs.append(("judge's prompt_sha256", judge(first, "prompt_sha256"), judge(second, "prompt_sha256")))
    pairs.append(("quirks", first["quirks"], second["quirks"]))
    for name, a, b in pairs:
        if a != b:
            raise InputError(f"the scores do not compare: their {name} differ: {a!s:.200} and {b!s:.200}")
    for name in {**first["groups"], **second["groups"]}:
        ids = [set(score["groups"].get(name, ())) for score in (first, second)]
        if alone := sorted(ids[0] ^ ids[1]):
            raise InputError(
                f"the scores do not compare: {len(alone)} prompts of {name} are in one of them only, first: {alone[0]}"
            )


def _pairs(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> Pairs:
    groups = (first, second)
    sums = np.array([[sum(group[id]) for id in first] for group in groups], np.float64)
    return Pairs(sums, np.array([[len(group[id]) for id in first] for group in groups], np.float64))


def format_table(rows: Sequence[Row]) -> str:
    """The rows as text: values, the change with its interval, the paper's numbers."""
    two = any(row.second is not None for row in rows)
    heads = ["", "A", "B", "B - A", "95 % interval"] if two else ["", "value"]
    lines = [[*heads, "paper"]]
    for row in rows:
        cells = [row.name, _number(row.first)]
        if two:
            change = row.change
            cells += [_number(row.second), "" if change is None else f"{change.difference:+.4g}"]
            cells.append("" if change is None else f"{change.low:+.4g} to {change.high:+.4g}")
        lines.append([*cells, "; ".join(f"{value:g} {name}" for name, value in row.paper.items())])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = (
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True)), line[-1]])
        for line in lines
    )
    return "\n".join(line.rstrip() for line in table)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
