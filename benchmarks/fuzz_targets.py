"""The readers of files that came from elsewhere, and inputs for each: `TARGETS`. Inputs that once failed: `KEPT`."""

import contextlib
import hashlib
import io
import json
import pathlib
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import msgpack
import numpy as np
from hypothesis import strategies as st

from benchmarks import fuzz_sequences
from benchmarks.fuzz_inputs import TEXTS, Files, as_json, changed_bytes, changed_json
from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import manifest, steps
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion import text_tokenizer, torch_files
from nextstep_jax.conversion.released import MODEL_FILES
from nextstep_jax.data import image_output, images, records, shards
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.vocabulary import Vocabulary, with_special_tokens, word_vocabulary
from nextstep_jax.data.webdataset import WebDatasetSource
from nextstep_jax.errors import DamagedDataError, InputError
from tests.conversion import torch_writer
from tests.data.damaged_images import FORMS, corpus, damaged


class Target(NamedTuple):
    """A reader: what to give it, and how it reads the folder."""

    inputs: st.SearchStrategy[Files]
    read: Callable[[pathlib.Path], Any]


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


# --- data ---------------------------------------------------------------------------------------------------------------

_PNG = corpus("PNG")[0]
_JSON = {"caption": "a cat", "caption_long": {"en": ["a grey cat"]}, "id": 7, "tags": ["x", {"y": None}]}
_INTERLEAVED = {"caption": "a <image_0> b <image_1> c", "caption_all": {"x": "<image_1> <image_0>"}}
_MEMBERS = {"a.json": json.dumps(_JSON).encode(), "a.png": _PNG, "b-0.png": _PNG, "b-1.png": _PNG, "b.txt": b"two cats"}
_KINDS = [None, "pair", "edit", "interleaved"]


