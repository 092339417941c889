"""A page to look at: prompts, images and verdicts, the worst first. One HTML file that loads nothing from elsewhere."""

import dataclasses
import html
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nextstep_jax.data import files, images, shapes
from nextstep_jax.data.image_output import jpeg_url
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.export import IMAGES, RECORD
from nextstep_jax.evaluation.suites.results import Result, read_results
from nextstep_jax.untrusted import check_inside

THUMBNAIL = 256  # pixels of a thumbnail's longer side
LIMIT = 200  # prompts on a page


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was said of an image, in words, and as a score; None for a verdict that could not be read."""

    what: str
    score: float | None
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Card:
    """A prompt.

    Attributes:
      pictures: images, or in the place of one why it cannot be shown.
    """

    id: str
    prompt: str
    groups: Sequence[str]
    pictures: Sequence[Image.Image | str]
    verdicts: Sequence[Verdict]

    @property
    def score(self) -> float:
        """The mean of its verdicts; the lowest of all where one could not be read."""
        scores = [verdict.score for verdict in self.verdicts]
        known = [score for score in scores if score is not None]
        return math.fsum(known) / len(known) if len(known) == len(scores) and known else -math.inf


def export_cards(out: pathlib.Path, results: pathlib.Path, limit: int = LIMIT) -> tuple[list[Card], str, int]:
    """Cards of an export's `limit` worst prompts, the page's title, and how many prompts have verdicts.

    Args:
      out: the folder of `evaluate SUITE export`.
      results: verdicts of `evaluate SUITE judge`.

    Raises:
      InputError: no such export, or results that are not of it.
    """
    record = files.read_json(out / RECORD)
    entries = record.get("prompts") if isinstance(record, dict) else None
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise InputError(f"{out / RECORD}: not the record of an export")
    suite = str(record.get("suite"))
    of_prompt: dict[str, list[Result]] = {}
    for result in read_results(results, suite).values():
        of_prompt.setdefault(result.id, []).append(result)
    cards = []
    for entry in entries:
        if found := of_prompt.get(entry["id"]):
            found.sort(key=lambda result: (result.sample, result.criterion))
            verdicts = [Verdict(f"image {r.sample}, {r.criterion}", r.score, r.raw or r.error or "") for r in found]
            cards.append(Card(entry["id"], entry["prompt"], entry["groups"], entry["files"], verdicts))
    if not cards:
        raise InputError(f"{results}: holds no verdict on a prompt of {out}")
    worst = sorted(cards, key=lambda card: card.score)[:limit]
    shown = [dataclasses.replace(card, pictures=[_load(out / IMAGES, str(name)) for name in card.pictures]) for card in worst]
    judges = sorted({result.judge for found in of_prompt.values() for result in found})
    return shown, f"{suite}: {', '.join(judges)}", len(cards)


def shapes_cards(
    prompts: Sequence[shapes.Prompt], responses: Sequence[shapes.Response], report: Mapping[str, Any]
) -> list[Card]:
    """Cards of ShapeEval: the image shown with a prompt, if any, and the response."""
    reasons = {failure["index"]: failure["reason"] for failure in report["failures"]}
    cards = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        pictures = [] if prompt.scene is None else [thumbnail(shapes.render(prompt.scene))]
        parts = response if isinstance(response, list) else [response]
        said = " ".join(f"says: {part}" for part in parts if isinstance(part, str))
        pictures += [thumbnail(part) for part in parts if not isinstance(part, str)]
        words = "; ".join(filter(None, (reasons.get(i), said)))
        verdict = Verdict("correct", float(i not in reasons), words)
        cards.append(Card(str(i), prompt.text or "(caption)", (prompt.category,), pictures, (verdict,)))
    return cards


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("id", "prompt")):
        return False
    lists = [entry.get(name) for name in ("files", "groups")]
    return all(isinstance(value, list) and all(isinstance(part, str) for part in value) for value in lists)


def _load(folder: pathlib.Path, name: str) -> Image.Image | str:
    """A thumbnail, or why there is none. Nothing outside the folder is opened."""
    try:
        if pathlib.PurePosixPath(name).is_absolute() or ".." in pathlib.PurePosixPath(name).parts:
            raise InputError(f"{name}: leads out of the folder")
        check_inside(folder / name, folder)
        return thumbnail(images.load(folder / name))
    except InputError as error:
        return str(error)


def thumbnail(image: Image.Image | np.ndarray) -> Image.Image:
    """A copy of at most THUMBNAIL pixels a side."""
    small = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def render_sheet(cards: Iterable[Card], title: str, total: int) -> str:
    """The page. All text is escaped; images are embedded; there is no script, and none may run."""
    ordered = sorted(cards, key=lambda card: card.score)
    shown = "all" if len(ordered) == total else f"the worst {len(ordered)} of"
    heading = html.escape(title)
    return _PAGE.format(title=heading, count=f"{shown} {total} prompts, the worst first", cards="\n".join(map(_card, ordered)))


def _card(card: Card) -> str:
    pictures = "".join(
        f'<p class="bad">{html.escape(picture)}</p>'
        if isinstance(picture, str)
        else f'<img src="{jpeg_url(picture)}" width="{picture.width}" height="{picture.height}" alt="">'
        for picture in card.pictures
    )
    rows = "".join(
        f"<tr><td>{html.escape(v.what)}</td>"
        f'<td class="{"bad" if v.score is None else "score"}">{"unread" if v.score is None else f"{v.score:g}"}</td>'
        f"<td>{html.escape(v.words)}</td></tr>"
        for v in card.verdicts
    )
    where = html.escape(", ".join([card.id, *card.groups]))
    return (
        f"<article><p>{html.escape(card.prompt)}</p><p class='where'>{where}</p><div>{pictures}</div>"
        f"<table>{rows}</table></article>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }}
article {{ border-top: 1px solid #bbb; padding: .8rem 0; overflow-wrap: anywhere; }}
article p {{ margin: .2rem 0; }}
.where {{ color: #666; font-size: .85em; }}
.bad {{ color: #b00020; }}
.score {{ font-variant-numeric: tabular-nums; }}
img {{ margin: .4rem .4rem .4rem 0; vertical-align: top; }}
td {{ padding: .1rem .8rem .1rem 0; vertical-align: top; white-space: pre-line; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{count}</p>
{cards}
</body>
</html>
"""
