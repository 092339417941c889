"""From a checkpoint of this library to the released layout, in safetensors.

    config.json                       as released, key for key
    model.safetensors                 or model-0000i-of-0000n.safetensors of at most 5 GB with model.safetensors.index.json
    vae/config.json, checkpoint.safetensors
    tokenizer.json, vocab.json, ...   the text tokenizer's files that came with the source

Names, dtypes and bytes are those of the released tensors. An image tokenizer that came under diffusers' names goes back under
them, as diffusion_pytorch_model.safetensors; one trained here gets the releases' names. A buffer that conversion dropped is
written again where its bytes can be made again exactly (config.json's "source" says which); others stay out. An image tokenizer
alone is written without the `vae/`. (The PyTorch code opens `vae/checkpoint.pt`, which `torch.save` makes of
checkpoint.safetensors.)
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nextstep_jax import checkpoints, storage
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion import names, text_tokenizer
from nextstep_jax.conversion.names import Entry
from nextstep_jax.conversion.param_stream import Progress, no_progress
from nextstep_jax.conversion.released import FLOATS
from nextstep_jax.conversion.torch_files import SAFETENSORS_DTYPES
from nextstep_jax.errors import InputError
from nextstep_jax.models.nextstep import gen_pos_embed

SHARD_BYTES = 5_000_000_000

# Where each naming of the image tokenizer is looked for.
_FILES = {"bfl": "checkpoint", "diffusers": "diffusion_pytorch_model"}
_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes:
      tensors, nbytes: how many released tensors were written, and their size.
      left_out: tensors of the source that cannot be made again, and are not there.
    """

    directory: storage.Place
    tensors: int
    nbytes: int
    left_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Output:
    """One tensor to write, as the released layout has it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def export(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> Export:
    """Write the checkpoint `src` to the folder `dst` in the released layout, one tensor in memory at a time.

    Args:
      src: a folder that `convert` or training wrote.
      dst: must not exist yet, or be an empty folder; it appears complete or not at all.
      shard_bytes: largest size of the tensors in one file of the model.

    Raises:
      InputError: `src` is not a checkpoint or its parameters are not those of its config; `dst` is taken or not writable.
      DamagedDataError: `src` is not what was written.
    """
    src, dst = storage.at(src), storage.at(dst)
    config = checkpoints.load_config(src)
    parts = _parts(src, config)
    files = [(name, checkpoints.load_file(src, name)) for name in (text_tokenizer.FILE, *text_tokenizer.COMPANIONS)]
    done, total = 0, sum(part.nbytes for part in parts.values())
    with checkpoints.writing(dst), storage.of(dst).new_local_folder(dst, "config.json") as partial:
        for name, data in files:
            if data is not None:
                (partial / name).write_bytes(data)
        for part in parts.values():
            part.open(partial if len(parts) == 1 or part.subtree == "model" else partial / "vae", shard_bytes)
        for path, leaf in checkpoints.iterate_params(src):
            subtree, path = path.split("/", 1)
            if _is_ours(path):
                continue
            progress(done, total)
            done += parts[subtree].put(path, leaf)
        for part in parts.values():
            part.close()
    progress(total, total)
    left_out = tuple(row["name"] for row in _dropped(config) if not row["restore"])
    left_out += ("map_head",) if (config.get("model") or {}).get("map_head") else ()
    return Export(dst, sum(len(part.outputs) for part in parts.values()), total, left_out)


def _is_ours(path: str) -> bool:
    """Whether a parameter of the model belongs to what no release has: the head of `MapHead`."""
    return path.startswith("map_head/")


def _dropped(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (config.get("source") or {}).get("dropped", [])


def _parts(src: storage.Place, config: Mapping[str, Any]) -> dict[str, "_Part"]:
    """The subtrees of a checkpoint, each laid out for the released files."""
    parts, where = {}, str(src / "config.json")
    if config.get("model"):
        entries = names.model_entries(NextStepConfig.from_released(config["model"], where))
        restored = [row for row in _dropped(config) if row["restore"]]
        values = {key: value for key, value in config["model"].items() if key != "map_head"}
        parts["model"] = _Part(src, "model", values, entries, restored, "model")
    if config.get("image_tokenizer"):
        naming = (config.get("source") or {}).get("image_tokenizer_names") or "bfl"
        tokenizer = ImageTokenizerConfig.from_released(config["image_tokenizer"], where)
        entries = names.image_tokenizer_entries(tokenizer, naming)
        parts["image_tokenizer"] = _Part(src, "image_tokenizer", config["image_tokenizer"], entries, [], _FILES[naming])
    extra = set(checkpoints.abstract_params(src)) - parts.keys()
    if extra:
        raise InputError(f"{src}: it holds {', '.join(sorted(extra))}, which its config.json does not describe")
    return parts


class _Part:
    """One subtree of a checkpoint on its way into safetensors files: `open`, `put` every leaf in any order, `close`."""

    def __init__(
        self,
        src: storage.Place,
        subtree: str,
        config: Mapping[str, Any],
        entries: Sequence[Entry],
        restored: Sequence[Mapping],
        stem: str,
    ):
        self.subtree, self._config, self._restored, self._stem = subtree, config, restored, stem
        self._entries = {entry.path: entry for entry in entries}
        dtypes = _check_leaves(src, subtree, self._entries)
        self.outputs = [_Output(entry.source, entry.source_shape, dtypes[entry.path]) for entry in entries]
        for row in restored:  # a tied head has the dtype its embedding has now, a table the one it was stored in
            dtype = dtypes["embedding/embedding"] if row["name"] == names.LANGUAGE_HEAD else np.dtype(row["dtype"])
            self.outputs.append(_Output(row["name"], tuple(row["shape"]), dtype))
        self._folder = pathlib.Path()
        self._places: dict[str, tuple[pathlib.Path, int]] = {}

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    def open(self, folder: pathlib.Path, shard_bytes: int) -> None:
        """Write config.json and files with headers and room for the data."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self._config, indent=2) + "\n")
        shards = _split(self.outputs, shard_bytes if self.subtree == "model" else self.nbytes)
        for number, shard in enumerate(shards, start=1):
            name = self._stem if len(shards) == 1 else f"{self._stem}-{number:05d}-of-{len(shards):05d}"
            file = folder / f"{name}.safetensors"
            self._places |= {name: (file, start) for name, start in _write_header(file, shard).items()}
        if len(shards) > 1:
            weight_map = {name: self._places[name][0].name for name in sorted(self._places)}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
            (folder / f"{self._stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def put(self, path: str, leaf: np.ndarray) -> int:
        """Write one leaf where it belongs; returns its bytes."""
        entry = self._entries[path]
        self._write(entry.source, entry.store(leaf))
        if entry.source == names.EMBEDDING and any(row["name"] == names.LANGUAGE_HEAD for row in self._restored):
            self._write(names.LANGUAGE_HEAD, leaf)
        return leaf.nbytes

    def close(self) -> None:
        """Write what can be computed and make all of it durable."""
        for row in self._restored:
            if row["name"] == names.POSITION_TABLE:
                _, tokens, width = row["shape"]
                self._write(row["name"], gen_pos_embed(math.isqrt(tokens), width)[None].astype(row["dtype"]))
        for file in {file for file, _ in self._places.values()}:
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())

    def _write(self, name: str, array: np.ndarray) -> None:
        file, start = self._places[name]
        with open(file, "r+b") as stream:
            stream.seek(start)
            stream.write(names.contiguous(array).reshape(-1).view(np.uint8).data)  # `tofile` does not say why it failed


