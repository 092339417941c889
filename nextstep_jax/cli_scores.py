"""`nextstep-jax evaluate compare` and `sheet`: looking at scores and verdicts that are there."""

import pathlib

import click

from nextstep_jax.cli_shared import Command, require_writable

_PATH = click.Path(path_type=pathlib.Path)


@click.command(cls=Command, short_help="Two scores, or one beside the paper's.")
@click.argument("first", metavar="A.json", type=_PATH)
@click.argument("second", metavar="[B.json]", type=_PATH, required=False)
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True, help="Of the bootstrap.")
@click.option("--json", "json_file", type=_PATH, help="Also write the rows as JSON.")
def compare(first, second, resamples, json_file):
    """Two scores with paired bootstrap intervals, beside the paper's; or one beside the paper's.

    A.json and B.json are what `--json` of `evaluate shapes`, `evaluate tokenizer` and `evaluate SUITE score` wrote. Scores of
    different prompts, judges or conventions are refused.
    """
    from nextstep_jax.data.files import write_json
    from nextstep_jax.evaluation import compare as comparing

    if json_file is not None:
        require_writable(json_file)
    scores = [comparing.read_score(path) for path in (first, second) if path is not None]
    rows = comparing.single(scores[0]) if second is None else comparing.compare(*scores, resamples=resamples)
    changed = [] if second is None else comparing.differences(*scores)
    click.echo(scores[0]["title"])
    for line in changed:
        click.echo(f"  {line}")
    click.echo(comparing.format_table(rows))
    if any(row.paper for row in rows) and (scores[0]["judge"] or not all(score["official"] for score in scores)):
        click.echo(
            "The paper's numbers are of the official judge and all official prompts: these are not comparable with them."
        )
    if json_file is not None:
        write_json(json_file, {"rows": [_as_json(row) for row in rows], "differences": changed, "resamples": resamples})


def _as_json(row) -> dict:
    return row._asdict() | {"change": None if row.change is None else row.change._asdict(), "paper": dict(row.paper)}


@click.command(cls=Command, short_help="Prompts, images and verdicts on a page.")
@click.argument("out", type=_PATH)
@click.argument("page", metavar="PAGE.html", type=_PATH)
@click.option("--results", type=_PATH, help="Verdicts of `judge`.  [default: OUT/results.jsonl]")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Prompts on the page, the worst.")
def sheet(out, page, results, limit):
    """A page of a suite's prompts, images and verdicts, the worst first: one HTML file.

    OUT is the folder of `evaluate SUITE export`.
    """
    from nextstep_jax.data.files import write_bytes
    from nextstep_jax.evaluation.contact_sheet import export_cards, render_sheet

    require_writable(page)
    cards, title, total = export_cards(out, results or out / "results.jsonl", limit)
    write_bytes(page, render_sheet(cards, title, total).encode("utf-8", "replace"))
    broken = sum(isinstance(picture, str) for card in cards for picture in card.pictures)
    if broken:
        click.echo(f"warning: {broken} images cannot be read; the page says why", err=True)
    click.echo(f"{page}: {len(cards)} of {total} prompts")
