"""What the commands of `nextstep-jax` share. jax and the networks are imported inside: bad usage answers at once."""

import contextlib
import difflib
import glob
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from nextstep_jax import storage
from nextstep_jax.errors import InputError

# Verbs and options that had other names before.
_RENAMED = {
    "write": "`complete` (text) or `caption` (an image)",
    "--think": "--thinking",
    "--no-think": "--no-thinking",
    "--positive": "--prompt-suffix",
    "--negative": "--negative-prompt",
    "--last-steps": "--final-steps",
    "--use-norm": "--normalize-tokens",
    "--no-norm": "--no-normalize-tokens",
}


class _Place(click.Path):
    """A local path, or an address in a bucket."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> storage.Place:
        return storage.as_given(os.fsdecode(super().convert(value, param, ctx)))


PLACE = _Place()
CHECKPOINT = click.option("--checkpoint", type=PLACE, help="Checkpoint folder.  [default: the built-in model]")
DTYPE = click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "int8"]), help="Data type of the weights.  [default: as stored]"
)


class _MeshSizes(click.ParamType):
    """Devices along the axes of a mesh, such as tensor=4 or data=2,tensor=4."""

    name = "AXIS=N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for item in value.split(","):
            found = re.fullmatch(r"(data|tensor)=([1-9][0-9]{0,5})", item.strip())
            if not found or found[1] in sizes:
                self.fail(f"{value!r} is not a mesh: expected tensor=N, data=N or both, each once", param, ctx)
            sizes[found[1]] = int(found[2])
        return sizes


MESH = click.option(
    "--mesh",
    type=_MeshSizes(),
    help="Use all devices: heads and MLPs split over tensor, images over data, what is left if not given.  [default: one "
    "device]",
)
DISTRIBUTED = click.option(
    "--distributed",
    is_flag=True,
    help="One of several processes that run this command on one mesh, of which the first writes what comes out: the scheduler "
    "says where the others are, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="The same seed gives the same result."
)


class Command(click.Command):
    """A command that says what a renamed option is called now."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name in _RENAMED:
                raise click.UsageError(f"{error.option_name} is now {_RENAMED[error.option_name]}", ctx) from error
            raise


