"""`nextstep-jax evaluate`: score what a model makes."""

import dataclasses
import pathlib
from typing import Any

import click

from nextstep_jax.cli_shared import (
    AREA,
    CHECKPOINT,
    DISTRIBUTED,
    DTYPE,
    MESH,
    SAMPLER,
    SEED,
    Group,
    Number,
    is_first_process,
    keep_compiled_programs,
    load_pipeline,
    require_writable,
    updating_bar,
)
from nextstep_jax.errors import InputError

_PATH = click.Path(path_type=pathlib.Path)
_JSON = click.option("--json", "json_file", type=_PATH, help="Also write the scores, with all they were made of, as JSON.")
_MODES = ["tf", "clean", "own"]
_WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
_BATCH = click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images per call.")


def _mode(default: str | None):
    """Options of what looks at sets of images."""
    decorators = [
        click.option(
            "--mode",
            type=click.Choice(_MODES),
            default=default,
            show_default=default is not None,
            help="Resizing of TensorFlow (torch-fidelity, ADM), of clean-fid, or this library's own features."
            + ("" if default else "  [default: tf with --inception, else no distance]"),
        ),
        click.option("--inception", type=_PATH, help=f"Weights of FID's network: {_WEIGHTS_NAME}, which you bring."),
        click.option("--unofficial", is_flag=True, help="Take other weights of that layout; the numbers are no FIDs."),
        click.option(
            "--features-of", type=_PATH, help="Checkpoint whose image tokenizer --mode own uses.  [default: built-in]"
        ),
    ]

    def apply(command):
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


@click.group(cls=Group)
def evaluate():
    """Score what a model makes."""


