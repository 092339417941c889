"""The `nextstep-jax` command. Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 damaged data."""

import contextlib
import json
import pathlib
import sys
import time

import click

from nextstep_jax import __version__
from nextstep_jax.cli_data import data
from nextstep_jax.cli_evaluate import evaluate
from nextstep_jax.cli_shared import keep_compiled_programs, load_pipeline, progress_bar, readable_bytes, require_writable
from nextstep_jax.errors import InputError, NextStepError

_BEGAN = time.perf_counter()

# jax and the networks are imported inside the commands: `--help` and bad usage answer at once.


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="nextstep-jax")
def cli():
    """NextStep-1 in JAX: images, edits and text from one causal transformer."""


cli.add_command(data)
cli.add_command(evaluate)


def main() -> None:
    """Entry point: every error a person can act on is one line and an exit code, never a traceback."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NextStepError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


# --- converting -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=pathlib.Path))
@click.option("--vae", help="Folder of the image tokenizer, if it is not inside SRC.")
@click.option("--text-tokenizer", help="Folder of the text tokenizer, if it is not inside SRC.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "keep"]), default="keep", show_default=True)
def convert(src: str, dst: pathlib.Path, vae: str | None, text_tokenizer: str | None, dtype: str):
    """Convert released PyTorch weights into a checkpoint folder.

    SRC is a folder (NextStep-1, NextStep-1.1, a training checkpoint, Qwen2.5, or an image tokenizer alone) or a hub name
    such as stepfun-ai/NextStep-1.1, which needs the "hub" extra.
    """
    from nextstep_jax.conversion.from_torch import convert as run

    with progress_bar("converting") as update:
        result = run(src, dst, vae=vae, text_tokenizer=text_tokenizer, dtype=dtype, progress=update)
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{dst}: {result.parameters:,} parameters, {readable_bytes(result.nbytes)}")
    if result.dropped:
        click.echo(f"not converted, because it is computed: {', '.join(result.dropped)}")


@cli.command()
@click.argument("src", type=click.Path(path_type=pathlib.Path))
@click.argument("dst", type=click.Path(path_type=pathlib.Path))
def export(src: pathlib.Path, dst: pathlib.Path):
    """Write a checkpoint folder SRC as safetensors in the released layout."""
    from nextstep_jax.conversion.to_torch import export as run

    with progress_bar("exporting") as update:
        run(src, dst, progress=update)
    click.echo(str(dst))


@cli.command()
@click.argument("folder", type=click.Path(path_type=pathlib.Path))
@click.option("--json", "json_file", type=click.Path(path_type=pathlib.Path), help="Also write the rows as JSON.")
def parity(folder: pathlib.Path, json_file: pathlib.Path | None):
    """Compare this library, array by array, with numbers of the PyTorch releases. Exit 1 on any miss."""
    from nextstep_jax.conversion.parity import run_parity

    if json_file is not None:
        require_writable(json_file)
    keep_compiled_programs()
    report = run_parity(folder, lambda part: click.echo(f"comparing {part}", err=True))
    click.echo(report.table())
    if json_file is not None:
        from nextstep_jax.data.files import write_bytes

        write_bytes(json_file, (report.to_json() + "\n").encode())
    click.echo(f"{len(report.rows)} arrays compared, {len(report.misses)} missed")
    sys.exit(1 if report.misses else 0)


@cli.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=pathlib.Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(checkpoint: pathlib.Path | None, as_json: bool):
    """Sizes, parameters by part and memory by dtype of a checkpoint (default: the built-in model)."""
    from nextstep_jax.generation.load import builtin_checkpoint, describe

    values = describe(checkpoint or builtin_checkpoint())
    if as_json:
        click.echo(json.dumps(values))
        return
    for section, rows in values.items():
        if not isinstance(rows, dict):
            click.echo(f"{section}: {rows}")
            continue
        click.echo(f"{section}:")
        for name, value in rows.items():
            shown = readable_bytes(value) if section.startswith("memory") else f"{value:,}" if isinstance(value, int) else value
            click.echo(f"  {name:<24} {shown}")


# --- generating -------------------------------------------------------------------------------------------------------


def _generation_options(command):
    """Options that `generate` and `edit` share."""
    options = [
        click.option("--checkpoint", type=click.Path(path_type=pathlib.Path), help="Checkpoint folder [built-in model]."),
        click.option("--out", type=click.Path(path_type=pathlib.Path), default="nextstep.png", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--n", "count", type=int, default=1, show_default=True, help="Images per prompt."),
        click.option("--height", type=int, help="Pixels."),
        click.option("--width", type=int, help="Pixels."),
        click.option("--aspect", help="width:height, one of the 17 buckets, e.g. 16:9."),
        click.option("--steps", type=int, help="Sampling steps per token [checkpoint's]."),
        click.option("--last-steps", type=int, help="Steps of an image's last tokens, falling from --steps; 0 for no change."),
        click.option("--cfg", type=float, help="Guidance, 1 for none [checkpoint's]."),
        click.option("--schedule", help="Guidance along the tokens: constant, linear or rising [checkpoint's]."),
        click.option("--sampler", help="august2025, 1.1, sde, cps, ode, heun or ab2 [checkpoint's]."),
        click.option("--shift", type=float, help="Time shift [checkpoint's]."),
        click.option("--noise-level", type=float, help="Of the sde and cps samplers [checkpoint's]."),
        click.option("--use-norm/--no-norm", default=None, help="Normalize each sampled token [checkpoint's]."),
        click.option("--think/--no-think", default=None, help="Write a plan first, kept with the image [checkpoint's]."),
        click.option("--positive", help="Text appended to the prompt [checkpoint's]."),
        click.option("--negative", help="Text the unconditional branch reads [checkpoint's]."),
        click.option("--dtype", type=click.Choice(["float32", "bfloat16", "int8"]), help="Of the weights [as stored]."),
        click.option("--preview", type=click.Path(path_type=pathlib.Path), help="Keep the partial image in this file."),
        click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON."),
        click.option("--profile", is_flag=True, help="Print where the time went."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("prompts", nargs=-1, required=True)
@_generation_options
def generate(prompts: tuple[str, ...], **options):
    """Draw an image of each PROMPT."""
    with _profile(options["profile"]):
        pipeline, settings, size = _prepare(options, edit=False)
        with _chunk_bar(options, pipeline) as on_chunk:
            images = pipeline.generate(
                prompts, n=options["count"], seed=options["seed"], settings=settings, on_chunk=on_chunk, **size
            )
        _save(images, options)


@cli.command()
@click.argument("image", type=click.Path(path_type=pathlib.Path))
@click.argument("instruction")
@click.option("--image", "more", multiple=True, type=click.Path(path_type=pathlib.Path), help="Further input images.")
@click.option("--image-cfg", type=float, help="Guidance towards the input images, 1 for none [checkpoint's].")
@_generation_options
def edit(image: pathlib.Path, instruction: str, more: tuple[pathlib.Path, ...], **options):
    """Change IMAGE as INSTRUCTION says."""
    with _profile(options["profile"]):
        pipeline, settings, size = _prepare(options, edit=True)
        sources = pipeline.load_images([image, *more], settings)
        for path, pixels in zip((image, *more), sources, strict=True):
            click.echo(f"{path}: read at {pixels.shape[1]}x{pixels.shape[0]} pixels", err=True)
        with _chunk_bar(options, pipeline) as on_chunk:
            images = pipeline.edit(
                sources, instruction, n=options["count"], seed=options["seed"], settings=settings, on_chunk=on_chunk, **size
            )
        _save(images, options)


@cli.command()
@click.argument("prompt", default="")
@click.option("--checkpoint", type=click.Path(path_type=pathlib.Path), help="Checkpoint folder [built-in model].")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=pathlib.Path), help="Images before the prompt.")
@click.option("--max-tokens", type=int, default=256, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 always takes the most likely.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "int8"]), help="Of the weights [as stored].")
@click.option("--interleave", type=click.Path(path_type=pathlib.Path), help="Folder for images drawn between the text.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@click.option("--profile", is_flag=True, help="Print where the time went.")
def write(prompt: str, checkpoint, images, max_tokens, temperature, top_p, seed, dtype, interleave, as_json, profile):
    """Continue PROMPT with text, or describe --image."""
    if not prompt.strip() and not images:
        raise InputError("a prompt must not be empty")
    if interleave is not None:
        require_writable(interleave / "image-0.png")
    how = dict(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with _profile(profile):
        pipeline = load_pipeline(checkpoint, dtype)
        if interleave is None:
            parts = [pipeline.write(prompt, images, **how)]
        else:
            from nextstep_jax.generation.interleaved import compose

            parts = compose(pipeline, prompt, images, **how)
    shown = []
    for part in parts:
        if isinstance(part, str):
            shown.append({"text": part})
        else:
            path = interleave / f"image-{part.record['index']}.png"
            part.save(path)
            shown.append({"image": str(path)})
    if as_json:
        click.echo(json.dumps({"prompt": prompt, "seed": seed, "parts": shown}))
    else:
        click.echo("\n".join(next(iter(part.values())) for part in shown))


# --- helpers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _profile(wanted: bool):
    """Print, after what is inside, the seconds of its parts; "import" counts from the start of this module."""
    if not wanted:
        yield
        return
    import nextstep_jax.generation.pipeline  # noqa: F401  (timed here as a part of its own)
    from nextstep_jax.generation import profiling

    with profiling.listen() as profile:
        profile.add("import", time.perf_counter() - _BEGAN)
        start = time.perf_counter()
        yield
        profile.add("the rest", time.perf_counter() - start - sum(profile.seconds.values()) + profile.seconds["import"])
    click.echo(profile.table(), err=True)


def _prepare(options: dict, edit: bool):
    """(pipeline, settings, size): everything that can be refused is refused before anything is drawn."""
    require_writable(options["out"])
    if options["preview"] is not None:
        require_writable(options["preview"])
    pipeline = load_pipeline(options["checkpoint"], options["dtype"])
    names = ("cfg", "image_cfg", "schedule", "sampler", "steps", "last_steps", "shift", "noise_level", "think")
    names += ("positive", "negative")
    changes = {name: options[name] for name in names if name in options}
    settings = pipeline.settings(edit, normalize_tokens=options["use_norm"], **changes)
    size = {name: options[name] for name in ("height", "width", "aspect")}
    if not edit or any(size.values()):
        pipeline.grid(settings, **size)
    return pipeline, settings, size


def _save(images: list, options: dict) -> None:
    paths = _paths(options["out"], len(images))
    from nextstep_jax.generation.profiling import part

    with part("save"):
        for path, image in zip(paths, images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    if options["as_json"]:
        records = [{"path": str(path)} | image.record for path, image in zip(paths, images, strict=True)]
        click.echo(json.dumps(records))
    else:
        click.echo("\n".join(map(str, paths)))


def _paths(out: pathlib.Path, count: int) -> list[pathlib.Path]:
    """PATH for one image; PATH-0, PATH-1, … for several; numbered files in PATH if it is a folder."""
    if out.is_dir():
        return [out / f"image-{i}.png" for i in range(count)]
    out = out if out.suffix else out.with_suffix(".png")
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]


@contextlib.contextmanager
def _chunk_bar(options: dict, pipeline):
    """A progress bar over image tokens that also keeps the preview file: yields on_chunk, None if nobody watches."""
    from tqdm import tqdm

    from nextstep_jax.data.images import save_png

    watched = sys.stderr.isatty() or options["preview"] is not None
    with tqdm(desc="tokens", unit="tok", file=sys.stderr, disable=None) as bar:

        def on_chunk(done: int, total: int, partial) -> None:
            bar.total = total
            bar.update(done - bar.n if done >= bar.n else done)
            if options["preview"] is not None:
                save_png(options["preview"], partial()[0])

        yield on_chunk if watched else None
