"""Flags of the launch programs: every objection is one line."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from nextstep_jax.errors import InputError
from nextstep_jax.launch.shipped import config_file


def parse(
    argv: list[str], values: flags.FlagValues, config: flags.FlagHolder, required: dict[str, flags.FlagHolder], usage: str
) -> None:
    """Parse the command line into `values`.

    Raises:
      InputError: for anything the flags or the file behind `config` object to, or a `required` flag (by name) without a value.
    """
    try:
        with _sys_argv([*argv[:1], *_resolved(argv[1:])]):
            rest = values(sys.argv)
        if config.value is not None:
            config.value.lock()  # a file that could not be read says so only when it is used
    except InputError:
        raise
    except OSError as error:
        file = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"--config: the file cannot be read ({file})") from error
    except Exception as error:  # whatever a config file raises comes through here
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # ml_collections quotes the whole traceback of a config file that raised: its last line is the error.
        line = lines[-1] if "Error whilst parsing config file" in lines[0] else " ".join(lines)
        raise InputError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; options are written --config.key=value")
    for name, flag in required.items():
        if flag.value is None:
            raise InputError(f"--{name} is missing; usage: {usage}")


def _resolved(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with the value of --config as a file."""
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if before in ("--config", "-config"):
            yield config_file(argument)
        elif equals and option in ("--config", "-config"):
            yield f"{option}={config_file(value)}"
        else:
            yield argument
        before = argument


@contextlib.contextmanager
def _sys_argv(argv: list[str]) -> Iterator[None]:
    """The process's arguments, where ml_collections looks for the overrides, are `argv` meanwhile."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before
