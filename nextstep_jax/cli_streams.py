"""The standard streams of a command: none of them has to be there, take every character, or last as long as the work.

What goes to standard error (progress, warnings, errors) is comfort: where it cannot be written, the work goes on without it.
What goes to standard output is a result: where it cannot be written, the command fails, after its files are complete.
"""

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

_PRINTABLE = "nextstep_jax.printable"  # name of an error handler of codecs
BROKEN_PIPE = 141  # exit code of a program that SIGPIPE ends


class _Lenient:
    """A text stream whose writes may fail without a word."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Run a command's work with streams that can be used whatever the process was started with."""
    _open_missing()
    for stream in (sys.stdout, sys.stderr):
        _print_everything(stream)
    before, sys.stderr = sys.stderr, _Lenient(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = before


def finish(code: int) -> int:
    """Write out what standard output still holds. Returns the exit code: another one if that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return code or BROKEN_PIPE
    except OSError as error:
        _discard_stdout()
        click.echo(f"error: {error.strerror}", err=True)
        return code or 1
    return code


def _open_missing() -> None:
    """Streams that were closed read and write nothing. Left alone, the next file that is opened would take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (lives as long as the process)


def _print_everything(stream: TextIO) -> None:
    """Characters that the locale does not have are printed as escapes, undecodable names of files byte by byte."""
    if hasattr(stream, "reconfigure"):
        codecs.register_error(_PRINTABLE, _printable)
        stream.reconfigure(errors=_PRINTABLE)


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """How a character is printed that the stream's encoding does not have."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _discard_stdout() -> None:
    """What Python flushes when it ends goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
