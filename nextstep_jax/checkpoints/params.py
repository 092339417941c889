"""Parameter checkpoints: the folder that conversion writes and generation loads.

What lies in it:

    config.json     {"format": "nextstep_jax", "version": 1, "model": {...}, "image_tokenizer": {...} or null, ...}
    params/         the arrays, in Orbax's format, one leaf per layer: {"model": ..., "image_tokenizer": ...}
    manifest.json   shape, dtype and digest of every leaf; size and digest of every file; a digest of itself
    ...             further files, such as tokenizer.json
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax import storage
from nextstep_jax.checkpoints import arrays, manifest, processes
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage import Place

FORMAT, VERSION = "nextstep_jax", 1
CONFIG, ARRAYS, MANIFEST = "config.json", "params", "manifest.json"

Array = np.ndarray | jax.Array
Lazy = Array | Callable[[], Array]


def save_params(
    directory: str | os.PathLike,
    leaves: Iterable[tuple[str, Lazy]] | Mapping[str, Any],
    config: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint folder; it appears complete or not at all.

    Args:
      directory: must not exist yet, or be empty.
      leaves: (path, array) pairs such as ("model/decoder/layers_3/attention/q/kernel", array), or a nested dict of arrays. An
        array may be a function that returns it; only one leaf at a time is then held in memory. A generator is advanced
        only after the leaf before was written, so it may check things on the way and raise: nothing is left behind.
      config: contents of config.json; "format" and "version" are added. Read after the last leaf was written.
      extra_files: further files of the folder, {relative name: contents}.

    Raises:
      InputError: the folder is taken or not writable, a path or dtype is unusable or a path is given twice.
    """
    directory = storage.at(directory)
    store = storage.of(directory)
    with new_folder(directory) as partial:
        (partial / ARRAYS).mkdir()
        writer = arrays.ArrayWriter(partial / ARRAYS)
        entries: dict[str, dict[str, Any]] = {}
        for path, leaf in _flatten(leaves):
            _check_path(path, entries)
            array = np.asarray(leaf() if callable(leaf) else leaf, order="C")
            with writing(directory):
                entries[path] = writer.add(path, array)
            del leaf, array  # before the next one is produced
        if not entries:
            raise InputError(f"{directory}: no leaves to write")
        files = {CONFIG: _to_json({"format": FORMAT, "version": VERSION} | dict(config))} | dict(extra_files or {})
        with writing(directory):
            writer.close()
            for name, data in files.items():
                if name != CONFIG and manifest.check_relative(name).split("/")[0] in (CONFIG, ARRAYS, MANIFEST):
                    raise InputError(f"extra file {name} has the name of a part of the checkpoint")
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                store.write(partial / name, data)
            described = manifest.describe_files(partial, store.list_files(partial))
            store.write(partial / MANIFEST, manifest.seal({"leaves": entries, "files": described}))


def digest_of(folder: str | os.PathLike) -> str:
    """What identifies a checkpoint: a digest of its manifest, which holds those of all its leaves and files.

    Raises:
      InputError: not a checkpoint folder.
    """
    directory = storage.at(folder)
    _read_manifest(directory)
    return hashlib.blake2b((directory / MANIFEST).read_bytes(), digest_size=16).hexdigest()


def load_config(directory: str | os.PathLike) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
      InputError: not a checkpoint folder, or of a newer version.
      DamagedDataError: the file is not what was written.
    """
    data = load_file(directory, CONFIG) or b""
    try:
        config = json.loads(data)
        if not isinstance(config, dict):
            raise ValueError(f"found {type(config).__name__}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{storage.at(directory) / CONFIG}: not a JSON object ({str(error)[:100]})") from error
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        found = " version ".join(str(config.get(key))[:50] for key in ("format", "version"))
        raise InputError(f"{storage.at(directory) / CONFIG}: expected {FORMAT} version {VERSION}, found {found}")
    return config


def load_file(directory: str | os.PathLike, name: str) -> bytes | None:
    """A file of the checkpoint such as "tokenizer.json", verified; None if the checkpoint was written without it."""
    directory = storage.at(directory)
    files = _read_manifest(directory)["files"]
    if name not in files:
        return None
    _raise_damage(directory, manifest.find_damage(directory, {name: files[name]}))
    return (directory / name).read_bytes()


def load_extra_files(directory: str | os.PathLike) -> dict[str, bytes]:
    """All the files that `save_params` was given as `extra_files`, verified."""
    files = _read_manifest(storage.at(directory))["files"]
    names = (name for name in files if name != CONFIG and not name.startswith(f"{ARRAYS}/"))
    return {name: content for name in names if (content := load_file(directory, name)) is not None}


def abstract_params(directory: str | os.PathLike, subtree: str | None = None) -> dict[str, Any]:
    """Shapes and dtypes of the parameters as a nested dict of `jax.ShapeDtypeStruct`, without reading them."""
    directory = storage.at(directory)
    leaves, prefix = _select(directory, _read_manifest(directory), subtree)
    structs = {path: jax.ShapeDtypeStruct(entry["shape"], jnp.dtype(entry["dtype"])) for path, entry in leaves.items()}
    return arrays.unflatten(structs, prefix)


def load_params(
    directory: str | os.PathLike,
    *,
    subtree: str | None = None,
    dtype: Any = None,
    shardings: Any = None,
    convert: arrays.Convert | None = None,
) -> dict[str, Any]:
    """The parameters as a nested dict of `jax.Array`, every file and leaf verified. Leaves are converted as they are read:
    memory stays within the result and one leaf as it is stored.

    Args:
      directory: a checkpoint folder.
      subtree: "model" or "image_tokenizer": only that part, without the outer key. To use both, load both at once.
      dtype: convert floating-point leaves to it; None leaves them as stored. A dict such as {"model": "bfloat16"} gives the
        outer keys dtypes of their own.
      shardings: one `jax.sharding.Sharding` for all leaves, or a nested dict of them shaped like the result; each process
        then reads only the slices of its devices, and all processes must call this together. None: the default device.
      convert: takes the path (from the root, "model/...") and the array of each leaf, after `dtype`; gives {path: array} to put
        in its place.

    Raises:
      InputError: not a checkpoint folder, no such subtree, or shardings of another structure.
      DamagedDataError: naming the file or leaf that is not what was written.
    """
    directory = storage.at(directory)
    content = _read_manifest(directory)
    leaves, prefix = _select(directory, content, subtree)
    by_path = _shardings_by_path(shardings, leaves, prefix)
    _raise_damage(directory, processes.find_damage_together(directory, content["files"]))

    def convert_leaf(path: str, array: jax.Array) -> Mapping[str, jax.Array]:
        wanted = dtype.get(path.split("/")[0]) if isinstance(dtype, Mapping) else dtype
        if wanted is not None and jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(wanted)
        return {path: array} if convert is None else convert(path, array)

    return arrays.unflatten(arrays.read_sharded(directory / ARRAYS, leaves, by_path, convert_leaf), prefix)


def iterate_params(directory: str | os.PathLike, subtree: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (path, array) for every leaf, verified, with one leaf at a time in host memory. Errors as in `load_params`."""
    directory = storage.at(directory)
    content = _read_manifest(directory)
    leaves, _ = _select(directory, content, subtree)
    _raise_damage(directory, manifest.find_damage(directory, content["files"]))
    yield from arrays.read_verified(directory / ARRAYS, leaves)


