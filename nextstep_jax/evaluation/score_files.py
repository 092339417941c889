"""Scores of ShapeEval and of tokenizers in the form of a suite's `score.json` (suites/results.py): they compare alike."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax.data import shapes


def shapes_score(prompts: Sequence[shapes.Prompt], report: Mapping[str, Any], export: Mapping[str, Any]) -> dict[str, Any]:
    """The score of ShapeEval: "overall" over the categories of images from prompts, each category, and "failures".

    Args:
      report: of `shapes.evaluate` on these prompts.
      export: what the responses were made with; gets the prompts' digest as its "files".
    """
    wrong = {failure["index"] for failure in report["failures"]}
    groups: dict[str, dict[str, list[float]]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt.category, {})[f"{i:05d}"] = [float(i not in wrong)]
    drawn = [name for name in groups if name in shapes.CATEGORIES]
    metrics: dict[str, dict[str, Any]] = {}
    if drawn:
        metrics["overall"] = {"value": report["overall"], "weights": {name: 1 / len(drawn) for name in drawn}}
    for name, entry in report["categories"].items():
        metrics[name] = {"value": entry["score"], "weights": {name: 1.0}}
    digest = hashlib.sha256("\n".join(map(repr, prompts)).encode()).hexdigest()
    return _score("shapes", "ShapeEval", metrics, groups, len(prompts), {**export, "files": {"prompts": digest}}) | {
        "failures": report["failures"]
    }


def tokenizer_score(scores: Mapping[str, Any], export: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of `tokenizer.evaluate`, image by image; the distance between the sets has no values of images."""
    values = {name: found for name, found in scores["values"].items() if found}
    groups = {name: {f"{i:06d}": [value] for i, value in enumerate(found)} for name, found in values.items()}
    metrics: dict[str, dict[str, Any]] = {name: {"value": scores[name], "weights": {name: 1.0}} for name in values}
    if scores["rfid"] is not None:
        metrics["rfid"] = {"value": scores["rfid"], "weights": None}
    return _score("tokenizer", "Image tokenizer", metrics, groups, scores["n"], export) | {"skipped": scores["skipped"]}


def _score(
    suite: str,
    title: str,
    metrics: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Mapping[str, list[float]]],
    count: int,
    export: Mapping[str, Any],
) -> dict[str, Any]:
    counts = {"prompts": count, "expected": count, "scored": count, "unparsable": 0, "unanswered": 0, "missing": 0}
    found = {"suite": suite, "title": title, "official": True, "quirks": [], "metrics": metrics, "groups": groups}
    return json.loads(json.dumps(found | {"counts": counts, "judge": None, "files": {}, "export": export}))