@st.composite
def tars(draw) -> Files:
    """A tar of a few samples: members changed, left out, named anew, of other types; the whole then damaged or not, with the
    checksums of its headers right or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))) as tar:
        for name, data in _MEMBERS.items():
            if not draw(st.integers(0, 5)):
                name = draw(
                    st.sampled_from([*_MEMBERS, "/a.png", "../a.png", "c/a.b.jpg", "x" * 300 + ".txt", "a\n.json", "é.png"])
                )
            if name.endswith(".json"):
                data = draw(as_json(changed_json(draw(st.sampled_from([_JSON, _INTERLEAVED])))))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if not draw(st.integers(0, 9)):
                info.type = draw(
                    st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"7", b"S"])
                )
                info.linkname = "/etc/passwd"
            if not draw(st.integers(0, 9)):
                info.pax_headers = {
                    draw(st.sampled_from(["path", "size", "GNU.sparse.major", "x"])): draw(TEXTS).replace("\0", "0")
                }
            tar.addfile(info, io.BytesIO(data))
    content = draw(changed_bytes(buffer.getvalue()))
    return {"t.tar": _with_checksums(content) if draw(st.booleans()) else content}


def _with_checksums(data: bytes) -> bytes:
    """The tar with every header's checksum made to fit, as far as its sizes lead."""
    content, at = bytearray(data), 0
    while at + 512 <= len(content) and any(content[at : at + 512]):
        header = content[at : at + 512]
        content[at + 148 : at + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
        digits = header[124:136].strip(b"\0 ")
        at += 512 + (-(-int(digits, 8) // 512) * 512 if digits and not digits.strip(b"01234567") else 0)
    return bytes(content)


def _read_all(source: Any) -> None:
    """Every sample and its pixels; each that cannot be used says so."""
    for index in range(min(len(source), 64)):
        with contextlib.suppress(InputError, DamagedDataError):
            for part in source[index].images:
                part.pixels()
    source.unused.to_json()
    source.identity()


def read_tar(folder: pathlib.Path) -> None:
    """Every sample of a tar, as each kind."""
    for kind in _KINDS:
        with contextlib.suppress(InputError):
            _read_all(WebDatasetSource([folder / "t.tar"], kind))


_ROWS = [{"file_name": "a.png", "text": "a cat", "score": 1}, {"file_name": "b.png", "caption": "b", "caption_x": "c"}]


@st.composite
def image_folders(draw) -> Files:
    """Images with captions in tables and beside them."""
    files = {
        "a.png": _PNG,
        "b.png": _PNG,
        "s/c.jpg": draw(changed_bytes(corpus("JPEG")[0])),
        "s/c.txt": draw(changed_bytes(b"c")),
    }
    rows = draw(changed_json(_ROWS))
    lines = [json.dumps(row) for row in rows] if isinstance(rows, list) else [json.dumps(rows)]
    files["metadata.jsonl"] = draw(changed_bytes("\n".join(lines).encode()))
    files["s/captions.csv"] = draw(
        changed_bytes(b'file,caption,caption_x\nc.jpg,"a ""cat""\nagain",x\nd.png,e\n../a.png,f,g\n')
    )
    files["b.json"] = draw(as_json(changed_json(_JSON)))
    return {name: data for name, data in files.items() if draw(st.integers(0, 7))}


_SAMPLE = records.Sample(
    (records.TextPart("a"), records.ImagePart.from_bytes(_PNG), records.TextPart("b", loss=False)),
    "interleaved",
    "k",
    {"x": "other"},
    {"n": [1, {"y": 0.5}]},
)
_RECORD = msgpack.unpackb(records.pack(_SAMPLE))


def _as_msgpack(value: Any) -> bytes:
    try:
        return msgpack.packb(value)
    except OverflowError:  # an integer that msgpack does not know
        return b"\xc1"


RECORDS = st.one_of(changed_json(_RECORD).map(_as_msgpack), changed_bytes(records.pack(_SAMPLE)), st.binary(max_size=40)).map(
    lambda data: {"record": data}
)


def read_record(folder: pathlib.Path) -> None:
    """A record as it comes out of a shard."""
    for part in records.unpack((folder / "record").read_bytes()).images:
        part.pixels()


def _dataset() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        shard = shards.write_shard(pathlib.Path(folder, shards.shard_name(0)), [records.pack(_SAMPLE)] * 3)
        shards.write_index(folder, "d", [shard], images=3, kinds={"interleaved": 3})
        return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


_DATASET = _dataset()


@st.composite
def datasets(draw) -> Files:
    """A dataset with another index, or with a damaged shard that the index may fit."""
    files, index = dict(_DATASET), json.loads(_DATASET["index.json"])
    name = index["shards"][0]["file"]
    files[name] = draw(changed_bytes(files[name]))
    if draw(st.booleans()):
        index["shards"][0] |= {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    return files | {"index.json": draw(as_json(changed_json(index)))}


def read_dataset(folder: pathlib.Path) -> None:
    """Every sample of a dataset, and its digests."""
    source = shards.ArrayRecordSource(folder)
    _read_all(source)
    source.verify()


IMAGES = st.sampled_from(sorted(FORMS)).flatmap(damaged).map(lambda data: {"x": data})


@mock.patch.object(images, "MAX_PIXELS", 1 << 20)  # so that what a header claims is soon too much
def read_image(folder: pathlib.Path) -> None:
    """An image as a path and as bytes, and what a generated image records."""
    with contextlib.suppress(InputError):
        image_output.read_record(folder / "x")
    images.probe((folder / "x").read_bytes())
    images.load(folder / "x", cover=(2, 2))
    images.load(folder / "x")


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
    "tar": Target(tars(), read_tar),
    "image_folder": Target(image_folders(), lambda folder: _read_all(FolderSource(folder))),
    "record": Target(RECORDS, read_record),
    "dataset": Target(datasets(), read_dataset),
    "image": Target(IMAGES, read_image),
    "video": Target(fuzz_sequences.videos(), fuzz_sequences.read_videos),
    "subtitles": Target(fuzz_sequences.subtitles(), fuzz_sequences.read_both_subtitles),
    "views": Target(fuzz_sequences.views(), fuzz_sequences.read_views),
}

# Inputs that once failed: (target, files).
_WITHOUT_A_PRODUCT = {piece: id for piece, id in _PIECES.items() if piece != "hell"}
KEPT: list[tuple[str, Files]] = [
    ("text_tokenizer", {"vocab.json": json.dumps(_WITHOUT_A_PRODUCT).encode(), "merges.txt": b"h e\nl l\nhe ll\n"}),
    ("dataset", _DATASET | {"index.json": json.dumps({"format": shards.FORMAT, "version": {"x" * 30_000: 1}}).encode()}),
    ("index", {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "x" * 3000}}).encode()}),
    ("tokenizer_json", {"tokenizer.json": json.dumps(_VOCABULARY | {"model": _VOCABULARY["model"] | {"vocab": {}}}).encode()}),
    ("step", {"3/process_0-of-1.json": _sealed(_STEP | {"files": {".": None}})}),
    ("step", {"3/process_0-of-1.json": _sealed({key: value for key, value in _STEP.items() if key != "data_state"})}),
    ("step", {"3/process_0-of-1.json": _sealed(_STEP | {"leaves": {"params/a": {}}})}),
    ("checkpoint", _CHECKPOINT | {"manifest.json": _sealed({"leaves": {"model": 1}, "files": {}})}),
]
