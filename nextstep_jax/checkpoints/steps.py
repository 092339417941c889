"""One complete step of a run on disk: which files it has, reading it back, verifying it. Its layout: see `training`."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax import storage
from nextstep_jax.checkpoints import arrays, manifest, processes
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage import Place

STATE = "state"


def list_steps(directory: Place) -> list[int]:
    """The complete steps below a run's "checkpoints" folder, in ascending order."""
    return storage.of(directory).list_steps(directory)


def process_file(process: int, count: int) -> str:
    """Name of the file in which a process describes its part of the step."""
    return f"process_{process}-of-{count}.json"


def writer_of(name: str) -> int:
    """The process that wrote a file of the step (and knows it best: it hashes it)."""
    found = re.search(r"(?:ocdbt\.|array_metadatas/|^\.?)process_(\d+)", name)
    return int(found[1]) if found else 0


def name_leaves(tree: Any) -> dict[str, Any]:
    """{key path: leaf} of a pytree, in its order; Python numbers become arrays."""
    named = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, bool | int | float):
            leaf = np.asarray(leaf, jax.dtypes.canonicalize_dtype(type(leaf)))
        named[jax.tree_util.keystr(keys, simple=True, separator="/")] = leaf
    return named


def read_step(directory: Place) -> list[dict[str, Any]]:
    """What each process wrote about the step, by process index.

    Raises:
      DamagedDataError: a process's file is missing or changed.
    """
    names = [path.name for path in directory.glob("process_*")]
    counts = {int(found[1]) for name in names if (found := re.fullmatch(r"process_\d+-of-(\d+)\.json", name))}
    if len(counts) != 1:
        raise DamagedDataError(f"{directory}: damaged: expected the files {process_file(0, 1)} or of one larger count")
    (count,) = counts
    described = []
    for process in range(count):
        path = directory / process_file(process, count)
        try:
            content = manifest.read_sealed(path)
            _check_description(content, process)
            described.append(content)
        except FileNotFoundError:
            raise DamagedDataError(f"{directory}: damaged: {path.name} is missing") from None
        except OSError as error:
            raise DamagedDataError(f"{path}: cannot be read ({error.strerror})") from error
        except InputError as error:
            raise DamagedDataError(f"{path}: not the description of a step ({error})") from error
    return described


def _check_description(content: Mapping[str, Any], process: int) -> None:
    """InputError unless it is what process number `process` writes about a step."""
    manifest.check_tables(content, leaves=process == 0)
    for key in ("config", "versions") if process == 0 else ():
        if not isinstance(content.get(key), dict):
            raise InputError(f"its {key} is not a table")
    if not isinstance(content.get("checkpoint_config"), dict | None):
        raise InputError("its checkpoint_config is not a table")
    from_json(content.get("data_state"))


def restore_step(directory: Place, target: Any, cast: bool) -> tuple[list[dict[str, Any]], Any]:
    """What the processes wrote about the step, and its state like `target`. All processes must call this together.

    Raises:
      InputError, DamagedDataError: as `TrainCheckpointer.restore`.
    """
    described = processes.agree(lambda: read_step(directory))
    leaves, wanted = described[0]["leaves"], name_leaves(target)
    _check_target(directory, leaves, wanted, cast)
    files = {name: file for part in described for name, file in part["files"].items()}
    problems = processes.find_damage_together(directory, files)
    if problems:
        raise DamagedDataError(f"{directory}: damaged: {manifest.summarize(problems)}")
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = {path: getattr(leaf, "sharding", None) or default for path, leaf in wanted.items()}
    loaded = arrays.read_sharded(directory / STATE, leaves, shardings)
    restored = [
        loaded[path] if loaded[path].dtype == leaf.dtype else loaded[path].astype(leaf.dtype) for path, leaf in wanted.items()
    ]
    return described, jax.tree.unflatten(jax.tree.structure(target), restored)


def to_json(data_state: Any) -> dict[str, Any]:
    """A data iterator's state as JSON; `from_json` gives it back."""
    if isinstance(data_state, bytes):
        return {"bytes": base64.b64encode(data_state).decode()}
    try:
        return {"json": json.loads(json.dumps(data_state))}
    except (TypeError, ValueError) as error:
        raise InputError(f"the data iterator's state must be bytes or JSON-able: {error}") from error


def from_json(encoded: Any) -> Any:
    """The inverse of `to_json`. InputError for anything that it does not give."""
    try:
        return base64.b64decode(encoded["bytes"]) if "bytes" in encoded else encoded["json"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not the state of a data iterator ({error})") from error


def _check_target(directory: Place, leaves: arrays.LeafEntries, wanted: Mapping[str, Any], cast: bool) -> None:
    missing, unknown = sorted(wanted.keys() - leaves.keys()), sorted(leaves.keys() - wanted.keys())
    if missing or unknown:
        parts = [f"it has no {missing[0]} (and {len(missing) - 1} more)"] if missing else []
        parts += [f"it has {unknown[0]} (and {len(unknown) - 1} more), which is not expected"] if unknown else []
        raise InputError(f"{directory}: its state is of another kind than this run's: {'; '.join(parts)}")
    for path, leaf in wanted.items():
        found, expected = leaves[path], (list(jnp.shape(leaf)), jnp.dtype(leaf.dtype).name)
        if found["shape"] != expected[0] or (found["dtype"] != expected[1] and not cast):
            raise InputError(
                f"{directory}: leaf {path} is {found['dtype']}{found['shape']}, expected {expected[1]}{expected[0]}"
            )
