"""`nextstep-jax evaluate SUITE export|judge|score`: the benchmarks that the paper reports."""

import pathlib
import re

import click

from nextstep_jax.cli_shared import (
    CHECKPOINT,
    DTYPE,
    MESH,
    SAMPLER,
    SEED,
    Command,
    Group,
    Number,
    load_pipeline,
    make_folder,
    require_writable,
    updating_bar,
)
from nextstep_jax.errors import InputError

# By the names of evaluation.suites.loading.SUITES; whether it edits images.
SUITES = {
    "geneval": ("GenEval: objects, counts, colors and places, 553 prompts.", False),
    "genai-bench": ("GenAI-Bench: composition by VQAScore, 1,600 prompts.", False),
    "dpg-bench": ("DPG-Bench: questions about long prompts, 1,065 prompts.", False),
    "oneig-en": ("OneIG-Bench in English, 1,120 prompts.", False),
    "oneig-zh": ("OneIG-Bench in Chinese, 1,320 prompts.", False),
    "wise": ("WISE as the paper reports it: world knowledge, 1,000 prompts.", False),
    "wise-verified": ("WISE_Verified, the edition of April 2026.", False),
    "gedit-en": ("GEdit-Bench in English, 606 edits.", True),
    "gedit-cn": ("GEdit-Bench in Chinese, 606 edits.", True),
    "imgedit": ("ImgEdit-Bench, basic: 737 edits.", True),
}
_QUIRKS = ("dpg-bench", "oneig-en", "oneig-zh", "imgedit")  # suites whose official scorer has oddities

_FOLDER = click.Path(path_type=pathlib.Path)
_DATA = [
    click.option("--data", type=_FOLDER, help="Folder of the suite's official files."),
    click.option("--unofficial", is_flag=True, help="Take files that differ from the official ones; the scores say so."),
]


class _Shard(click.ParamType):
    """I/N with 0 <= I < N."""

    name = "I/N"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        if match is None or int(match[1]) >= int(match[2]):
            self.fail(f"{value!r} is not I/N with I from 0 to N - 1", param, ctx)
        return int(match[1]), int(match[2])


def suite_commands() -> list[click.Group]:
    """A group of commands for each suite."""
    return [_suite_command(name, help, edit) for name, (help, edit) in SUITES.items()]


def _suite_command(name: str, help: str, edit: bool) -> click.Group:
    group = Group(name, help=help)
    for make in (_export_command, _judge_command, _score_command):
        group.add_command(make(name, edit))
    return group


def _export_command(suite_name: str, edit: bool) -> click.Command:
    side = click.IntRange(min=1)
    options = [
        *_DATA,
        click.option("--out", type=_FOLDER, required=True, help="Folder for the images and nextstep.json."),
        CHECKPOINT,
        SEED,
        click.option("--height", type=side, help="Of an image, in pixels."),
        click.option("--width", type=side, help="Of an image, in pixels."),
        click.option("--sampler", type=SAMPLER, help="Flow sampler.  [default: the checkpoint's]"),
        click.option("--steps", type=click.IntRange(min=1), help="Sampling steps per token.  [default: the checkpoint's]"),
        click.option("--final-steps", type=click.IntRange(min=0), help="Steps of an image's last tokens."),
        click.option("--cfg", type=Number(min=1), help="Guidance, 1 for none.  [default: the checkpoint's]"),
        click.option(
            "--thinking/--no-thinking", default=None, help="Think before drawing (Self-CoT).  [default: the checkpoint's]"
        ),
        click.option("--rewrite", metavar="openai:URL#MODEL", help="Let a language model make the prompts richer first."),
        DTYPE,
        MESH,
        click.option("--limit", type=click.IntRange(min=1), help="That many prompts, evenly spaced.  [default: all]"),
        click.option("--batch", type=click.IntRange(min=1), help="Prompts drawn at once.  [default: as many as fill a batch]"),
        click.option("--shard", type=_Shard(), default="0/1", show_default=True, help="Which of how many parts to draw."),
    ]
    if edit:
        options.append(click.option("--image-cfg", type=Number(min=1), help="Guidance towards the input image, 1 for none."))

    @click.command("export", cls=Command)
    def export(data, unofficial, out, checkpoint, seed, height, width, rewrite, dtype, mesh, limit, batch, shard, **changes):
        """Draw the images, in the layout of the official scorer, below OUT/images.

        An interrupted export goes on where it was. Several processes share one OUT with --shard 0/N to --shard N-1/N.
        """
        from nextstep_jax.chat import ChatEndpoint
        from nextstep_jax.checkpoints.params import digest_of
        from nextstep_jax.evaluation.suites.loading import open_suite
        from nextstep_jax.generation.load import builtin_checkpoint, require_usable

        rewriter = None if rewrite is None else ChatEndpoint(rewrite)
        suite = open_suite(suite_name, data, unofficial)
        require_usable(checkpoint, edit, changes, height, width)
        make_folder(out)
        from nextstep_jax.evaluation.suites import export as exporting

        folder = builtin_checkpoint() if checkpoint is None else checkpoint
        pipeline = load_pipeline(checkpoint, dtype, mesh)
        plan = exporting.Plan(
            suite,
            exporting.select(suite.items, limit),
            pipeline.settings(edit, **changes),
            {"name": pipeline.name, "digest": digest_of(folder)},
            height,
            width,
            seed,
            dtype,
            rewriter,
        )
        with updating_bar("drawing", "prompt") as update:
            counts = exporting.export(pipeline, plan, out, batch=batch, shard=shard, progress=update)
        click.echo(f"{out / exporting.IMAGES}: {counts['drawn']} image files written, {counts['kept']} were there")

    return _with(export, options)


