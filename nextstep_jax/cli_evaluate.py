"""`nextstep-jax evaluate`: score what a model makes."""

import json
import pathlib

import click

from nextstep_jax.cli_shared import (
    AREA,
    CHECKPOINT,
    DTYPE,
    SAMPLER,
    SEED,
    Group,
    Number,
    keep_compiled_programs,
    load_pipeline,
    require_writable,
    updating_bar,
)


@click.group(cls=Group)
def evaluate():
    """Score what a model makes."""


@evaluate.command()
@CHECKPOINT
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=pathlib.Path),
    help="File of prompts, one per line.  [default: held-out ones]",
)
@click.option("--per-category", type=click.IntRange(min=1), help="Held-out prompts of each category.  [default: 40]")
@SEED
@click.option("--sampler", type=SAMPLER, help="Flow sampler.  [default: the checkpoint's]")
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps per token.  [default: the checkpoint's]")
@click.option(
    "--final-steps",
    type=click.IntRange(min=0),
    help="Steps of an image's last tokens.  [default: the checkpoint's]",
)
@click.option("--cfg", type=Number(min=1), help="Guidance, 1 for none.  [default: the checkpoint's]")
@click.option("--thinking/--no-thinking", default=None, help="Think before drawing.  [default: the checkpoint's]")
@DTYPE
@click.option(
    "--json", "json_file", type=click.Path(path_type=pathlib.Path), help="Also write the scores and failures as JSON."
)
def shapes(checkpoint, prompts_file, per_category, seed, dtype, json_file, **changes):
    """ShapeEval: images, edits and captions of the built-in dataset's world, judged by reading their pixels."""
    from nextstep_jax.data.files import write_json
    from nextstep_jax.evaluation import shapes as shape_eval
    from nextstep_jax.evaluation.responses import generate_responses

    if json_file is not None:
        require_writable(json_file)
    if prompts_file is not None:
        prompts = shape_eval.read_prompts(prompts_file)
    else:
        prompts = shape_eval.default_prompts(per_category or shape_eval.PER_CATEGORY, seed=seed)
    pipeline = load_pipeline(checkpoint, dtype).with_overrides(changes)
    with updating_bar("generating", unit="prompt") as update:
        responses = generate_responses(pipeline, prompts, seed, update)
    report = shape_eval.evaluate(prompts, responses)
    if json_file is not None:
        write_json(json_file, report)
    click.echo(shape_eval.format_report(report))


@evaluate.command()
@click.argument("source")
@CHECKPOINT
@click.option(
    "--area", type=AREA, default=256, show_default=True, help="Side, in pixels, of the square whose area the images get."
)
@click.option("--limit", type=click.IntRange(min=1), default=500, show_default=True, help="Images to reconstruct.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images per call.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tokenizer(source, checkpoint, area, limit, batch, as_json):
    """PSNR and SSIM of the images of SOURCE after encoding and decoding; and, of 64-pixel images, how many ShapeEval still
    reads the same.

    SOURCE is what `nextstep-jax data build` takes: a folder, tars, a built dataset, shapes:pair:heldout:420.
    """
    from nextstep_jax.data.images import buckets
    from nextstep_jax.data.sources import open_source
    from nextstep_jax.evaluation.tokenizer import evaluate, reconstruction, source_images
    from nextstep_jax.generation.load import load_image_tokenizer

    buckets(area)
    keep_compiled_programs()
    skipped: list[str] = []
    originals = source_images(open_source(source), area, limit, skipped)
    scores = evaluate(originals, reconstruction(*load_image_tokenizer(checkpoint)), batch) | {"skipped": len(skipped)}
    if skipped:
        click.echo(f"warning: {len(skipped)} of {source} cannot be read and are not counted, first: {skipped[0]}", err=True)
    if as_json:
        click.echo(json.dumps(scores))
        return
    click.echo(f"{scores['n']} images, PSNR {scores['psnr']:.2f} dB")
    if scores["ssim"] is not None:
        click.echo(f"SSIM {scores['ssim']:.4f}{_of(scores['ssim_n'], scores['n'])}")
    if scores["scene_accuracy"] is not None:
        click.echo(f"scene accuracy {scores['scene_accuracy']:.3f}{_of(scores['scene_n'], scores['n'])}")


def _of(part: int, whole: int) -> str:
    """Over how many images a mean goes, where not over all."""
    return f" over {part} of them" if part < whole else ""
