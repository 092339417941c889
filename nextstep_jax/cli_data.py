"""`nextstep-jax data`: build, inspect and encode datasets."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import click

from nextstep_jax.cli_shared import (
    AREA,
    CHECKPOINT,
    CURATION_CONFIG,
    DTYPE,
    PASS_ON,
    PLACE,
    SAMPLER,
    SEED,
    CurationCommand,
    Group,
    Number,
    load_pipeline,
)

_COUNT = click.IntRange(min=1)

_SOURCE = """SOURCE is a folder of images with captions (captions.csv, metadata.csv or metadata.jsonl, or a .txt or .json
beside each image), a WebDataset tar or a folder of them, a folder built before or a folder of such folders, tfds:NAME:SPLIT,
videos:FOLDER, views:FOLDER, or shapes:KIND:SPLIT:N for the built-in dataset."""


def _source_options(command):
    """Options that say how to read SOURCE."""
    options = (
        click.option(
            "--kind",
            type=click.Choice(["pair", "edit", "interleaved"]),
            help="WebDataset: what samples with several images are.",
        ),
        click.option("--data-dir", metavar="DIR", help="TFDS: where the prepared dataset is."),
        click.option("--image-feature", metavar="NAME", help="TFDS: the feature with the image.  [default: image]"),
        click.option(
            "--caption-feature",
            metavar="NAME",
            help="TFDS: the feature with the caption or label, e.g. captions/text.  [default: caption]",
        ),
        click.option("--template", metavar="TEXT", help='TFDS: what the caption is put into, e.g. "a photo of a {}".'),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _open(source, kind, **options):
    from nextstep_jax.data.sources import open_source

    return open_source(source, kind, **{name: value for name, value in options.items() if value is not None})


@click.group(cls=Group)
def data():
    """Build, inspect, encode and curate datasets."""


@data.command(help=f"Build the dataset OUT from SOURCE; after an interruption, the same command continues.\n\n{_SOURCE}")
@click.argument("source")
@click.argument("out", type=PLACE)
@click.option("--name", help="The dataset's name.  [default: the source's]")
@click.option(
    "--workers",
    type=_COUNT,
    default=lambda: min(os.cpu_count() or 1, 16),
    show_default="one per core, up to 16",
    help="Reader processes.",
)
@click.option("--shard-samples", type=_COUNT, default=1000, show_default=True, help="Samples per shard.")
@click.option(
    "--max-skipped", type=Number(0, 1), default=0.01, show_default=True, help="Fraction of samples that may be unusable."
)
@click.option(
    "--min-side", type=click.IntRange(min=0), default=16, show_default=True, help="Skip images with a shorter side, in pixels."
)
@click.option(
    "--max-aspect",
    type=Number(min=1),
    default=8.0,
    show_default=True,
    help="Skip images longer than this times their width, or wider.",
)
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(source, out, name, workers, shard_samples, max_skipped, min_side, max_aspect, as_json, **reading):
    from nextstep_jax.data import build as building

    checks = {"max_skipped": max_skipped, "min_side": min_side, "max_aspect": max_aspect}
    report = building.build(
        _open(source, **reading), out, name=name, workers=workers, shard_samples=shard_samples, progress=not as_json, **checks
    )
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False))
        return
    click.echo(f"{out}: {report['written']} samples")
    if report["skipped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report["reasons"].items())
        click.echo(f"{report['skipped']} skipped ({reasons}); {out / building.REPORT} names them")
    if report["unused"]:
        click.echo(f"not used: {_unused(report['unused'])}; {out / building.REPORT} names them")


@data.command(help=f"Show what is in SOURCE.\n\n{_SOURCE}")
@click.argument("source")
@click.option("--sheet", type=click.Path(), metavar="PNG", help="Write a contact sheet.")
@click.option("--sheet-samples", type=_COUNT, default=16, show_default=True, help="Samples on the contact sheet.")
@click.option("--limit", type=_COUNT, default=10_000, show_default=True, help="Samples to look at, spread evenly.")
@click.option("--verify", is_flag=True, help="First compare every shard with its digest.")
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(source, sheet, sheet_samples, limit, verify, as_json, **reading):
    from nextstep_jax.data import inspection, shards
    from nextstep_jax.errors import InputError

    opened = _open(source, **reading)
    if verify:
        if not isinstance(opened, shards.ArrayRecordSource):
            raise InputError(f"{source}: only a folder built by `nextstep-jax data build` can be verified")
        opened.verify(progress=not as_json)
    found = inspection.inspect(opened, limit=limit, sheet=sheet, sheet_samples=sheet_samples, progress=not as_json)
    click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else _in_words(found))


@data.command()
@click.argument("prompts", nargs=-1, required=True)
@click.argument("out", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    required=True,
    metavar='"[WEIGHT ]REWARD"',
    help="shapes, ocr, python:MODULE:FUNCTION, http://HOST/PATH or openai:URL#MODEL; several are z-scored and added.",
)
@click.option(
    "--cache", type=click.Path(path_type=pathlib.Path), help="File that keeps scores, so that none is paid for twice."
)
@CHECKPOINT
@DTYPE
@SEED
@click.option("--per-prompt", type=click.IntRange(min=2), default=16, show_default=True, help="Images of each prompt.")
@click.option("--shard-prompts", type=_COUNT, default=64, show_default=True, help="Prompts a shard.")
@click.option("--cfg", type=Number(min=1), help="Guidance, 1 for none.  [default: the checkpoint's]")
@click.option("--sampler", type=SAMPLER, help="Flow sampler.  [default: the checkpoint's]")
@click.option("--steps", type=_COUNT, help="Sampling steps per token.  [default: the checkpoint's]")
@click.option("--thinking/--no-thinking", default=None, help="Think once for all images of a prompt.")
@click.option(
    "--thinking-temperature",
    type=Number(min=0),
    help="Above 0: think anew for each image, at this temperature.  [default: the checkpoint's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def candidates(prompts, out, rewards, cache, checkpoint, dtype, seed, per_prompt, shard_prompts, as_json, **changes):
    """Draw several images of each of PROMPTS, score them, and write the dataset OUT for preference training; interrupted, the
    same command goes on.

    Each of PROMPTS is a text file with a prompt a line, a .jsonl file of objects with "prompt", "images" for an instruction
    (files, beside that one) and what rewards need, or shapes:CATEGORY:N, with :WIDTHxHEIGHT for images of another canvas of the
    built-in dataset.
    """
    from nextstep_jax import checkpoints
    from nextstep_jax.generation.load import builtin_checkpoint
    from nextstep_jax.rewards.cache import CachedReward
    from nextstep_jax.rewards.combine import RewardTerm
    from nextstep_jax.rewards.loading import open_reward, parse_weighted
    from nextstep_jax.training.candidates import make_candidates, read_prompts

    asked = [prompt for spec in prompts for prompt in read_prompts(spec)]
    terms = []
    for text in rewards:
        weight, name = parse_weighted(text)
        reward = open_reward(name) if cache is None else CachedReward(open_reward(name), cache)
        terms.append(RewardTerm(reward, weight, "z_score" if len(rewards) > 1 else "none"))
    pipeline = load_pipeline(checkpoint, dtype)
    report = make_candidates(
        pipeline,
        asked,
        terms,
        out,
        per_prompt=per_prompt,
        seed=seed,
        settings=pipeline.settings(any(prompt.images for prompt in asked), **changes),
        model=checkpoints.digest_of(checkpoint or builtin_checkpoint()),
        shard_prompts=shard_prompts,
        progress=not as_json,
    )
    if as_json:
        click.echo(json.dumps(report))
        return
    skipped = ", ".join(f"{count} {reason}" for reason, count in report["skipped"].items()) or "none"
    click.echo(f"{out}: {report['samples']} of {report['prompts']} prompts, {report['images']} images; left out: {skipped}")


def _unused(unused: Mapping[str, Any]) -> str:
    return ", ".join(f"{things['count']} {reason}" for reason, things in unused.items())


def _in_words(found: Mapping[str, Any]) -> str:
    def listed(counts):
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    def measured(values):
        return (
            "-"
            if values is None
            else f"{values['min']} to {values['max']}, median {values['median']}, 95 % up to {values['p95']}"
        )

    images, texts = found["images"], found["captions"]
    lines = [f"{found['name']}: {found['samples']} samples, {found['examined']} looked at: {listed(found['kinds'])}"]
    lines.append(f"images    {images['count']} ({listed(images['formats'])}), {images['targets']} of them targets")
    lines += [f"  {name:8}{measured(images[name])}" for name in ("height", "width", "bytes")]
    lines.append(f"  aspect  {listed(images['aspect'])}")
    lines.append(f"captions  {texts['count']}")
    lines += [f"  {name:11}{measured(texts[name])}" for name in ("characters", "words")]
    lines += [f"variants  {listed(found['caption_variants'])}"] if found["caption_variants"] else []
    lines += [f"latents   {json.dumps(found['latents'])}"] if found.get("latents") else []
    lines += [f"unusable  {listed(found['skipped'])}"] if found["skipped"] else []
    for reason, things in found["unused"].items():
        names = things["names"][:3]
        more = f" and {things['count'] - len(names)} more" if things["count"] > len(names) else ""
        lines.append(f"not used  {things['count']} {reason}: {', '.join(names)}{more}")
    lines += [f"sheet     {found['sheet']}"] if "sheet" in found else []
    return "\n".join(lines)


@data.command()
@click.argument("directory")
@click.argument("out", type=PLACE)
@click.option("--checkpoint", required=True, metavar="DIR", help="The checkpoint whose image tokenizer encodes.")
@click.option(
    "--area", type=AREA, default=256, show_default=True, help="Side, in pixels, of the square whose area the images get."
)
@click.option("--square", is_flag=True, help="Crop to that square, instead of to the nearest of 17 aspect ratios.")
@click.option("--keep-size", is_flag=True, help="Neither crop nor resize: sides are multiples of 16 pixels already.")
@click.option(
    "--crop",
    default="center",
    show_default=True,
    type=click.Choice(["center", "random"]),
    help="Part of an image to keep.",
)
@click.option("--batch", type=_COUNT, default=8, show_default=True, help="Images per call.")
@click.option(
    "--dtype",
    default="bfloat16",
    show_default=True,
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Data type of the latents.",
)
@click.option("--threads", type=_COUNT, default=2, show_default=True, help="Threads that read images.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def encode(directory, out, checkpoint, area, square, keep_size, crop, batch, dtype, threads, as_json):
    """Encode the images of the dataset DIRECTORY into the dataset of latents OUT; after an interruption, the
    same command continues."""
    from nextstep_jax.data import encode as encoding

    encode_fn, encoder = image_encoder(checkpoint)
    counts = encoding.encode(
        directory,
        encode_fn,
        out,
        area=area,
        square=square,
        keep_size=keep_size,
        crop=crop,
        batch=batch,
        dtype=dtype,
        encoder=encoder,
        threads=threads,
        progress=not as_json,
    )
    click.echo(json.dumps(counts) if as_json else f"{out}: {counts['samples']} samples, {counts['images']} images encoded")


@data.command(
    cls=CurationCommand,
    context_settings=PASS_ON,
    help=f"""Filter, deduplicate and transform SOURCE by a recipe; OUT gets a dataset for each of its cuts, and a report.