class Group(click.Group):
    """A group whose commands are `Command`s, and which names the nearest one for a verb it does not have."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added: related ones stay together."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None and not name.startswith("-"):
            if name in _RENAMED:
                raise click.UsageError(f"`{name}` is now {_RENAMED[name]}", ctx)
            raise click.UsageError(f"no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def did_you_mean(name: str, known: list[str]) -> str:
    """ "; did you mean A or B?" of the known names nearest to one, and all of them where none is near."""
    by_word = {option.lstrip("-"): option for option in known}  # dashes are alike in all options
    near = [by_word[word] for word in difflib.get_close_matches(name.lstrip("-"), by_word, 3, 0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"


class _ConfigName(click.ParamType):
    """A shipped config's name or a config file, both with an optional argument after a colon."""

    name = "config"

    def __init__(self, curation: bool = False):
        self._curation = curation

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str):
        from click.shell_completion import CompletionItem

        from nextstep_jax.launch.shipped import config_names

        names = [CompletionItem(name) for name in config_names(self._curation) if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


class RunCommand(Command):
    """A command that takes `--config.key=value` beside its options, and lists the shipped configs in its help."""

    curation = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        options = [name for option in self.params for name in option.opts]
        expect_value = False
        for argument in ctx.args:
            if not expect_value and not argument.startswith("--config."):
                if argument.startswith("-"):
                    name = argument.partition("=")[0]
                    raise click.UsageError(f"no option {name}{did_you_mean(name, options)}", ctx)
                raise click.UsageError(f"unexpected argument {argument!r}; settings are written --config.key=value", ctx)
            expect_value = not expect_value and "=" not in argument and not argument.startswith("--noconfig.")
        return rest

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from nextstep_jax.launch.shipped import config_names, config_summary

        with formatter.section("Shipped configs"):
            formatter.write_dl([(name, config_summary(name)) for name in config_names(self.curation)])


class CurationCommand(RunCommand):
    """The same with the configs of curation."""

    curation = True


PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


def _config_option(curation: bool):
    return click.option(
        "--config",
        type=_ConfigName(curation),
        required=True,
        metavar="NAME[:laptop]",
        help="A shipped config (below) or a config file, PATH.py[:laptop]; laptop shrinks it.",
    )


CONFIG = _config_option(curation=False)
CURATION_CONFIG = _config_option(curation=True)


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Name(click.ParamType):
    """One of the names that a module of the library lists; the module is imported when one is given.

    Args:
      kind: shown in the help as the value's placeholder.
      module, attribute: where the names are.
    """

    def __init__(self, kind: str, module: str, attribute: str):
        self.name, self._module, self._attribute = kind, module, attribute

    def names(self) -> list[str]:
        return list(getattr(importlib.import_module(self._module), self._attribute))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.names():
            self.fail(f"{value!r} is not one of {', '.join(self.names())}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str):
        return [click.shell_completion.CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


class _Area(click.IntRange):
    """The side of a square in pixels."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        side = super().convert(value, param, ctx)
        if side % 16:
            self.fail(f"{side} is not a multiple of 16", param, ctx)
        return side


AREA = _Area(min=16)
SAMPLER = Name("sampler", "nextstep_jax.flow.samplers", "SAMPLERS")
SCHEDULE = Name("schedule", "nextstep_jax.flow.guidance", "SCHEDULES")


def load_pipeline(
    checkpoint: pathlib.Path | None, dtype: str | None, mesh: Mapping[str, int] | None = None, distributed: bool = False
):
    """The pipeline of a checkpoint folder, the built-in model's for None; on a mesh of all devices where sizes are given, of
    all processes' where they are several (`distributed`)."""
    if distributed and mesh is None:
        raise InputError("--distributed needs --mesh, for all processes' devices")
    from nextstep_jax.generation.pipeline import Pipeline
    from nextstep_jax.launch import rendezvous
    from nextstep_jax.sharding.mesh import make_mesh

    if distributed:
        rendezvous.join(rendezvous.find_rendezvous(os.environ))
    keep_compiled_programs()
    return Pipeline.from_checkpoint(checkpoint, dtype, None if mesh is None else make_mesh({"data": -1, **mesh}))


def is_first_process() -> bool:
    """Whether this process writes what comes out: of several on one mesh, which all have it, one does."""
    import jax

    return jax.process_index() == 0


def leave_out_absent_tpus() -> None:
    """Keep JAX from starting libtpu on a machine without a TPU, where it prints a page of complaints.

    To be called before JAX is imported. What the user chose stays.
    """
    if "JAX_PLATFORMS" in os.environ or "JAX_FORCE_TPU_INIT" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    vendors = (path.read_text().strip() for path in pathlib.Path("/sys/bus/pci/devices").glob("*/vendor"))
    nodes = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/dxg")
    if "0x1ae0" not in vendors and not any(glob.glob(node) for node in nodes):
        os.environ["JAX_PLATFORMS"] = "cpu"


def keep_compiled_programs() -> None:
    """Compiled programs outlive the process, so that a second run starts at once; not where no folder can be written to."""
    import jax

    folder = cache_folder()
    if folder is not None and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def cache_folder() -> pathlib.Path | None:
    """A folder of our own below the user's cache folder, None where there cannot be one."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME")
        folder = (pathlib.Path(caches) if caches else pathlib.Path.home() / ".cache") / "nextstep_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only; no home known for this user
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def require_writable(path: pathlib.Path) -> None:
    """InputError if a file could not be written there: said before the work, not after it."""
    folder = path if path.is_dir() else path.parent
    try:
        path.absolute()
    except FileNotFoundError as error:
        raise InputError(f"{path}: the current folder does not exist any more") from error
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path}: cannot be written ({existing} is not a folder that can be written to)")


def make_folder(path: pathlib.Path) -> None:
    """Make a folder that results go to. InputError where it cannot be made or written to."""
    require_writable(path / "file")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be made ({error.strerror})") from error


@contextlib.contextmanager
def updating_bar(description: str, unit: str = "B") -> Iterator[Callable[[int, int], None]]:
    """A progress bar, over bytes unless told otherwise: yields update(done, total)."""
    from nextstep_jax.progress import progress_bar

    with progress_bar(description, unit) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def readable_bytes(count: float) -> str:
    """A number of bytes in three figures."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} GB"
