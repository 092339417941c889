"""Structured fuzzing of every reader of files that came from elsewhere: whatever they hold, the answer is bounded and one line.

    python -m benchmarks.fuzz --seconds 600                     # every target for so long, one after another
    python -m benchmarks.fuzz --targets pickle safetensors --seconds 60 --seed 7

An input is a folder, {relative name: content}, built by a hypothesis strategy that knows the format: instructions of a pickle,
entries of a header, tables of JSON with values put in the place of others, and bytes flipped, cut and repeated. A target reads
the folder as the library would. It passes if it returns or raises InputError or DamagedDataError with a message of bounded
size, within `LIMIT_SECONDS` and `LIMIT_BYTES` of memory. What fails is shrunk by hypothesis, printed, and the exit code is 1.

To add a reader, add a row to `TARGETS`. Findings become rows of `KEPT`, which tests/benchmarks/test_fuzz.py runs with a few
hundred fresh examples.
"""

import argparse
import contextlib
import copy
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import numpy as np
from hypothesis import strategies as st

from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import manifest, steps
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion import text_tokenizer, torch_files
from nextstep_jax.conversion.released import MODEL_FILES
from nextstep_jax.data.vocabulary import Vocabulary, with_special_tokens, word_vocabulary
from nextstep_jax.errors import DamagedDataError, InputError
from tests.conversion import torch_writer

LIMIT_SECONDS, LIMIT_BYTES, LIMIT_MESSAGE = 10, 1 << 29, 20_000

Files = dict[str, bytes]


class Target(NamedTuple):
    """A reader: what to give it, and how it reads the folder."""

    inputs: st.SearchStrategy[Files]
    read: Callable[[pathlib.Path], Any]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    failed = 0
    for name in arguments.targets:
        deadline, count, problem = time.monotonic() + arguments.seconds, 0, ""
        for seed in range(arguments.seed, sys.maxsize):
            if problem or time.monotonic() > deadline:
                break
            found, problem = try_many(name, 200, seed)
            count += found
        print(f"{name:20}{count:8} inputs  {problem or 'ok'}", flush=True)
        failed += bool(problem)
    return min(failed, 1)


def try_many(name: str, examples: int, seed: int) -> tuple[int, str]:
    """(how many inputs were tried, what is wrong with the smallest one that fails or "")."""
    target, count, last = TARGETS[name], 0, ""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(target.inputs)
    def run(files: Files) -> None:
        nonlocal count, last
        count += 1
        last = repr(files)
        check(target, files)

    try:
        run()
    except Exception as error:  # whatever it is, it is what this program looks for
        return count, f"{type(error).__name__}: {error}\n    {last}"
    return count, ""


def check(target: Target, files: Files) -> None:
    """AssertionError unless the target answers as it should."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            _bounded(lambda: target.read(pathlib.Path(folder)))
        except (InputError, DamagedDataError) as error:
            message = str(error)
            assert len(message) < LIMIT_MESSAGE, f"a message of {len(message)} characters"


class TooSlow(BaseException):
    """Not an Exception, which a reader may turn into its own."""


def _bounded(action: Callable[[], Any]) -> None:
    """Run the action; AssertionError if it takes too long or too much memory, or ends with something that is no Exception."""

    def stop(*_):
        raise TooSlow

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
        try:
            action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TooSlow:
        raise AssertionError(f"more than {LIMIT_SECONDS} s") from None
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # such as a panic of native code
        raise AssertionError(f"{type(error).__name__}: {str(error)[:200]}") from None
    finally:
        signal.signal(signal.SIGALRM, previous)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < LIMIT_BYTES, f"{grown >> 20} MiB of memory"


# --- what inputs are made of --------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 64, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan")])
TEXTS = st.sampled_from(["", "a", "\0", "/", "..", "../x", "a.b", "\ud7ff", "x" * 3000, "default", "F32", "float32", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | TEXTS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_json(draw, value: Any) -> Any:
    """The value with up to three of its parts replaced, removed, doubled or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 3))):
        parent, key, here = None, None, value
        while isinstance(here, dict | list) and here and (parent is None or draw(st.integers(0, 3))):
            parent, key = here, draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
            here = parent[key]
        if parent is None:
            return draw(VALUES)
        match draw(st.sampled_from(["replace", "remove", "double", "add"])):
            case "replace":
                parent[key] = draw(VALUES)
            case "remove":
                del parent[key]
            case "double":
                other = draw(TEXTS) if isinstance(parent, dict) else 0
                parent[other] = copy.deepcopy(here)
            case "add" if isinstance(parent, dict):
                parent[draw(TEXTS)] = draw(VALUES)
            case _:
                parent.append(draw(VALUES))
    return value


