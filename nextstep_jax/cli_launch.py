"""The verbs that start runs: train, export-run, submit and aot, over the programs in launch/."""

import os
import sys

import click

from nextstep_jax.cli_shared import CONFIG, PASS_ON, PLACE, Command, RunCommand
from nextstep_jax.storage import Place


@click.command(cls=RunCommand, context_settings=PASS_ON)
@CONFIG
@click.option("--workdir", required=True, metavar="DIR", help="Folder for checkpoints, metrics and the trained model.")
@click.option("--distributed", is_flag=True, help="One of several processes: find the others first.")
@click.option("--coordinator", metavar="HOST:PORT", help="Where the first process listens, if no scheduler says so.")
@click.option("--num-processes", metavar="N", help="How many processes there are; goes with --coordinator.")
@click.option("--process-id", metavar="I", help="Which of them this one is, from 0; goes with --coordinator.")
@click.pass_context
def train(ctx: click.Context, /, config: str, workdir: str, distributed: bool, **rendezvous: str | None):
    """Train a stage, or continue a run.

    The same command continues a run that was stopped. Any setting is changed with --config.KEY=VALUE, e.g.
    --config.steps=100 --config.optimizer.learning_rate=1e-4.
    """
    from nextstep_jax.launch import train as program

    program.configure_logging()
    argv = ["nextstep-jax train", f"--config={config}", f"--workdir={workdir}", *ctx.args]
    argv += [f"--{name}={value}" for name, value in rendezvous.items() if value is not None]
    try:
        code = program.main([*argv, "--distributed"] if distributed else argv)
    except KeyboardInterrupt:
        click.echo("error: interrupted", err=True)
        os._exit(130)  # threads that compile or read data would outlive the interpreter, and crash
    sys.exit(code)


@click.command(cls=RunCommand, context_settings=PASS_ON)
@CONFIG
@click.option("--topology", required=True, metavar="GENERATION:SHAPE", help="E.g. v5p:4x4x4, v6e:16x16, v5e:2x4.")
@click.option("--slices", type=click.IntRange(min=1), default=1, show_default=True, help="Slices of that topology.")
@click.option(
    "--what",
    type=click.Choice(["train", "generate", "rollouts"]),
    default="train",
    show_default=True,
    help="Program to compile: a training step, the token loop, or what an online stage draws in a step.",
)
@click.option(
    "--tokens-per-chip",
    type=click.IntRange(min=0),
    default=16384,
    show_default=True,
    help="Sets the batch size; 0 leaves the config's.",
)
@click.option("--images", type=click.IntRange(min=1), default=1, show_default=True, help="Of the token loop, drawn at a time.")
@click.option(
    "--flags",
    default="launch",
    show_default=True,
    metavar="FLAGS",
    help="Of the compiler: launch (what the launchers set), none, or NAME=VALUE,... on top of the launchers'.",
)
@click.option("--top", type=click.IntRange(min=0), default=0, show_default=True, help="List that many costliest instructions.")
@click.option("--hlo", default="", metavar="FILE", help="Keep the compiled program's text.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def aot(ctx: click.Context, /, as_json: bool, **values: str | int):
    """Compile a stage for TPUs ahead of time.

    Says whether the program fits into the chips' memory (exit code 1 if not), and how fast the compiler expects it to
    be. No TPU is needed: the compiler, the extra "tpu", runs on any CPU machine. Settings are changed with
    --config.KEY=VALUE.
    """
    from nextstep_jax.launch import aot_compile as program

    argv = ["nextstep-jax aot", *(f"--{name}={value}" for name, value in values.items()), *ctx.args]
    sys.exit(program.main([*argv, "--json"] if as_json else argv))


@click.command(cls=Command)
@click.option("--workdir", required=True, type=PLACE, metavar="DIR", help="Folder of the run.")
@click.option("--out", required=True, type=PLACE, metavar="DIR", help="Folder to make.")
@click.option("--step", type=click.IntRange(min=0), help="Step to export.  [default: the newest complete one]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def export_run(workdir: Place, out: Place, step: int | None, dtype: str):
    """Export a run's parameters as a checkpoint folder.

    The folder can be generated from. The run may still be going on. The averaged parameters are exported where the run
    keeps an average.
    """
    from nextstep_jax.launch.export import export

    click.echo(f"step {export(workdir, out, step, dtype)} -> {out}")


class _Untouched(Command):
    """A command whose arguments another parser reads."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args


@click.command(cls=_Untouched, options_metavar="PLACE [OPTIONS]")
@click.pass_context
def submit(ctx: click.Context):
    """Start a training on TPUs, GKE, Slurm or GPUs."""
    from nextstep_jax.launch import submit as program

    sys.exit(program.main(ctx.args))
