"""Errors meant for the person at the keyboard.

Each message is one line that names the file, tensor or option, what was expected and what was found. The command
line prints the line and exits with the class's code; Python callers catch the class.
"""


class NextStepError(Exception):
    """Base of every error this library raises on purpose."""

    exit_code = 1


class InputError(NextStepError, ValueError):
    """Bad input or usage: an option, file, tensor or config value that cannot be used as given."""

    exit_code = 2


class DamagedDataError(NextStepError):
    """Stored data that was whole once and is not any more (digest mismatch, truncated or missing file)."""

    exit_code = 3


class UnfamiliarWarning(UserWarning):
    """A prompt or a size that a model was not trained with. The command line prints it as one line."""


def one_line(error: BaseException, most: int = 200) -> str:
    """What another library's exception says, on one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]