After an interruption, the same command continues; after a change of thresholds, it measures nothing again. Settings are
changed with --config.KEY=VALUE.

{_SOURCE}""",
)
@click.argument("source")
@click.argument("out", type=PLACE)
@CURATION_CONFIG
@click.option("--endpoint", metavar="openai:URL#MODEL", default="", help="Language model for the recipe's questions.")
@click.option("--answers", metavar="FOLDER", help="Keep the model's answers here; what is there is not asked again.")
@click.option("--max-requests", type=_COUNT, metavar="N", help="Stop when a worker has made N requests.")
@click.option(
    "--workers",
    type=_COUNT,
    default=lambda: min(os.cpu_count() or 1, 16),
    show_default="one per core, up to 16",
    help="Processes.",
)
@click.option(
    "--beam",
    multiple=True,
    metavar="NAME=VALUE",
    help="Let Apache Beam run the jobs, with these pipeline options, e.g. runner=DataflowRunner.",
)
@click.option("--shard-samples", type=_COUNT, default=1000, show_default=True, help="Samples per shard.")
@click.option("--limit", type=_COUNT, metavar="N", help="Try the recipe on N samples, spread evenly.")
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def curate(
    ctx: click.Context,
    /,
    source,
    out,
    config,
    endpoint,
    answers,
    max_requests,
    workers,
    beam,
    shard_samples,
    limit,
    as_json,
    **reading,
):
    from nextstep_jax.data.curation import beam_job, job, recipe
    from nextstep_jax.data.worker_pool import map_jobs
    from nextstep_jax.launch.config_files import load_config, split_overrides

    settings = load_config(config).to_dict()
    for path, text in split_overrides(ctx.args)[1]:
        recipe.override(settings, path, text)
    asking = {"answers": answers, "max_requests": max_requests}
    recipe.with_endpoint(settings, endpoint, **{name: value for name, value in asking.items() if value is not None})
    report = job.curate(
        _open(source, **reading),
        recipe.read_recipe(settings),
        out,
        workers=workers,
        shard_samples=shard_samples,
        limit=limit,
        runner=beam_job.BeamRunner(beam) if beam else map_jobs,
        progress=not as_json,
    )
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False))
        return
    unusable = sum(report["unusable"]["reasons"].values())
    click.echo(f"{report['samples']} samples, {unusable} unusable, {report['duplicates']['count']} near-duplicates")
    for name, counts in report["cuts"].items():
        click.echo(f"{out / name}: {counts['written']} samples of {counts['kept']} kept")
    click.echo(f"{out / job.SHEET} shows what was kept and why not")


@data.command(help="Write subtitles for the videos of FOLDER that have none, by a Whisper model.")
@click.argument("folder", type=click.Path(path_type=pathlib.Path))
@click.option("--model", required=True, metavar="FOLDER", help="A Whisper model as CTranslate2 has it.")
@click.option("--language", metavar="CODE", help="What is spoken, such as en.  [default: found out]")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def transcribe(folder, model, language, as_json):
    from nextstep_jax.data.transcribe import transcribe

    counts = transcribe(folder, model, language, progress=not as_json)
    found = f"{counts['transcribed']} of {counts['videos']} videos transcribed, {counts['lines']} lines"
    click.echo(json.dumps(counts) if as_json else f"{folder}: {found}, {counts['skipped']} skipped")


def image_encoder(checkpoint: str) -> tuple[Callable, dict[str, Any]]:
    """The encoding function of a checkpoint's image tokenizer (posterior mean, scaled), and what identifies it."""
    import hashlib

    import jax

    from nextstep_jax import checkpoints
    from nextstep_jax.generation.load import load_image_tokenizer
    from nextstep_jax.generation.tokenizer import encode_means

    config, params = load_image_tokenizer(checkpoint)
    digests = [checkpoints.leaf_digest(leaf) for leaf in jax.tree.leaves(params)]
    encoder = {"image_tokenizer": hashlib.sha256("".join(digests).encode()).hexdigest()}
    return functools.partial(encode_means, config, params), encoder
