"""The verbs that run a model: generate, edit, complete and caption."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from nextstep_jax.cli_shared import (
    CHECKPOINT,
    DISTRIBUTED,
    DTYPE,
    MESH,
    SAMPLER,
    SCHEDULE,
    SEED,
    Command,
    Number,
    is_first_process,
    load_pipeline,
    make_folder,
    require_writable,
    updating_bar,
)
from nextstep_jax.errors import InputError

if TYPE_CHECKING:
    from nextstep_jax.generation.loaded_model import PartialImages

_BEGAN = time.perf_counter()
_SIDE = click.IntRange(min=1)


def _generation_options(command):
    """Options that `generate` and `edit` share, named after the fields of GenerationConfig."""
    options = [
        CHECKPOINT,
        click.option(
            "--out",
            type=click.Path(path_type=pathlib.Path),
            default="nextstep.png",
            show_default=True,
            help="File, in the format of its name (.png, .jpg, .jpeg, .webp), or an existing folder.",
        ),
        SEED,
        click.option("--n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Images per prompt."),
        click.option("--height", type=_SIDE, help="Image height in pixels."),
        click.option("--width", type=_SIDE, help="Image width in pixels."),
        click.option("--aspect", metavar="W:H", help="Aspect ratio instead, e.g. 16:9; the nearest bucket is taken."),
        click.option("--steps", type=click.IntRange(min=1), help="Sampling steps per token.  [default: the checkpoint's]"),
        click.option(
            "--final-steps",
            "final_steps",
            type=click.IntRange(min=0),
            help="Steps of an image's last tokens, falling from --steps; 0 for no change.",
        ),
        click.option("--cfg", type=Number(min=1), help="Guidance towards the prompt, 1 for none.  [default: the checkpoint's]"),
        click.option("--schedule", type=SCHEDULE, help="How guidance changes along the tokens.  [default: the checkpoint's]"),
        click.option(
            "--guidance-start",
            type=Number(0, 1),
            help="Flow time from which guidance applies; 0 is noise, 1 the image.  [default: the checkpoint's]",
        ),
        click.option(
            "--guidance-end", type=Number(0, 1), help="Flow time up to which it applies.  [default: the checkpoint's]"
        ),
        click.option("--sampler", type=SAMPLER, help="Flow sampler.  [default: the checkpoint's]"),
        click.option(
            "--shift",
            type=Number(min=0, min_open=True),
            help="Shift of the sampling times towards noise.  [default: the checkpoint's]",
        ),
        click.option(
            "--noise-level", type=Number(0, 1), help="Noise of the sde and cps samplers.  [default: the checkpoint's]"
        ),
        click.option(
            "--normalize-tokens/--no-normalize-tokens",
            default=None,
            help="Normalize each sampled token.  [default: the checkpoint's]",
        ),
        click.option(
            "--thinking/--no-thinking",
            default=None,
            help="Think in text before drawing; the text is kept with the image.  [default: the checkpoint's]",
        ),
        click.option(
            "--thinking-temperature",
            type=Number(min=0),
            help="Of these thoughts, 0 for the most likely ones.  [default: the checkpoint's]",
        ),
        click.option(
            "--jacobi-window",
            type=click.IntRange(min=1),
            help="Image tokens that a step works on at once, 1 for one after another.  [default: the checkpoint's]",
        ),
        click.option(
            "--jacobi-tolerance",
            type=Number(0, 1),
            help="Relative change of a token with which those after it are accepted.  [default: the checkpoint's]",
        ),
        click.option("--prompt-suffix", help="Text appended to the prompt.  [default: the checkpoint's]"),
        click.option("--negative-prompt", help="Text that guidance leads away from.  [default: the checkpoint's]"),
        DTYPE,
        MESH,
        DISTRIBUTED,
        click.option(
            "--preview", type=click.Path(path_type=pathlib.Path), help="While it is drawn, keep the partial image in this file."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the images' records as JSON."),
        click.option("--profile", is_flag=True, help="Print how long each part took."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=Command)
@click.argument("prompts", nargs=-1, required=True)
@click.option(
    "--rewrite",
    metavar="openai:URL#MODEL",
    help="Let a language model make the prompts richer first; its key is taken from OPENAI_API_KEY.",
)
@_generation_options
def generate(prompts: tuple[str, ...], rewrite: str | None, **options):
    """Draw an image of each PROMPT."""
    with _profile(options["profile"]):
        endpoint = None
        if rewrite is not None:
            if options["distributed"]:
                raise InputError("--rewrite does not go with --distributed: each process would be answered something else")
            from nextstep_jax.chat import ChatEndpoint

            endpoint = ChatEndpoint(rewrite)  # refuses an address before the model is loaded
        pipeline, settings, size = _prepare(options, edit=False)
        rewritten = list(prompts)
        if endpoint is not None:
            from nextstep_jax.generation.rewriting import rewrite_prompts

            rewritten = rewrite_prompts(prompts, endpoint)
        with _chunk_bar(options) as on_chunk:
            images = pipeline.generate(
                rewritten, n=options["count"], seed=options["seed"], settings=settings, on_chunk=on_chunk, **size
            )
        if rewrite is not None:
            for i, image in enumerate(images):
                image.record.update(original_prompt=prompts[i // options["count"]], rewritten_by=rewrite)
        _save(images, options)


@click.command(cls=Command)
@click.argument("image", type=click.Path(path_type=pathlib.Path))
@click.argument("instruction")
@click.option("--image", "more", multiple=True, type=click.Path(path_type=pathlib.Path), help="Further input images.")
@click.option(
    "--image-cfg", type=Number(min=1), help="Guidance towards the input images, 1 for none.  [default: the checkpoint's]"
)
@_generation_options
def edit(image: pathlib.Path, instruction: str, more: tuple[pathlib.Path, ...], **options):
    """Change IMAGE as INSTRUCTION says."""
    with _profile(options["profile"]):
        pipeline, settings, size = _prepare(options, edit=True)
        sources = pipeline.load_images([image, *more], settings)
        for path, pixels in zip((image, *more), sources, strict=True):
            click.echo(f"{path}: read at {pixels.shape[1]}x{pixels.shape[0]} pixels", err=True)
        with _chunk_bar(options) as on_chunk:
            images = pipeline.edit(
                sources, instruction, n=options["count"], seed=options["seed"], settings=settings, on_chunk=on_chunk, **size
            )
        _save(images, options)


def _text_options(command):
    """Options that `complete` and `caption` share."""
    options = [
        CHECKPOINT,
        click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True),
        click.option(
            "--temperature", type=Number(min=0), default=0.0, show_default=True, help="0 always takes the most likely token."
        ),
        click.option(
            "--top-p",
            type=Number(0, 1, min_open=True),
            default=1.0,
            show_default=True,
            help="Sample among the likeliest tokens of this total probability.",
        ),
        SEED,
        DTYPE,
        MESH,
        DISTRIBUTED,
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--profile", is_flag=True, help="Print how long each part took."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=Command)
@click.argument("prompt", default="")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=pathlib.Path), help="Images before the prompt.")
@click.option(
    "--interleave",
    type=click.Path(path_type=pathlib.Path),
    metavar="DIR",
    help="Draw images where the model writes them into its text, and save them in DIR.",
)
@_text_options
def complete(prompt: str, images: tuple[pathlib.Path, ...], interleave: pathlib.Path | None, **options):
    """Continue PROMPT with text, or with text and images (--interleave)."""
    if not prompt.strip() and not images:
        raise InputError("a prompt must not be empty")
    if interleave is not None:
        make_folder(interleave)
    with _profile(options["profile"]):
        pipeline = load_pipeline(**_where(options))
        if interleave is None:
            parts = [pipeline.generate_text(prompt, images, **_sampling(options))]
        else:
            from nextstep_jax.generation.interleaved import generate_interleaved

            parts = generate_interleaved(pipeline, prompt, images, **_sampling(options))
    if not is_first_process():
        return
    shown = []
    for part in parts:
        if isinstance(part, str):
            shown.append({"text": part})
        elif interleave is not None:
            path = interleave / f"image-{part.record['index']}.png"
            part.save(path)
            shown.append({"image": str(path)})
    if options["as_json"]:
        click.echo(json.dumps({"prompt": prompt, "seed": options["seed"], "parts": shown}))
    else:
        click.echo("\n".join(next(iter(part.values())) for part in shown))


@click.command(cls=Command)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
@_text_options
def caption(images: tuple[pathlib.Path, ...], **options):
    """Describe each IMAGE in a line of text."""
    with _profile(options["profile"]):
        pipeline = load_pipeline(**_where(options))
        captions = [pipeline.generate_text("", [image], **_sampling(options)) for image in images]
    if not is_first_process():
        return
    if options["as_json"]:
        records = [{"image": str(image), "caption": text} for image, text in zip(images, captions, strict=True)]
        click.echo(json.dumps(records))
    else:
        click.echo("\n".join(captions))


# --- helpers ----------------------------------------------------------------------------------------------------------


def _where(options: dict) -> dict:
    return {name: options[name] for name in ("checkpoint", "dtype", "mesh", "distributed")}


def _sampling(options: dict) -> dict:
    return {name: options[name] for name in ("max_tokens", "temperature", "top_p", "seed")}


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
    """(pipeline, settings, size): everything that can be refused is refused before anything is loaded."""
    from nextstep_jax.generation.load import require_usable

    require_writable(_paths(options["out"], 1)[0])
    if options["preview"] is not None:
        from nextstep_jax.data.image_output import output_format

        output_format(options["preview"])
        require_writable(options["preview"])
    names = ["cfg", "image_cfg", "schedule", "sampler", "steps", "final_steps", "shift", "noise_level", "thinking"]
    names += [
        "thinking_temperature",
        "guidance_start",
        "guidance_end",
        "jacobi_window",
        "jacobi_tolerance",
        "prompt_suffix",
        "negative_prompt",
    ]
    changes = {name: options[name] for name in names if name in options} | {"normalize_tokens": options["normalize_tokens"]}
    size = {name: options[name] for name in ("height", "width", "aspect")}
    require_usable(options["checkpoint"], edit, changes, **size)
    pipeline = load_pipeline(**_where(options))
    settings = pipeline.settings(edit, **changes)
    return pipeline, settings, size


def _save(images: list, options: dict) -> None:
    if not is_first_process():
        return
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
    """PATH for one image; PATH-0, PATH-1, … for several; numbered files in PATH if it is a folder.

    Raises:
      InputError: PATH ends in the suffix of a format that images are not written in.
    """
    from nextstep_jax.data.image_output import output_path

    if out.is_dir():
        return [out / f"image-{i}.png" for i in range(count)]
    out = output_path(out)
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]


@contextlib.contextmanager
def _chunk_bar(options: dict) -> Iterator:
    """A progress bar over image tokens that also keeps the preview file: yields on_chunk, None if nobody watches."""
    from nextstep_jax.data.image_output import save_image

    with updating_bar("tokens", "tok") as update:

        def on_chunk(done: int, total: int, partial: "PartialImages") -> None:
            update(done, total)
            if options["preview"] is not None:
                images = partial()  # by all processes
                if is_first_process():
                    save_image(options["preview"], images[0])

        # Several processes must make the same calls, and not all of them have a terminal.
        watched = sys.stderr.isatty() and not options["distributed"]
        yield on_chunk if watched or options["preview"] is not None else None
