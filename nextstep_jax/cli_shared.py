"""What the commands of `nextstep-jax` share. jax and the networks are imported inside: bad usage answers at once."""

import contextlib
import os
import pathlib
import sys

from nextstep_jax.errors import InputError


def load_pipeline(checkpoint: pathlib.Path | None, dtype: str | None):
    """The pipeline of a checkpoint folder, the built-in model's for None."""
    from nextstep_jax.generation.pipeline import Pipeline

    keep_compiled_programs()
    return Pipeline.from_checkpoint(checkpoint, dtype)


def keep_compiled_programs() -> None:
    """Compiled programs outlive the process, so that a second run starts at once."""
    import jax

    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "nextstep_jax"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(default))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def require_writable(path: pathlib.Path) -> None:
    """InputError if a file could not be written there: said before the work, not after it."""
    folder = path if path.is_dir() else path.parent
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path}: cannot be written ({existing} is not a folder that can be written to)")


@contextlib.contextmanager
def progress_bar(label: str, unit: str = "B"):
    """A progress bar, over bytes unless told otherwise: yields update(done, total)."""
    from tqdm import tqdm

    with tqdm(desc=label, unit=unit, unit_scale=unit == "B", file=sys.stderr, disable=None) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def readable_bytes(count: int) -> str:
    """A number of bytes in three figures."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
