"""What a recipe did, in numbers and as one HTML page: histograms, and the samples nearest each threshold on both sides."""

import collections
import html
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nextstep_jax.data import files, images
from nextstep_jax.data.curation.recipe import Condition, Recipe
from nextstep_jax.data.curation.scores import Unusable
from nextstep_jax.data.curation.stages import Values
from nextstep_jax.data.image_output import jpeg_url
from nextstep_jax.data.records import Sample
from nextstep_jax.data.shard_job import Finished
from nextstep_jax.data.source import Source, Unused
from nextstep_jax.errors import NextStepError

_BINS = 20
_LISTED = 1000  # unusable samples and duplicates named in the report
_NEAREST = 6  # examples on each side of a threshold
_GROUPS = 12  # near-duplicates shown
_THUMBNAIL = 112  # pixels

Entries = Sequence[Mapping[str, Values] | Unusable]


def make_report(
    recipe: Recipe,
    source: Source,
    entries: Entries,
    replaced: Mapping[int, int],
    verdicts: Mapping[str, Sequence[str]],
    written: Mapping[str, Sequence[Finished]],
) -> dict[str, Any]:
    """The report, as JSON values:

    recipe, source, samples; unusable: counts by reason, and the first of them; duplicates: [index, index kept], the first of
    them; cuts: {name: {kept, written, dropped: counts by reason, left_out: counts by reason (by transforms)}}; signals:
    {"NAME.VALUE": {measured, missing, min, mean, max, edges, counts}} of numbers, {measured, missing, counts} of words; unused:
    what lies in the source and is in no sample.
    """
    problems = [[index, *entry] for index, entry in enumerate(entries) if isinstance(entry, Unusable)]
    unused = Unused()
    unused.update(source.unused)
    for shards in written.values():
        for shard in shards:
            for reason, name in shard.unused:
                unused.add(reason, name)
    return {
        "recipe": recipe.name,
        "source": source.name,
        "samples": len(entries),
        "unusable": {"reasons": _count(reason for _, reason, _ in problems), "samples": problems[:_LISTED]},
        "duplicates": {"count": len(replaced), "samples": [list(pair) for pair in sorted(replaced.items())[:_LISTED]]},
        "cuts": {
            cut: {
                "kept": sum(not reason for reason in reasons),
                "written": sum(shard.shard.samples for shard in written[cut]),
                "dropped": _count(reason for reason in reasons if reason),
                "left_out": _count(entry.reason for shard in written[cut] for entry in shard.skipped),
            }
            for cut, reasons in verdicts.items()
        },
        "signals": _summaries(entries),
        "unused": unused.to_json(),
    }


def _count(reasons) -> dict[str, int]:
    return dict(sorted(collections.Counter(reasons).items()))


def _summaries(entries: Entries) -> dict[str, dict[str, Any]]:
    usable = [entry for entry in entries if not isinstance(entry, Unusable)]
    names = {(name, value): None for entry in usable for name, values in entry.items() for value in values}
    found = {}
    for name, value in names:
        column = [entry[name].get(value) for entry in usable]
        given = [item for item in column if isinstance(item, int | float | str)]
        summary: dict[str, Any] = {"measured": len(given), "missing": column.count(None)}
        if given and all(isinstance(item, int | float) for item in given):
            numbers = np.asarray(given, float)
            counts, edges = np.histogram(numbers, _BINS)
            summary |= {"min": float(numbers.min()), "mean": float(numbers.mean()), "max": float(numbers.max())}
            found[f"{name}.{value}"] = summary | {"edges": edges.tolist(), "counts": counts.tolist()}
        elif given and len(words := collections.Counter(map(str, given))) <= 100:
            found[f"{name}.{value}"] = summary | {"counts": dict(words.most_common())}
    return found


# --- the page ---------------------------------------------------------------------------------------------------------