def _judge_command(suite_name: str, edit: bool) -> click.Command:
    options = [
        click.argument("out", type=_FOLDER),
        *_DATA,
        click.option("--endpoint", metavar="URL", required=True, help="Base address, such as http://localhost:8000/v1."),
        click.option("--model", required=True, help="Name of the judge at the endpoint."),
        click.option("--results", type=_FOLDER, help="File of results.  [default: OUT/results.jsonl]"),
        click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Questions at once."),
        click.option("--timeout", type=Number(min=0, min_open=True), default=120.0, show_default=True, help="Seconds a reply."),
        click.option("--retries", type=click.IntRange(min=0), default=5, show_default=True, help="Of a request that failed."),
        click.option(
            "--tries", type=click.IntRange(min=1), default=3, show_default=True, help="Of a reply that is unreadable."
        ),
        click.option("--max-requests", type=click.IntRange(min=1), help="Budget; retries count.  [default: no limit]"),
        click.option("--temperature", type=Number(min=0), default=0.0, show_default=True),
        click.option("--body", metavar="JSON", help="Further fields of each request, as a JSON object."),
        click.option("--cache", type=_FOLDER, help="SQLite file of answers, shared by judgements."),
    ]

    @click.command("judge", cls=Command)
    def judge(
        out,
        data,
        unofficial,
        endpoint,
        model,
        results,
        concurrency,
        timeout,
        retries,
        tries,
        max_requests,
        temperature,
        body,
        cache,
    ):
        """Ask a vision-language model about the images below OUT/images.

        The endpoint speaks OpenAI's chat completions; its key is taken from OPENAI_API_KEY. An interrupted judgement goes on
        where it was. Exit code 1 if questions are left.
        """
        from nextstep_jax.chat import Budget, ChatEndpoint, spelled
        from nextstep_jax.data.files import parse_json
        from nextstep_jax.evaluation.suites.loading import open_suite

        fields = {} if body is None else parse_json(body.encode(), "--body")
        if not isinstance(fields, dict):
            raise InputError(f"--body must be a JSON object, found {body!r:.100}")
        chat = ChatEndpoint(spelled(endpoint, model), concurrency, timeout, retries, budget=Budget(max_requests))
        suite = open_suite(suite_name, data, unofficial)
        results = results or out / "results.jsonl"
        require_writable(results)
        from nextstep_jax.evaluation.suites import judging
        from nextstep_jax.rewards.cache import Cache

        judge = judging.Judge(chat, temperature, tries, fields, None if cache is None else Cache(cache))
        with updating_bar("judging", "image") as update:
            counts = judging.judge(suite, out, results, judge, update)
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        click.echo(f"{results}: {shown} ({chat.budget.spent} requests)")
        if counts["left"] or counts["unanswered"]:
            reason = "the budget is used up" if counts["left"] else "some were not answered"
            click.echo(f"questions are left, {reason}; the same command goes on", err=True)
            raise click.exceptions.Exit(1)

    return _with(judge, options)


def _score_command(suite_name: str, edit: bool) -> click.Command:
    options = [
        click.argument("results", nargs=-1, required=True, type=_FOLDER),
        *_DATA,
        click.option("--export", "out", type=_FOLDER, help="Folder of the export.  [default: where the first results are]"),
        click.option("--partial", is_flag=True, help="Score what there is, although verdicts are missing."),
        click.option("--json", "json_file", type=_FOLDER, help="Also write the scores, with all they were made of, as JSON."),
    ]
    if suite_name in _QUIRKS:
        options.append(
            click.option("--official-quirks", "quirks", is_flag=True, help="Reproduce the official scorer's oddities.")
        )

    @click.command("score", cls=Command)
    def score(results, data, unofficial, out, partial, json_file, quirks=False):
        """The published numbers from RESULTS: a results.jsonl, or what the official scorer wrote."""
        from nextstep_jax.data.files import write_json
        from nextstep_jax.evaluation.suites.loading import open_suite
        from nextstep_jax.evaluation.suites.scoring import format_score, score_files

        if json_file is not None:
            require_writable(json_file)
        scores = score_files(open_suite(suite_name, data, unofficial), results, out, partial, quirks)
        if json_file is not None:
            write_json(json_file, scores)
        click.echo(format_score(scores))

    return _with(score, options)


def _with(command: click.Command, options: list) -> click.Command:
    """A command with parameters in this order."""
    for option in options:
        command = option(command)
    return command