@st.composite
def changed_bytes(draw, data: bytes) -> bytes:
    """The data with up to three places flipped, overwritten, removed, repeated or cut off."""
    content = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        stop = min(len(content), start + draw(st.integers(1, 32)))
        match draw(st.sampled_from(["flip", "write", "remove", "repeat", "cut"])):
            case "flip" if content:
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "write":
                content[start:stop] = draw(st.binary(max_size=16))
            case "remove":
                del content[start:stop]
            case "repeat":
                content[start:start] = content[start:stop] * draw(st.sampled_from([1, 2, 1000]))
            case _:
                del content[start:]
    return bytes(content)


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON text of a value, sometimes damaged."""
    text = values.map(lambda value: json.dumps(value).encode())
    return st.one_of(text, text, text, text.flatmap(changed_bytes))


# --- torch checkpoints and safetensors ----------------------------------------------------------------------------------

_INSTRUCTIONS = [
    b"(",
    b")",
    b"]",
    b"}",
    b"N",
    b"\x88",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"a",
    b"e",
    b"s",
    b"u",
    b"Q",
    b"R",
    b"b",
]
_INSTRUCTIONS += [
    b"q\x00",
    b"q\x01",
    b"\x94",
    b"h\x00",
    b"h\x01",
    b"h\x00\x86q\x00" * 40,
    b"h\x00h\x00\x86q\x00" * 40,
    b"\x93",
    b".",
]
_INSTRUCTIONS += [torch_writer.integer(n) for n in (0, 1, 2, 2**31, 2**62)] + [b"J\xff\xff\xff\xff", b"G" + bytes(8)]
_INSTRUCTIONS += [torch_writer.text(word) for word in ("storage", "0", "cpu", "torch", "a", "state_dict", "x" * 2000)]
_INSTRUCTIONS += [torch_writer.name_global("torch", name) for name in ("FloatStorage", "BFloat16Storage", "load")]
_INSTRUCTIONS += [torch_writer.name_global("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")]
_INSTRUCTIONS += [torch_writer.name_global("collections", "OrderedDict"), b"cos\nsystem\n"]
_STATE = torch_writer.state_dict(
    {"a": torch_writer.Tensor("float32", "0", 24, 0, (4, 6), (6, 1), parameter=True)}, ordered=True
)
_DATA = {"0": np.arange(24, dtype=np.float32).tobytes()}


def _archive(pickled: bytes) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        return {"x.pt": torch_writer.write_archive(pathlib.Path(folder, "x.pt"), pickled, _DATA).read_bytes()}


@st.composite
def spliced(draw, data: bytes) -> bytes:
    """A pickle with instructions put in between."""
    at = draw(st.integers(0, len(data)))
    return data[:at] + b"".join(draw(st.lists(st.sampled_from(_INSTRUCTIONS), max_size=12))) + data[at:]


PICKLES = st.one_of(
    st.lists(st.sampled_from(_INSTRUCTIONS), max_size=40).map(lambda parts: b"\x80\x02" + b"".join(parts) + b"."),
    spliced(_STATE),
    changed_bytes(_STATE),
)
_ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
_HEADER = {"__metadata__": {"format": "pt"}, "a": _ENTRY, "b": _ENTRY | {"dtype": "BF16", "data_offsets": [24, 36]}}


def _safetensors(header: bytes) -> Files:
    return {"x.safetensors": len(header).to_bytes(8, "little") + header + bytes(36)}


SAFETENSORS = st.one_of(
    as_json(changed_json(_HEADER)).map(_safetensors),
    changed_bytes(_safetensors(json.dumps(_HEADER).encode())["x.safetensors"]).map(lambda data: {"x.safetensors": data}),
)
_INDEX = {"metadata": {"total_size": 36}, "weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
INDEXES = as_json(changed_json(_INDEX)).map(
    lambda text: {"model.safetensors.index.json": text} | _safetensors(json.dumps(_HEADER).encode())
)


def read_weights(folder: pathlib.Path) -> None:
    """Open the one file and read every tensor."""
    (path,) = folder.iterdir()
    for tensor in torch_files.open_file(path):
        tensor.read()


def read_shards(folder: pathlib.Path) -> None:
    """Open the shards that an index names."""
    for tensor in torch_files.open_weights(folder, MODEL_FILES)[0]:
        tensor.read()


# --- configs and text tokenizers ----------------------------------------------------------------------------------------

_MODEL = NextStepConfig().to_released() | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "rope_scaling": {"full_attention": {"type": "default"}},
    "layer_types": ["full_attention"] * 48,
    "use_sliding_window": True,
    "sliding_window": 4096,
    "max_window_layers": 48,
    "quantization_config": None,
}
_AUTOENCODER = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "shift_factor": None,
}
CONFIGS = st.one_of(
    as_json(changed_json(_MODEL)).map(lambda text: {"model.json": text}),
    as_json(changed_json(ImageTokenizerConfig().to_released())).map(lambda text: {"tokenizer.json": text}),
    as_json(changed_json(_AUTOENCODER)).map(lambda text: {"tokenizer.json": text}),
)


def read_config(folder: pathlib.Path) -> None:
    """Read a released config.json."""
    (path,) = folder.iterdir()
    kind = NextStepConfig if path.name == "model.json" else ImageTokenizerConfig
    kind.from_released(torch_files.read_json(path), str(path))


_VOCABULARY = json.loads(word_vocabulary(["cat", "dog"]))
_BYTES = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
_PIECES = {piece: id for id, piece in enumerate([*_BYTES, "he", "ll", "hell"])}
_ADDED = {"<|endoftext|>": len(_PIECES), "<|image_area|>": len(_PIECES) + 1}
_DESCRIBED = {"added_tokens_decoder": {str(id): {"content": token, "special": True} for token, id in _ADDED.items()}}


@st.composite
def tokenizer_folders(draw) -> Files:
    """vocab.json, merges.txt and the files of added tokens, each changed or not."""
    files = {"merges.txt": draw(changed_bytes(b"#version: 0.2\r\nh e\r\nl l\nhe ll\n"))}
    for name, value in (("vocab.json", _PIECES), ("added_tokens.json", _ADDED), ("tokenizer_config.json", _DESCRIBED)):
        if draw(st.integers(0, 3)):
            files[name] = draw(as_json(changed_json(value)))
    return files


def read_tokenizer(folder: pathlib.Path) -> None:
    """Read the text tokenizer of a folder and use it."""
    files = text_tokenizer.read(folder)
    content = with_special_tokens(files["tokenizer.json"], str(folder))
    vocabulary = Vocabulary.from_bytes(content, str(folder / "tokenizer.json"))
    vocabulary.decode(vocabulary.encode("hello, 12 cats"))


# --- checkpoints --------------------------------------------------------------------------------------------------------


def _checkpoint() -> Files:
    """A parameter checkpoint of two leaves."""
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent, "ck")
        leaves = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.int8)}}
        checkpoints.save_params(folder, leaves, {"model": {}, "image_tokenizer": None}, {"tokenizer.json": b"{}"})
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _sealed(content: Any) -> bytes:
    """A document whose digest is right, whatever it holds."""
    return manifest.seal(content) if isinstance(content, dict) else json.dumps(content).encode()


_CHECKPOINT = _checkpoint()


@st.composite
def hostile_checkpoints(draw) -> Files:
    """A checkpoint by somebody who knows the format: any file may be changed, and the digests agree with it."""
    files = dict(_CHECKPOINT)
    for name in draw(st.lists(st.sampled_from(sorted(files.keys() - {"manifest.json"})), max_size=2)):
        data = files[name]
        if name.endswith((".json", "METADATA", ".zarray")) and draw(st.booleans()):
            with contextlib.suppress(ValueError):
                files[name] = draw(as_json(changed_json(json.loads(data))))
                continue
        files[name] = draw(changed_bytes(data))
    content = json.loads(files.pop("manifest.json"))
    del content["digest"]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            pathlib.Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(folder, name).write_bytes(data)
        content["files"] = manifest.describe_files(pathlib.Path(folder), sorted(files))
    if draw(st.booleans()):
        content = draw(changed_json(content))
    sealed = _sealed(content)
    return files | {"manifest.json": draw(changed_bytes(sealed)) if not draw(st.integers(0, 5)) else sealed}


def read_checkpoint(folder: pathlib.Path) -> None:
    """Everything that reads a parameter checkpoint."""
    checkpoints.load_config(folder)
    checkpoints.abstract_params(folder)
    checkpoints.load_file(folder, "tokenizer.json")
    list(checkpoints.iterate_params(folder))
    checkpoints.load_params(folder, subtree="model", dtype="bfloat16")


_STEP = {
    "step": 3,
    "process": 0,
    "data_state": {"json": {"at": 1}},
    "config": {},
    "checkpoint_config": None,
    "versions": {"jax": "0"},
    "leaves": {"params/a": {"shape": [2, 3], "dtype": "float32", "digest": "0" * 32}},
    "files": {},
}
STEPS = changed_json(_STEP).map(lambda content: {"3/process_0-of-1.json": _sealed(content), "3/state/_METADATA": b"{}"})


def read_step(folder: pathlib.Path) -> None:
    """Read a step's descriptions, and restore it."""
    steps.list_steps(folder)
    described = steps.read_step(folder / "3")
    steps.from_json(described[0]["data_state"])
    steps.restore_step(folder / "3", {"params": {"a": np.zeros((2, 3), np.float32)}}, cast=False)


