"""The `nextstep-jax` command: its verbs, and the checkpoint verbs convert, export, parity and info.

Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 damaged data, 130 interrupted, 141 nobody reads the output.
"""

import errno
import json
import os
import pathlib
import sys
import warnings

import click

from nextstep_jax import __version__, cli_generate, cli_launch, cli_scores, cli_serve, cli_streams
from nextstep_jax.cli_data import data
from nextstep_jax.cli_evaluate import evaluate
from nextstep_jax.cli_shared import (
    PLACE,
    Command,
    Group,
    keep_compiled_programs,
    leave_out_absent_tpus,
    readable_bytes,
    require_writable,
    updating_bar,
)
from nextstep_jax.cli_suites import suite_commands
from nextstep_jax.errors import NextStepError, UnfamiliarWarning
from nextstep_jax.storage import Place

# jax and the networks are imported inside the commands: `--help` and bad usage answer at once.

_COMPLETE = "_NEXTSTEP_JAX_COMPLETE"  # set by a shell that asks for completions
# What the system says of a name that cannot be used as given; anything else is a failure of the machine.
_UNUSABLE = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
# Packages that are not always installed, and the extra that brings them.
_EXTRAS = dict.fromkeys(("absl", "grain", "ml_collections", "optax", "tensorflow_datasets"), "train")
_EXTRAS |= {"huggingface_hub": "hub", "libtpu": "tpu"}
_EXTRAS |= dict.fromkeys(("multipart", "python_multipart", "starlette", "uvicorn"), "serve")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="nextstep-jax")
def cli():
    """NextStep-1 in JAX: images, edits and text from one causal transformer."""


@click.command(cls=Command)
@click.argument("src")
@click.argument("dst", type=PLACE)
@click.option("--vae", help="Folder of the image tokenizer, if it is not inside SRC.")
@click.option("--text-tokenizer", help="Folder of the text tokenizer, if it is not inside SRC.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "keep"]), default="keep", show_default=True)
def convert(src: str, dst: Place, vae: str | None, text_tokenizer: str | None, dtype: str):
    """Convert released PyTorch weights.

    DST becomes a checkpoint folder. SRC is a folder (NextStep-1, NextStep-1.1, a training checkpoint, Qwen2.5, or an
    image tokenizer alone) or a hub name such as stepfun-ai/NextStep-1.1, which needs the extra "hub".
    """
    from nextstep_jax.conversion.from_torch import convert as run

    with updating_bar("converting") as update:
        result = run(src, dst, vae=vae, text_tokenizer=text_tokenizer, dtype=dtype, progress=update)
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{dst}: {result.parameters:,} parameters, {readable_bytes(result.nbytes)}")
    if result.dropped:
        click.echo(f"not converted, because it is computed: {', '.join(result.dropped)}")


@click.command(cls=Command)
@click.argument("src", type=PLACE)
@click.argument("dst", type=PLACE)
def export(src: Place, dst: Place):
    """Write a checkpoint as released safetensors.

    SRC is a checkpoint folder; DST gets the layout of the PyTorch releases.
    """
    from nextstep_jax.conversion.to_torch import export as run

    with updating_bar("exporting") as update:
        run(src, dst, progress=update)
    click.echo(str(dst))


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=pathlib.Path))
@click.option("--json", "json_file", type=click.Path(path_type=pathlib.Path), help="Also write the rows as JSON.")
def parity(folder: pathlib.Path, json_file: pathlib.Path | None):
    """Compare with numbers of the PyTorch releases.

    FOLDER holds arrays computed by the releases; each is compared with what this library computes. Exit code 1 on any miss.
    """
    from nextstep_jax.conversion.parity import run_parity

    if json_file is not None:
        require_writable(json_file)
    keep_compiled_programs()
    report = run_parity(folder, lambda part: click.echo(f"comparing {part}", err=True))
    if json_file is not None:
        from nextstep_jax.data.files import write_bytes

        write_bytes(json_file, (report.to_json() + "\n").encode())
    click.echo(report.table())
    click.echo(f"{len(report.rows)} arrays compared, {len(report.misses)} missed")
    sys.exit(1 if report.misses else 0)


@click.command(cls=Command)
@click.argument("checkpoint", required=False, type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(checkpoint: Place | None, as_json: bool):
    """Show what a checkpoint holds.

    Sizes, parameters by part and memory by dtype of CHECKPOINT, or of the built-in model.
    """
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


# --- the whole --------------------------------------------------------------------------------------------------------


for _command in (
    cli_generate.generate,
    cli_generate.edit,
    cli_generate.complete,
    cli_generate.caption,
    cli_serve.serve,
    convert,
    export,
    parity,
    info,
    data,
    cli_launch.train,
    cli_launch.export_run,
    cli_launch.submit,
    cli_launch.aot,
    evaluate,
):
    cli.add_command(_command)
evaluate.add_command(cli_scores.compare)
evaluate.add_command(cli_scores.sheet)
for _suite in suite_commands():
    evaluate.add_command(_suite)


def main() -> None:
    """Entry point: every error a person can act on is one line and an exit code, never a traceback."""
    leave_out_absent_tpus()
    _show_warnings_in_one_line()
    with cli_streams.prepared():
        try:
            code = _run(sys.argv[1:])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else bool(stop.code)
        except KeyboardInterrupt:
            code = _fail("interrupted", 130)
        except BrokenPipeError:
            code = cli_streams.BROKEN_PIPE
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "nextstep-jax"
            code = _fail(f"{error.format_message()} ({path} --help)", error.exit_code)
        except NextStepError as error:
            click.echo(f"error: {error}", err=True)  # some list what does not fit, a line each
            code = error.exit_code
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            code = _fail(f"{error.name} is not installed: pip install 'nextstep_jax[{extra}]'", 2)
        except OSError as error:
            message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            code = _fail(message, 2 if error.errno in _UNUSABLE else 1)
        sys.exit(cli_streams.finish(code))


def _run(arguments: list[str]) -> int:
    if _COMPLETE in os.environ:
        cli.main(prog_name="nextstep-jax", complete_var=_COMPLETE)
    try:
        with cli.make_context("nextstep-jax", arguments) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _show_warnings_in_one_line() -> None:
    """The library's own warnings as "warning: ...", the others as Python shows them."""
    show = warnings.showwarning

    def shown(message, category, *arguments, **more) -> None:
        if issubclass(category, UnfamiliarWarning):
            click.echo(f"warning: {message}", err=True)
        else:
            show(message, category, *arguments, **more)

    warnings.showwarning = shown
    warnings.simplefilter("always", UnfamiliarWarning)