# --- writing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(directory: Place) -> Iterator[Any]:
    """A place to fill that becomes the checkpoint folder `directory` when the block ends; on failure nothing is left.

    Raises:
      InputError: the folder is taken or not writable.
    """
    with writing(directory), storage.of(directory).new_folder(directory, MANIFEST) as partial:
        yield partial


@contextlib.contextmanager
def writing(directory: Place) -> Iterator[None]:
    """Turn a failure to write into one line about the folder the caller asked for."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error


def _flatten(leaves: Iterable[tuple[str, Lazy]] | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Lazy]]:
    if not isinstance(leaves, Mapping):
        yield from leaves
        return
    for key, value in leaves.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _check_path(path: str, taken: Mapping[str, Any]) -> None:
    """Raise InputError unless `path` can join the tree: plain keys, neither a leaf already nor inside or around one."""
    keys = path.split("/")
    if not all(key and "." not in key and key.isprintable() for key in keys):
        raise InputError(f"expected a leaf path like model/embedding/embedding, without dots, found {path!r}")
    ancestors = ("/".join(keys[:n]) for n in range(1, len(keys) + 1))
    if any(ancestor in taken for ancestor in ancestors) or any(other.startswith(path + "/") for other in taken):
        raise InputError(f"leaf {path} is given twice, or is both a leaf and a folder of leaves")


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_manifest(directory: Place) -> dict[str, Any]:
    expected = f"expected a checkpoint folder with {CONFIG}, {ARRAYS}/ and {MANIFEST}"
    storage.of(directory).require(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; {expected}")
    try:
        content = manifest.read_sealed(directory / MANIFEST)
    except FileNotFoundError:
        raise InputError(f"{directory}: it has no {MANIFEST} (no checkpoint, or not written whole); {expected}") from None
    except OSError as error:
        raise InputError(f"{directory / MANIFEST}: cannot be read ({error.strerror})") from error
    try:
        manifest.check_tables(content)
    except InputError as error:
        raise InputError(f"{directory / MANIFEST}: not the manifest of a checkpoint: {error}") from error
    # Leaves are stored uncompressed: a manifest that promises more than its files hold would only fill the memory.
    promised = sum(math.prod(entry["shape"]) * jnp.dtype(entry["dtype"]).itemsize for entry in content["leaves"].values())
    held = sum(file["size"] for file in content["files"].values())
    if promised > held or CONFIG not in content["files"]:
        raise DamagedDataError(f"{directory / MANIFEST}: its {promised} bytes of leaves or {CONFIG} are not among its files")
    return content


def _select(directory: Place, content: dict[str, Any], subtree: str | None) -> tuple[arrays.LeafEntries, str]:
    """The leaves of a subtree and the prefix their paths share."""
    if subtree is None:
        return content["leaves"], ""
    prefix = subtree + "/"
    leaves = {path: entry for path, entry in content["leaves"].items() if path.startswith(prefix)}
    if not leaves:
        present = ", ".join(sorted({path.split("/")[0] for path in content["leaves"]}))
        raise InputError(f"{directory}: it has no parameters for {subtree}, only for {present}")
    return leaves, prefix


def _shardings_by_path(shardings: Any, leaves: arrays.LeafEntries, prefix: str) -> dict[str, jax.sharding.Sharding]:
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(leaves, shardings)
    by_path: dict[str, Any] = {prefix + path: sharding for path, sharding in _flatten(shardings)}
    if by_path.keys() != leaves.keys():
        path = sorted(by_path.keys() ^ leaves.keys())[0]
        which = "has no sharding" if path in leaves else "has a sharding but is not in the checkpoint"
        raise InputError(f"shardings must have the parameters' structure: {path} {which}")
    return by_path


def _raise_damage(directory: Place, problems: list[str]) -> None:
    if problems:
        raise DamagedDataError(f"{directory}: damaged: {manifest.summarize(problems)}")
