"""From a run's state to a parameter checkpoint, also while the run goes on: everything is read from its folder."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nextstep_jax import storage
from nextstep_jax.checkpoints import arrays, manifest, params, steps
from nextstep_jax.checkpoints.digests import RunningDigest
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage import Place

# Keys that hold a whole stack of layers, [L, ...], while training; on disk layer i is a subtree of its own.
_STACKED = re.compile(r"(?:^|/)(layers|blocks)(?=/)")


def export_params(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    collections: Sequence[str] = ("params",),
    part: str | None = None,
    step: int | None = None,
    base: str | os.PathLike | None = None,
    files: Mapping[str, bytes] | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: Any = None,
) -> int:
    """Write the parameters of a complete step as a parameter checkpoint, leaf by leaf, each verified. Returns the step.

    Args:
      source: a run's folder.
      destination: the checkpoint folder to make.
      collections: keys of the state that hold parameters, for instance ("ema", "params"): each leaf is taken from the first
        that has it.
      part: "model" or "image_tokenizer", if the collections hold that part's parameters directly; None if they hold the parts.
        A part that `config` does not name stays behind.
      step: which step; None: the newest.
      base: a checkpoint folder that gives the parts and files (text tokenizer) that this run has no say in.
      files: further files of the checkpoint; None: the base's.
      config: contents of config.json; None: what the run stored as `checkpoint_config`.
      dtype: convert the run's floating-point leaves to it; the base's stay as they are.

    Raises:
      InputError: no such run, step or collection, or the destination is taken.
      DamagedDataError: the step or the base is damaged. Nothing is written in either case.
    """
    source = storage.at(source)
    complete = steps.list_steps(source / "checkpoints")
    if not complete:
        raise InputError(f"{source}: expected a run's folder with a complete step in checkpoints/, found none")
    step = complete[-1] if step is None else step
    if step not in complete:
        raise InputError(f"{source}: step {step} is not there, only {', '.join(map(str, complete))}")
    directory = source / "checkpoints" / str(step)
    described = steps.read_step(directory)
    problems = manifest.find_damage(directory, {name: file for entry in described for name, file in entry["files"].items()})
    if problems:
        raise DamagedDataError(f"{directory}: damaged: {manifest.summarize(problems)}")
    config = config or described[0]["checkpoint_config"]
    if config is None:
        raise InputError(f"{directory}: the run stored no checkpoint_config; give config")
    stored, prefix = described[0]["leaves"], f"{part}/" if part else ""
    chosen = {name: path for collection in reversed(collections) for name, path in _below(collection, stored, prefix)}
    chosen = {name: path for name, path in chosen.items() if name.split("/")[0] in config}
    if not chosen:
        found = ", ".join(sorted({path.split("/")[0] for path in stored}))
        raise InputError(f"{directory}: its state has no parameters under {' or '.join(collections)}, only {found}")
    leaves = {path: stored[path] for path in chosen.values()}
    parts = {name.split("/")[0] for name in chosen}

    def produce() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in _unstacked(directory, leaves):
            yield prefix + path.split("/", 1)[1], _convert(array, dtype)
        for path, array in params.iterate_params(base) if base else ():
            if path.split("/")[0] not in parts:
                yield path, array

    try:
        if files is None and base:
            files = params.load_extra_files(base)
        params.save_params(destination, produce(), config, files)
    except DamagedDataError:
        if directory.exists():
            raise
        raise InputError(f"{directory}: the run removed this step while it was exported; export a newer one") from None
    return step


def _below(collection: str, leaves: arrays.LeafEntries, prefix: str) -> Iterator[tuple[str, str]]:
    """(name in the parameter checkpoint, path in the state) of a collection's leaves."""
    for path in leaves:
        if path.startswith(f"{collection}/"):
            yield prefix + path.removeprefix(f"{collection}/"), path


def _unstacked(directory: Place, leaves: arrays.LeafEntries) -> Iterator[tuple[str, np.ndarray]]:
    """Every leaf, a stack as its layers: memory follows one layer."""
    reader = arrays.ArrayReader(directory / steps.STATE, leaves)
    for path, entry in leaves.items():
        whole, running = tuple(slice(0, n) for n in entry["shape"]), RunningDigest(entry["shape"], entry["dtype"])
        indices: list[Any] = [(row, *whole[1:]) for row in range(entry["shape"][0])] if _STACKED.search(path) else [whole]
        for row, (_, (array,)) in enumerate(reader.read((path, [index]) for index in indices)):
            running.update(array)
            yield _STACKED.sub(rf"\g<0>_{row}", path), array
        reader.check_digest(path, running.hexdigest())


def _convert(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(dtype) if dtype is not None and jnp.issubdtype(array.dtype, jnp.floating) else array