TARGETS = {
    "pickle": Target(PICKLES.map(_archive), read_weights),
    "torch_archive": Target(changed_bytes(_archive(_STATE)["x.pt"]).map(lambda data: {"x.pt": data}), read_weights),
    "safetensors": Target(SAFETENSORS, read_weights),
    "index": Target(INDEXES, read_shards),
    "config": Target(CONFIGS, read_config),
    "text_tokenizer": Target(tokenizer_folders(), read_tokenizer),
    "tokenizer_json": Target(as_json(changed_json(_VOCABULARY)).map(lambda text: {"tokenizer.json": text}), read_tokenizer),
    "checkpoint": Target(hostile_checkpoints(), read_checkpoint),
    "step": Target(STEPS, read_step),
}

# Inputs that once failed: (target, files).
KEPT: list[tuple[str, Files]] = [
    ("index", {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "x" * 3000}}).encode()}),
    ("tokenizer_json", {"tokenizer.json": json.dumps(_VOCABULARY | {"model": _VOCABULARY["model"] | {"vocab": {}}}).encode()}),
    ("step", {"3/process_0-of-1.json": _sealed(_STEP | {"files": {".": None}})}),
    ("step", {"3/process_0-of-1.json": _sealed({key: value for key, value in _STEP.items() if key != "data_state"})}),
    ("step", {"3/process_0-of-1.json": _sealed(_STEP | {"leaves": {"params/a": {}}})}),
    ("checkpoint", _CHECKPOINT | {"manifest.json": _sealed({"leaves": {"model": 1}, "files": {}})}),
]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