@evaluate.command(short_help="ShapeEval, in the built-in dataset's world.")
@CHECKPOINT
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=pathlib.Path),
    help="File of prompts, one per line.  [default: held-out ones]",
)
@click.option("--per-category", type=click.IntRange(min=1), help="Held-out prompts of each category.  [default: 40]")
@click.option(
    "--category", "categories", multiple=True, metavar="NAME", help="Only this category, such as stories; again for another."
)
@click.option(
    "--canvas",
    type=click.Choice(["64x64", "80x48", "48x80", "96x64", "64x96", "128x64"]),
    default="64x64",
    show_default=True,
    help="Width and height of the images asked for, in pixels.",
)
@SEED
@click.option("--sampler", type=SAMPLER, help="Flow sampler.  [default: the checkpoint's]")
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps per token.  [default: the checkpoint's]")
@click.option(
    "--final-steps",
    type=click.IntRange(min=0),
    help="Steps of an image's last tokens.  [default: the checkpoint's]",
)
@click.option("--cfg", type=Number(min=1), help="Guidance, 1 for none.  [default: the checkpoint's]")
@click.option("--guidance-start", type=Number(0, 1), help="Flow time from which it applies.  [default: the checkpoint's]")
@click.option("--guidance-end", type=Number(0, 1), help="Flow time up to which it applies.  [default: the checkpoint's]")
@click.option("--jacobi-window", type=click.IntRange(min=1), help="Tokens of a step.  [default: the checkpoint's]")
@click.option("--jacobi-tolerance", type=Number(0, 1), help="Change with which it accepts them.  [default: the checkpoint's]")
@click.option("--thinking/--no-thinking", default=None, help="Think before drawing.  [default: the checkpoint's]")
@click.option("--thinking-temperature", type=Number(min=0), help="Of these thoughts.  [default: the checkpoint's]")
@DTYPE
@MESH
@DISTRIBUTED
@_JSON
@click.option("--sheet", type=_PATH, metavar="PAGE.html", help="Also write a page of prompts, images and verdicts.")
def shapes(
    checkpoint, prompts_file, per_category, categories, canvas, seed, dtype, mesh, distributed, json_file, sheet, **changes
):
    """ShapeEval: images, edits and captions of the built-in dataset's world, judged by reading their pixels."""
    from nextstep_jax.data.files import write_bytes, write_json
    from nextstep_jax.evaluation import shapes as shape_eval
    from nextstep_jax.evaluation.contact_sheet import render_sheet, shapes_cards
    from nextstep_jax.evaluation.responses import generate_responses
    from nextstep_jax.evaluation.score_files import shapes_score

    for path in (json_file, sheet):
        if path is not None:
            require_writable(path)
    width, height = map(int, canvas.split("x"))
    if prompts_file is not None:
        if categories or per_category is not None:
            option = "--category" if categories else "--per-category"
            raise InputError(f"{option} chooses among held-out prompts and cannot go with --prompts")
        prompts = shape_eval.read_prompts(prompts_file)
    else:
        count = per_category or shape_eval.PER_CATEGORY
        prompts = shape_eval.default_prompts(count, categories=categories, seed=seed, canvas=(width, height))
    pipeline = load_pipeline(checkpoint, dtype, mesh, distributed).with_overrides(changes)
    made_with = _made_with(checkpoint) | {
        "seed": seed,
        "dtype": dtype,
        "canvas": canvas,
        "settings": dataclasses.asdict(pipeline.settings()),
    }
    with updating_bar("generating", unit="prompt") as update:
        responses = generate_responses(pipeline, prompts, seed, update, (width, height))
    if not is_first_process():
        return
    report = shape_eval.evaluate(prompts, responses)
    if json_file is not None:
        write_json(json_file, shapes_score(prompts, report, made_with))
    if sheet is not None:
        write_bytes(sheet, render_sheet(shapes_cards(prompts, responses, report), "ShapeEval", len(prompts)).encode())
    click.echo(shape_eval.format_report(report))


@evaluate.command(short_help="PSNR, SSIM and rFID of an image tokenizer.")
@click.argument("source")
@CHECKPOINT
@click.option(
    "--area", type=AREA, default=256, show_default=True, help="Side, in pixels, of the square whose area the images get."
)
@click.option(
    "--protocol",
    type=click.Choice(["ours", "llamagen"]),
    default="ours",
    show_default=True,
    help="ours: aspect-ratio buckets, the posterior's mean. llamagen: ADM's center crop, a draw from the posterior.",
)
@SEED
@click.option("--limit", type=click.IntRange(min=1), help="Images to reconstruct.  [default: all]")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images per call.")
@_mode(None)
@_JSON
def tokenizer(source, checkpoint, area, protocol, seed, limit, batch, mode, inception, unofficial, features_of, json_file):
    """PSNR, SSIM and rFID of the images of SOURCE after encoding and decoding; and, of 64-pixel images, how many ShapeEval
    still reads the same.

    SOURCE is what `nextstep-jax data build` takes: a folder (its images need no captions here), tars, a built dataset,
    shapes:pair:heldout:420. SSIM is given in both conventions in use, whatever the protocol.
    """
    from nextstep_jax.data.files import write_json
    from nextstep_jax.data.images import buckets
    from nextstep_jax.data.sources import open_source
    from nextstep_jax.evaluation import tokenizer as tokenizers
    from nextstep_jax.evaluation.fid.features import MODES
    from nextstep_jax.evaluation.score_files import tokenizer_score
    from nextstep_jax.generation.load import load_image_tokenizer

    if json_file is not None:
        require_writable(json_file)
    buckets(area)
    mode = mode or ("tf" if inception is not None else None)
    opened = open_source(source)
    keep_compiled_programs()
    extractor = _extractor(mode, inception, unofficial, features_of)
    config, params = load_image_tokenizer(checkpoint)
    how = tokenizers.PROTOCOLS[protocol]
    if how.sample:
        reconstruct = tokenizers.sampled_reconstruction(config, params, seed)
    else:
        reconstruct = tokenizers.reconstruction(config, params)
    skipped: list[str] = []
    total = limit or len(opened)
    originals = tokenizers.source_images(opened, area, limit or 2**62, skipped, crop=how.crop)
    try:
        with updating_bar("reconstructing", unit="image") as update:
            scores = tokenizers.evaluate(_counted(originals, total, update), reconstruct, batch, extractor)
    finally:
        _warn_of_skipped(skipped, source)
    scores["skipped"] = len(skipped)
    if json_file is not None:
        made_with = _made_with(checkpoint) | {
            "files": {str(source): opened.identity()},
            "settings": {"protocol": protocol, "area": area, "limit": limit, "mode": mode},
            "seed": seed if how.sample else None,
            "weights_sha256": None if extractor is None else extractor.weights_sha256,
        }
        write_json(json_file, tokenizer_score(scores, made_with))
    click.echo(f"{scores['n']} images, {how.description}")
    click.echo(f"PSNR {scores['psnr']:.2f} dB")
    if scores["ssim"] is not None:
        of = _of(scores["ssim_n"], scores["n"])
        click.echo(f"SSIM {scores['ssim']:.4f} (Gaussian 11x11, range 1){of}")
        click.echo(f"SSIM {scores['ssim_llamagen']:.4f} (uniform 7x7, range 2: LlamaGen){of}")
    if mode is not None:
        click.echo(f"r{_title(MODES[mode], extractor, unofficial)} {scores['rfid']:.4f}")
    if scores["scene_accuracy"] is not None:
        click.echo(f"scene accuracy {scores['scene_accuracy']:.3f}{_of(scores['scene_n'], scores['n'])}")


@evaluate.command(short_help="FID, KID and Inception score of a folder.")
@click.argument("images", type=_PATH)
@click.argument("reference", type=_PATH)
@_mode("tf")
@click.option("--kid-size", type=click.IntRange(min=2), default=1000, show_default=True, help="Images of a subset of KID.")
@_BATCH
@SEED
@_JSON
def fid(images, reference, mode, inception, unofficial, features_of, kid_size, batch, seed, json_file):
    """FID, KID and Inception score of the folder IMAGES against REFERENCE.

    REFERENCE is another folder, or a file of `evaluate statistics` (without KID). Use PNG files: JPEG alters the numbers.
    """
    from nextstep_jax.data.files import write_json
    from nextstep_jax.evaluation.fid import statistics as distances

    if json_file is not None:
        require_writable(json_file)
    keep_compiled_programs()
    stored = None if reference.is_dir() else distances.load_statistics(reference)
    sources = {path: _open_folder(path) for path in ([images] if stored else [images, reference])}
    extractor = _extractor(mode, inception, unofficial, features_of)
    found, counts = {}, {}
    for path, folder in sources.items():
        found[path], counts[str(path)] = _look(folder, path, extractor, batch, None)
    ours = distances.statistics(found[images].features, mode, extractor.weights_sha256)
    theirs = stored or distances.statistics(found[reference].features, mode, extractor.weights_sha256)
    title = _title(extractor.title, extractor, unofficial)
    numbers: dict[str, Any] = {title: distances.frechet_distance(ours, theirs)}
    click.echo(f"{ours.num_images} images against {theirs.num_images}")
    click.echo(f"{title} {numbers[title]:.4f}")
    if ours.num_images <= len(ours.mean) or theirs.num_images <= len(theirs.mean):
        click.echo(f"warning: fewer images than the {len(ours.mean)} features: the distance is far too high", err=True)
    if stored is None:
        mean, deviation = distances.kernel_distance(found[images].features, found[reference].features, size=kid_size, seed=seed)
        numbers |= {"KID": mean, "KID deviation": deviation}
        click.echo(f"KID {mean:.6f} +- {deviation:.6f}")
    if found[images].logits is not None:
        mean, deviation = distances.inception_score(found[images].logits, seed=seed)
        numbers |= {"Inception score": mean, "Inception score deviation": deviation}
        click.echo(f"Inception score {mean:.3f} +- {deviation:.3f}")
    if json_file is not None:
        made_with = {"mode": mode, "weights_sha256": extractor.weights_sha256, "kid_size": kid_size, "seed": seed}
        sets = {str(images): ours.num_images, str(reference): theirs.num_images}
        write_json(json_file, {"numbers": numbers, "images": sets, "skipped": counts, "made_with": made_with})


@evaluate.command(short_help="A folder's statistics, for evaluate fid.")
@click.argument("images", type=_PATH)
@click.argument("out", type=_PATH)
@_mode("tf")
@click.option(
    "--crop", type=click.IntRange(min=1), metavar="SIDE", help="Cut to a center square of SIDE pixels first, as ADM does."
)
@_BATCH
def statistics(images, out, mode, inception, unofficial, features_of, crop, batch):
    """Write what FID needs to know of the folder IMAGES to OUT.npz: a reference for `evaluate fid`."""
    from nextstep_jax.evaluation.fid.statistics import save_statistics
    from nextstep_jax.evaluation.fid.statistics import statistics as compute

    if out.suffix != ".npz":
        raise InputError(f"{out}: expected a name that ends in .npz")
    require_writable(out)
    keep_compiled_programs()
    folder = _open_folder(images)
    extractor = _extractor(mode, inception, unofficial, features_of)
    found, _ = _look(folder, images, extractor, batch, crop)
    computed = compute(found.features, mode, extractor.weights_sha256)
    save_statistics(out, computed)
    click.echo(f"{out}: {computed.num_images} images, mode {mode}")


def _extractor(mode: str | None, inception: pathlib.Path | None, unofficial: bool, features_of: pathlib.Path | None):
    """What looks at images, by the options of `_mode`; None without a mode. InputError names an option of another mode."""
    if features_of is not None and mode != "own":
        raise InputError("--features-of needs --mode own")
    if unofficial and inception is None:
        raise InputError("--unofficial needs --inception, whose weights it is about")
    if inception is not None and mode == "own":
        raise InputError("--inception cannot go with --mode own, which has features of its own")
    if mode is None:
        return None
    from nextstep_jax.checkpoints.params import digest_of
    from nextstep_jax.conversion.inception import read_inception
    from nextstep_jax.evaluation.fid.features import inception_extractor, own_extractor
    from nextstep_jax.generation.load import builtin_checkpoint, load_image_tokenizer

    if mode == "own":
        return own_extractor(*load_image_tokenizer(features_of), digest_of(features_of or builtin_checkpoint()))
    if inception is None:
        raise InputError(
            f"--mode {mode} needs --inception {_WEIGHTS_NAME}, which the package does not have; --mode own needs no weights"
        )
    weights = read_inception(inception, unofficial)
    return inception_extractor(mode, weights.params, weights.sha256)


def _title(title: str, extractor: Any, unofficial: bool) -> str:
    """What a distance is called: by other weights it is no FID."""
    return f"{title} with weights {extractor.weights_sha256[:8]}" if unofficial and extractor.mode != "own" else title


def _open_folder(path: pathlib.Path):
    from nextstep_jax.data.image_folder import FolderSource

    if not path.is_dir():
        raise InputError(f"{path}: " + ("not a folder" if path.exists() else "there is no such folder"))
    return FolderSource(path)


def _look(folder: Any, path: pathlib.Path, extractor: Any, batch: int, crop: int | None):
    """What the network says of a folder's images, and how many could not be read."""
    import numpy as np

    from nextstep_jax.data.images import adm_center_crop
    from nextstep_jax.evaluation.tokenizer import source_images

    skipped: list[str] = []
    cut = (lambda image, _: image) if crop is None else adm_center_crop
    pictures = source_images(folder, crop or 0, len(folder), skipped, crop=cut)
    with updating_bar(f"looking at {path.name}", unit="image") as update:
        found = extractor(_counted(map(np.asarray, pictures), len(folder), update), batch)
    _warn_of_skipped(skipped, path)
    return found, len(skipped)


def _counted(pictures: Any, total: int, update: Any) -> Any:
    """The images, each reported to a progress bar."""
    for number, picture in enumerate(pictures, 1):
        yield picture
        update(min(number, total), total)


def _warn_of_skipped(skipped: list[str], source: Any) -> None:
    if skipped:
        click.echo(f"warning: {len(skipped)} of {source} cannot be read and are not counted, first: {skipped[0]}", err=True)


def _made_with(checkpoint: pathlib.Path | None) -> dict[str, Any]:
    """The version and the checkpoint, as a score's "export" names them."""
    from nextstep_jax import __version__
    from nextstep_jax.checkpoints.params import digest_of
    from nextstep_jax.generation.load import builtin_checkpoint

    folder = builtin_checkpoint() if checkpoint is None else checkpoint
    return {"version": __version__, "checkpoint": {"name": folder.resolve().name, "digest": digest_of(folder)}}


def _of(part: int, whole: int) -> str:
    """Over how many images a mean goes, where not over all."""
    return f" over {part} of them" if part < whole else ""