def _check_leaves(src: storage.Place, subtree: str, entries: Mapping[str, Entry]) -> dict[str, np.dtype]:
    """The dtype of every leaf. InputError unless the checkpoint holds the parameters of its config, no more, no less."""
    found: dict[str, Any] = {}
    _flatten(checkpoints.abstract_params(src, subtree), "", found)
    found = {path: leaf for path, leaf in found.items() if not _is_ours(path)}
    problems = [f"{path}: missing" for path in entries.keys() - found.keys()]
    problems += [f"{path}: unknown" for path in found.keys() - entries.keys()]
    for path in entries.keys() & found.keys():
        shape, expected = tuple(found[path].shape), entries[path].shape
        if shape != expected:
            problems.append(f"{path}: shape {list(shape)}, expected {list(expected)}")
        if np.dtype(found[path].dtype) not in FLOATS:
            problems.append(f"{path}: dtype {found[path].dtype}, expected a float type")
    if problems:
        listed = "\n".join(f"  {line}" for line in sorted(problems))
        raise InputError(f"{src}: {len(problems)} parameters are not those of its config.json\n{listed}")
    return {path: np.dtype(leaf.dtype) for path, leaf in found.items()}


def _flatten(tree: Mapping[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{key}/", into)
        else:
            into[prefix + key] = value


def _split(outputs: Sequence[_Output], limit: int) -> list[list[_Output]]:
    """Consecutive tensors in files of at most `limit` bytes; a larger tensor has a file of its own."""
    shards: list[list[_Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.nbytes
    return shards


def _write_header(file: pathlib.Path, shard: Sequence[_Output]) -> dict[str, int]:
    """Create a safetensors file with its header and room for the data; returns where each tensor starts.

    Wide dtypes come first, so that every tensor is aligned to its own dtype.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for output in sorted(shard, key=lambda output: (-output.dtype.itemsize, output.name)):
        starts[output.name] = end
        offsets = [end, end + output.nbytes]
        header[output.name] = {"dtype": _CODES[output.dtype], "shape": list(output.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in starts.items()}
