"""Opening files of a folder that came from elsewhere: regular files only, and links only where they lead nowhere else.

A link may lead to a file of the same folder, or into a hub cache, whose folders are made of links to files named by their
content (`blobs/` and a hash). Any other could make a program read, and pass on, a file of its user that the folder's author
has no business with.
"""

import os
import pathlib
import re
import stat
from typing import BinaryIO

from nextstep_jax.errors import InputError


def open_inside(path: str | os.PathLike, root: str | os.PathLike | None = None) -> BinaryIO:
    """Open a regular file of a folder for reading.

    Args:
      root: the folder; by default the one that the file is in.

    Raises:
      InputError: a link leads out of the folder, or it is no regular file.
      OSError: it cannot be opened.
    """
    check_inside(path, pathlib.Path(path).parent if root is None else root)
    return open_regular(path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading, wherever it lies. InputError names anything else; OSError if it cannot be opened."""
    # Non-blocking, so that a named pipe in the way is refused instead of waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def check_inside(path: str | os.PathLike, root: str | os.PathLike) -> None:
    """InputError if a link leads from `path` to outside of the folder `root`, except into a hub cache."""
    target = pathlib.Path(os.path.realpath(path))
    cached = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", target.name)
    if not (target.is_relative_to(os.path.realpath(root)) or cached):
        raise InputError(f"{path}: a link out of the folder; put a copy of the file there")