_KEY = "Images nearest each threshold: outlined are those on the side that is kept. The red line is the threshold."
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
figure { margin: 0; width: 112px; font-size: 12px; overflow-wrap: anywhere; }
figure img { max-width: 112px; max-height: 112px; display: block; } .kept img { outline: 2px solid #2060c0; }
"""


def write_sheet(path: str | os.PathLike, recipe: Recipe, source: Source, entries: Entries, report: Mapping[str, Any]) -> None:
    """Write the page: one file, images in it, no script."""
    body = [f"<h1>{html.escape(recipe.name)}: {html.escape(source.name)}</h1>", f"<p>{report['samples']} samples. {_KEY}</p>"]
    rows = "".join(
        f"<tr><td>{html.escape(cut)}<td>{counts['kept']}<td>{counts['written']}<td>{_words(counts['dropped'])}"
        f"<td>{_words(counts['left_out'])}</tr>"
        for cut, counts in report["cuts"].items()
    )
    body.append(
        f"<table><tr><th>cut<th>kept<th>written<th>not kept, by the first reason<th>left out by transforms</tr>{rows}</table>"
    )
    for cut, conditions in recipe.cuts.items():
        for condition in conditions:
            body.append(f"<h2>{html.escape(cut)}: {html.escape(str(condition))}</h2>")
            summary = report["signals"].get(f"{condition.signal}.{condition.value}")
            if isinstance(condition.threshold, float) and summary and "edges" in summary:
                body.append(_histogram(summary, condition.threshold))
                body.append(_nearest(source, entries, condition))
    if report["duplicates"]["count"]:
        body.append(f"<h2>Near-duplicates: {report['duplicates']['count']} left out</h2>")
        pairs = report["duplicates"]["samples"][:_GROUPS]
        body += [
            f'<div class="row">{_figure(source, kept, "kept", True)}{_figure(source, dropped, "left out", False)}</div>'
            for dropped, kept in pairs
        ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(recipe.name)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    files.write_bytes(path, page.encode("utf-8", "backslashreplace"))


def _words(counts: Mapping[str, int]) -> str:
    return html.escape(", ".join(f"{count} {reason}" for reason, count in counts.items())) or "none"


def _histogram(summary: Mapping[str, Any], threshold: float) -> str:
    """Bars as SVG, with a line where the threshold lies, which may be beyond all of them."""
    counts, edges, width, height = summary["counts"], summary["edges"], 400, 80
    low, high = min(edges[0], threshold), max(edges[-1], threshold)

    def place(value: float) -> float:
        return width * (value - low) / (high - low or 1.0)

    bars = "".join(
        f'<rect x="{place(left):.1f}" y="{height - height * count / max(counts):.1f}"'
        f' width="{max(1.0, place(right) - place(left) - 1):.1f}" height="{height * count / max(counts):.1f}" fill="#999"/>'
        for count, (left, right) in zip(counts, itertools.pairwise(edges), strict=True)
    )
    x = place(threshold)
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="#c03020" stroke-width="2"/>'
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="histogram">{bars}{line}</svg>'
        f"<p>{summary['min']:g} to {summary['max']:g}, mean {summary['mean']:.4g}; {summary['missing']} not measured</p>"
    )


def _nearest(source: Source, entries: Entries, condition: Condition) -> str:
    sides: dict[bool, list[tuple[float, int, float]]] = {True: [], False: []}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Unusable):
            kept = condition.holds(entry)
            if kept is not None:
                found = entry[condition.signal][condition.value]
                assert isinstance(condition.threshold, float)
                sides[kept].append((abs(found - condition.threshold), index, found))
    figures = [
        _figure(source, index, f"{found:.4g}", kept)
        for kept in (True, False)
        for _, index, found in sorted(sides[kept])[:_NEAREST]
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def _figure(source: Source, index: int, label: str, kept: bool) -> str:
    try:
        sample = source[index]
    except NextStepError:
        return ""
    caption = html.escape(f"{label}: {sample.key}", quote=True)
    return f"<figure{' class=kept' if kept else ''}>{_picture(sample)}<figcaption>{caption}</figcaption></figure>"


def _picture(sample: Sample) -> str:
    part = next((part for part in reversed(sample.images) if not part.is_latents), None)
    if part is None:
        return f"<div>{html.escape(' '.join(part.text for part in sample.texts)[:160])}</div>"
    image = images.load(part.data, sample.key)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return f'<img alt="" src="{jpeg_url(image)}">'
