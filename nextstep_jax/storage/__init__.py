"""Where runs, checkpoints and datasets lie: on a file system or in a bucket, behind one small interface.

    place = storage.at("gs://my-runs/stage1")     # or "s3://...", or a path
    store = storage.of(place)                     # what differs between the two: `Store`

A `Place` is a `pathlib.Path` or an `ObjectPath`, which has the same names for what both can do (`/`, `name`, `exists`,
`read_bytes`, `glob`, ...). What the two do differently is a method of `Store`: how a folder becomes complete, how a file is
written whole, what lies outside of a folder. On a file system (`files`) that is renaming and syncing. In a bucket (`buckets`),
which knows neither, a marker is written last and deleted first; an object alone is written whole or not at all, and locks are
objects that are created only if absent and replaced only if unchanged (`checkpoints/lock.py`).
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, Union

if TYPE_CHECKING:
    from nextstep_jax.storage.objects import ObjectPath

_RETRIES = {"max_retries": 9, "initial_delay": "100ms", "max_delay": "5s"}  # some 20 s in all

Place: TypeAlias = Union[pathlib.Path, "ObjectPath"]


class Appended(Protocol):
    """A text file that grows."""

    def write(self, text: str) -> Any: ...

    def flush(self) -> None:
        """What was written is to be seen soon: at once on a file system, within half a minute in a bucket."""

    def sync(self) -> None:
        """What was written is seen by readers when this returns."""

    def close(self) -> None: ...


class Store(Protocol):
    """What a file system and a bucket do differently. OSError reports what cannot be read or written."""

    def require(self, place: Any) -> None:
        """InputError, one line, if nothing at this place could be reached: no such bucket, no credentials, no network."""

    # --- files --------------------------------------------------------------------------------------------------------

    def write(self, path: Any, data: bytes) -> None:
        """Write a file that appears under its name only when all its bytes are kept."""

    def append(self, path: Any, text: str) -> Appended:
        """Begin a file with `text` and let it grow."""

    def open_inside(self, path: Any, root: Any = None) -> BinaryIO:
        """Open a regular file of a folder for reading, see `untrusted.open_inside`."""

    def open_regular(self, path: Any) -> BinaryIO:
        """Open a regular file for reading, see `untrusted.open_regular`."""

    def check_inside(self, path: Any, root: Any) -> None:
        """InputError for what leads out of a folder, see `untrusted.check_inside`."""

    def list_files(self, root: Any) -> list[str]:
        """Every file below `root`, as sorted relative names with forward slashes."""

    def local_file(self, path: Any) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A local file to write to; it takes its place, whole, when the block ends, and is dropped if the block fails."""

    def local_folder(self, path: Any) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A local folder for a library that writes files; they are in place when the block ends, however it ends."""

    def exclusive(self, path: Any) -> contextlib.AbstractContextManager[None]:
        """Hold a lock file for the time of a block. BlockingIOError if another process holds it."""

    def free_bytes(self, folder: Any) -> int | None:
        """Room for more, None where there is no limit or nobody knows it."""

    def kvstore(self, folder: Any) -> Mapping[str, Any]:
        """TensorStore's spec of a folder."""

    # --- folders that are complete or not there -----------------------------------------------------------------------

    def require_new(self, folder: Any, marker: str) -> None:
        """InputError for a folder that is there and not empty."""

    def new_folder(self, folder: Any, marker: str) -> contextlib.AbstractContextManager[Any]:
        """A place to fill, `marker` last; it becomes `folder` when the block ends, and nothing is left if the block fails.

        Raises:
          InputError: `folder` is there and not empty.
        """

    def new_local_folder(self, folder: Any, marker: str) -> contextlib.AbstractContextManager[pathlib.Path]:
        """`new_folder` for what can only be written to local files."""

    def replacing_folder(self, folder: Any, marker: str) -> contextlib.AbstractContextManager[Any]:
        """A place that is not there yet, for `new_folder` to make; at the end of the block it is `folder`, in place of an
        earlier one."""

    def remove_folder(self, folder: Any) -> None:
        """Remove a folder with all that is in it, if it is there."""

    # --- steps of a run: complete or not there, written by many processes ---------------------------------------------

    def begin_step(self, step: Any) -> None:
        """Make an empty place for a step that is to be written."""

    def step_in_progress(self, step: Any) -> Any:
        """Where a step is written until it is complete."""

    def complete_step(self, step: Any) -> None:
        """All of it is written: make the step complete, in one go."""

    def is_complete(self, step: Any) -> bool:
        """Whether the step is there as a whole."""

    def list_steps(self, folder: Any) -> list[int]:
        """The complete steps in a folder, ascending."""

    def remove_step(self, step: Any) -> None:
        """Remove a complete step; it is not complete from the first moment on."""

    def drop_step(self, step: Any) -> None:
        """Remove what there is of a step that did not become complete."""

    def set_aside(self, step: Any) -> None:
        """A complete step is damaged: keep it, where nobody takes it for a step."""

    def clear_leftovers(self, folder: Any) -> list[str]:
        """Remove what interrupted runs left half written or half removed; returns the names of the half written steps."""


def at(path: str | os.PathLike) -> Place:
    """The place that a path or address names: a resolved local path, or a bucket's.

    Raises:
      InputError: an address of another kind than gs:// and s3://, or not one of a bucket.
    """
    if is_address(path):
        from nextstep_jax.storage.objects import ObjectPath

        return ObjectPath(str(path))
    return pathlib.Path(path).resolve()  # TensorStore refuses a path with ".." in it


def as_given(path: str | os.PathLike) -> Place:
    """`at`, with a local path as it was given."""
    return at(path) if is_address(path) else pathlib.Path(path)


def is_address(path: Any) -> bool:
    """Whether it names something in a bucket, or anything else than a local path."""
    return "://" in str(path)


def of(place: Place) -> Store:
    """The store that a place is in."""
    if isinstance(place, pathlib.Path):
        from nextstep_jax.storage import files

        return files.FILES
    from nextstep_jax.storage import buckets

    return buckets.OBJECTS


def tensorstore_context() -> dict[str, Any]:
    """What the specs of `Store.kvstore` refer to in a TensorStore context: how requests to a bucket are repeated."""
    return {"gcs_request_retries": _RETRIES, "s3_request_retries": _RETRIES}
