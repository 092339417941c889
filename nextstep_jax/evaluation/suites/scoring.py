"""From results, ours or those of an official scorer, to the published numbers."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax.data import files
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.export import exported_items, read_record
from nextstep_jax.evaluation.suites.results import MAX_RESULTS, Key, Result, latest, parse_lines, sha256
from nextstep_jax.evaluation.suites.suite import Item, Suite


def score_files(
    suite: Suite, paths: Sequence[pathlib.Path], out: pathlib.Path | None = None, partial: bool = False, quirks: bool = False
) -> dict[str, Any]:
    """The content of `score.json`, see `results`.

    Args:
      paths: results.jsonl of `judge`, or what the official scorer wrote; several are taken together.
      out: the folder of the export; None: the one that the first file lies in.
      partial: score what there is, although verdicts are missing.
      quirks: reproduce the official scorer's oddities.

    Raises:
      InputError: a file that cannot be read, results of several judges, or missing verdicts.
    """
    record = read_record(out or paths[0].parent, suite)
    items = exported_items(record, suite)
    ours: dict[Key, Result] = {}
    scores: dict[Key, float | None] = {}
    digests = {}
    for path in paths:
        data = files.read_bytes(path, MAX_RESULTS)
        digests[path.name] = sha256(data)
        if _is_ours(data):
            found = latest(parse_lines(data[: data.rfind(b"\n") + 1], path), suite.name, path)
            ours |= found
            scores |= {key: result.score for key, result in found.items() if result.raw is not None or result.score is not None}
        else:
            scores |= suite.read_official(data, str(path))
    ids = {item.id for item in items}
    ours = {key: result for key, result in ours.items() if key[0] in ids}
    scores = {key: score for key, score in scores.items() if key[0] in ids}
    expected = _expected(suite, items) if ours else list(scores)
    missing = [key for key in expected if key not in scores]
    if missing and not partial:
        id, sample, criterion = missing[0]
        raise InputError(
            f"{paths[0]}: {len(missing)} of {len(expected)} verdicts are missing, first: {criterion} of image {sample} of "
            f"prompt {id}; judge again, or --partial scores the others"
        )
    if not any(score is not None for score in scores.values()):
        raise InputError(f"{paths[0]}: holds no verdict on a prompt of {suite.name}")
    report = suite.score(scores, quirks)
    unparsable = sum(score is None for score in scores.values())
    judge = _judge(ours)
    return {
        "suite": suite.name,
        "title": suite.title + (f" with {judge['name']}" if judge else ""),
        "official": suite.files.official and len(items) == len(suite.items),
        "quirks": list(report.quirks),
        "metrics": {
            name: {"value": m.value, "weights": None if m.weights is None else dict(m.weights)}
            for name, m in report.metrics.items()
        },
        "groups": {name: {id: list(of_id) for id, of_id in values.items()} for name, values in report.groups.items()},
        "counts": {
            "prompts": len(items),
            "expected": len(expected),
            "scored": len(scores) - unparsable,
            "unparsable": unparsable,
            "unanswered": sum(result.score is None and result.raw is None for result in ours.values()),
            "missing": len(missing),
        },
        "judge": judge,
        "files": digests,
        "export": None if record is None else {name: value for name, value in record.items() if name != "prompts"},
    }


def format_score(score: Mapping[str, Any]) -> str:
    """The numbers as a small table, with what they lack."""
    lines = [score["title"]]
    if not score["official"]:
        lines.append(f"not the official prompts, all of them: {score['counts']['prompts']} prompts")
    for name, metric in score["metrics"].items():
        value = "not known" if metric["value"] is None else f"{metric['value']:.4g}"
        lines.append(f"  {name:<28} {value:>9}")
    counts = score["counts"]
    if counts["missing"] or counts["unparsable"]:
        lines.append(f"left out: {counts['missing']} verdicts missing, {counts['unparsable']} replies unreadable")
    lines += [f"official quirk: {quirk}" for quirk in score["quirks"]]
    return "\n".join(lines)


def _is_ours(data: bytes) -> bool:
    """Whether a file's first line is a line of `results.jsonl`."""
    start = data[:4096].lstrip()
    return start.startswith(b'{"suite": ') and b'"criterion": ' in start


def _expected(suite: Suite, items: Sequence[Item]) -> list[Key]:
    return [
        (item.id, sample, criterion) for item in items for sample in range(suite.samples) for criterion in suite.criteria(item)
    ]


def _judge(ours: Mapping[Key, Result]) -> dict[str, Any] | None:
    """Who judged. InputError if not all was judged by one judge in one way."""
    if not ours:
        return None
    ways = sorted({(result.judge, result.temperature) for result in ours.values()})
    if len(ways) > 1:
        raise InputError(
            f"expected the verdicts of one judge, found {' and '.join(f'{n} (temperature {t})' for n, t in ways[:3])}"
        )
    read = [result for result in ours.values() if result.raw is not None]
    dates = sorted(result.date for result in ours.values())
    prompts = sorted({result.prompt_sha256 for result in ours.values()})
    return {
        "name": ways[0][0],
        "temperature": ways[0][1],
        "dates": [dates[0], dates[-1]],
        "prompt_sha256": sha256("".join(prompts).encode()),
        "unparsable_share": sum(result.score is None for result in read) / len(read) if read else 0.0,
    }
