import json
import os
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save, save_file

from nextstep_jax.conversion import torch_files
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS
from tests.conversion import torch_writer
from tests.conversion.torch_writer import Tensor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMBERS = np.arange(24, dtype=np.float32)


def read_all(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.read() for tensor in torch_files.open_file(path)}


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def arrays(dtypes=("float32", "float16", "float64", "int64", "int8", "uint8", "bool")):
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return st.dictionaries(st.text(min_size=1, max_size=8), hnp.arrays(st.sampled_from(dtypes), shapes), max_size=5)


# --- safetensors ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(tensors=arrays())
def test_reads_what_the_safetensors_library_writes(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    path.write_bytes(save(tensors))
    assert_same(read_all(path), tensors)


def test_bfloat16_and_metadata(tmp_path):
    tensors = {"a": np.arange(6).reshape(2, 3).astype(BFLOAT16), "b": np.ones(3, np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    assert_same(read_all(tmp_path / "x.safetensors"), tensors)


def test_opening_reads_no_data(tmp_path, monkeypatch):
    save_file({"a": NUMBERS, "b": NUMBERS}, tmp_path / "x.safetensors")
    reads = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *args, **kw: reads.append(args) or fromfile(*args, **kw))
    a, _ = torch_files.open_file(tmp_path / "x.safetensors")
    assert not reads
    np.testing.assert_array_equal(a.read(), NUMBERS)
    assert [args[2] for args in reads] == [NUMBERS.nbytes]


def raw(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        (b"\xff" * 8 + b"{}", "truncated"),
        ((2**40).to_bytes(8, "little") + b"{}", "truncated"),
        (raw(b""), "not a safetensors file"),
        (raw(b"[]"), "not a safetensors file"),
        (raw(b"{'a': 1}"), "not a safetensors file"),
        (raw(b"\xff\xfe"), "not a safetensors file"),
        (raw(b"[" * 100_000), "not a safetensors file"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "not a safetensors file"),
        (raw(b'{"a": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "a": {}}'), "repeated: a"),
        (raw({"a": 3}), "entry of a"),
        (raw({"a": {"dtype": "F32"}}), "entry of a"),
        (raw({"a": entry() | {"extra": 1}}, bytes(8)), "entry of a"),
        (raw({"a": entry(dtype="F8_E4M3", offsets=(0, 2))}, bytes(2)), "dtype 'F8_E4M3'"),
        (raw({"a": entry(dtype=["F32"])}, bytes(8)), "dtype"),
        (raw({"a": entry(shape=(-2,))}, bytes(8)), "not sizes"),
        (raw({"a": entry(shape=(True, 2))}, bytes(8)), "not sizes"),
        (raw({"a": entry(shape=(2.0,))}, bytes(8)), "not sizes"),
        (raw({"a": entry(shape=(2**62, 8))}, bytes(8)), "but data_offsets"),
        (raw({"a": entry(shape=[1] * 64)}, bytes(4)), "not sizes"),
        (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "but data_offsets"),
        (raw({"a": entry(offsets=(0, 8, 16))}, bytes(8)), "not sizes"),
        (raw({"a": entry(shape=(3,))}, bytes(8)), "but data_offsets"),
        (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "starts at byte 4"),
        (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "starts at byte 4"),
        (raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "starts at byte 12"),
        (raw({"a": entry()}, bytes(7)), "truncated or damaged"),
        (raw({"a": entry()}, bytes(9)), "truncated or damaged"),
    ],
)
def test_malformed_safetensors(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        torch_files.open_file(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [lambda path, tensors: save_file(tensors, path), torch_writer.save])
def test_absurdly_long_names(tmp_path, write):
    path = tmp_path / ("x.safetensors" if write is not torch_writer.save else "x.pt")
    write(path, {"a" * 501: NUMBERS})
    with pytest.raises(InputError, match="has 501 characters, more than 500") as caught:
        torch_files.open_file(path)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": NUMBERS}, path)
    (tensor,) = torch_files.open_file(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(InputError, match="truncated while it was read"):
        tensor.read()


# --- shards -----------------------------------------------------------------------------------------------------------


def write_shards(folder: pathlib.Path, shards: dict[str, dict], weight_map: dict | None = None) -> None:
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    weight_map = weight_map or {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path):
    shards = {"model-1.safetensors": {"a": NUMBERS}, "model-2.safetensors": {"b": NUMBERS + 1, "c": NUMBERS + 2}}
    write_shards(tmp_path, shards)
    tensors, problems = torch_files.open_weights(tmp_path, ("model.safetensors",))
    assert problems == []
    assert_same({t.name: t.read() for t in tensors}, {"a": NUMBERS, "b": NUMBERS + 1, "c": NUMBERS + 2})


def test_an_index_that_disagrees_with_its_shards(tmp_path):
    shards = {"model-1.safetensors": {"a": NUMBERS}, "model-2.safetensors": {"b": NUMBERS}}
    write_shards(tmp_path, shards, {"a": "model-2.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"})
    _, problems = torch_files.open_weights(tmp_path, ("model.safetensors",))
    assert problems == [
        "a: not in model-2.safetensors, where model.safetensors.index.json says it is",
        "c: not in model-1.safetensors, where model.safetensors.index.json says it is",
        "a: in model-1.safetensors, but model.safetensors.index.json does not say so",
    ]


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden", "a\\b", ""])
def test_an_index_that_names_files_elsewhere(tmp_path, file):
    (tmp_path / "inner").mkdir()
    save_file({"a": NUMBERS}, tmp_path / "other.safetensors")
    (tmp_path / "inner/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(InputError, match="not a file of its own folder"):
        torch_files.open_weights(tmp_path / "inner", ("model.safetensors",))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
)
def test_malformed_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        torch_files.open_weights(tmp_path, ("model.safetensors",))


def test_missing_shards_and_missing_weights(tmp_path):
    with pytest.raises(InputError, match="no weights found; expected model.safetensors"):
        torch_files.open_weights(tmp_path, ("model.safetensors",))
    write_shards(tmp_path, {"model-1.safetensors": {"a": NUMBERS}}, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    with pytest.raises(InputError, match="1 of its 2 files are missing: model-2.safetensors"):
        torch_files.open_weights(tmp_path, ("model.safetensors",))


# --- torch checkpoints ------------------------------------------------------------------------------------------------


def test_reads_what_torch_wrote():
    expected = load_file(GOLDENS / "tiny_vae/checkpoint.safetensors")
    assert_same(read_all(GOLDENS / "tiny_vae/checkpoint.pt"), expected)


@settings(max_examples=30, deadline=None)
@given(tensors=arrays())
def test_reads_every_dtype(tensors, tmp_path_factory):
    path = torch_writer.save(tmp_path_factory.mktemp("file") / "x.pt", tensors)
    assert_same(read_all(path), tensors)


def test_bfloat16_from_torch(tmp_path):
    tensors = {"a": np.arange(6).reshape(2, 3).astype(BFLOAT16)}
    assert_same(read_all(torch_writer.save(tmp_path / "x.bin", tensors)), tensors)


def write_views(path: pathlib.Path, *views: Tensor, storages: dict | None = None, **options) -> pathlib.Path:
    tensors = {chr(ord("a") + number): view for number, view in enumerate(views)}
    pickled = torch_writer.state_dict(tensors, ordered=True)
    return torch_writer.write_archive(path, pickled, {"0": NUMBERS.tobytes()} if storages is None else storages, **options)


def test_views_of_a_shared_storage(tmp_path):
    """Offsets, transposed strides, steps, parameters, scalars and empty tensors, in an ordered dict with metadata."""
    path = write_views(
        tmp_path / "x.pt",
        Tensor("float32", "0", 24, 0, (4, 6), (6, 1)),
        Tensor("float32", "0", 24, 0, (6, 4), (1, 6)),
        Tensor("float32", "0", 24, 5, (3, 2), (6, 2), parameter=True),
        Tensor("float32", "0", 24, 23, (), ()),
        Tensor("float32", "0", 24, 24, (0, 7), (7, 1)),
    )
    grid = NUMBERS.reshape(4, 6)
    expected = {"a": grid, "b": grid.T, "c": grid.reshape(-1)[5:].reshape(-1)[[0, 2, 6, 8, 12, 14]].reshape(3, 2)}
    expected |= {"d": NUMBERS[23], "e": np.zeros((0, 7), np.float32)}
    assert_same(read_all(path), expected)


@pytest.mark.parametrize("options", [{"root": "other_name"}, {"byteorder": None}])
def test_archives_of_other_torch_versions(tmp_path, options):
    assert_same(read_all(torch_writer.save(tmp_path / "x.pt", {"a": NUMBERS}, **options)), {"a": NUMBERS})


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Tensor("float32", "0", 24, 0, (25,), (1,)), "reaches outside"),
        (Tensor("float32", "0", 24, 1, (24,), (1,)), "reaches outside"),
        (Tensor("float32", "0", 24, 2**62, (1,), (1,)), "reaches outside"),
        (Tensor("float32", "0", 24, 0, (2, 2), (2**62, 1)), "reaches outside"),
        (Tensor("float32", "0", 24, 0, (2**40, 2**20), (0, 0)), "reaches outside"),
        (Tensor("float32", "0", 24, 0, (25,), (0,)), "reaches outside"),
        (Tensor("float32", "0", 24, 0, (2, 2), (1,)), "not a torch checkpoint"),
        (Tensor("float32", "0", 24, -1, (2,), (1,)), "not a torch checkpoint"),
        (Tensor("float32", "0", 24, 0, (-2,), (1,)), "not a torch checkpoint"),
        (Tensor("float32", "0", 24, 5, (2,), (-1,)), "not a torch checkpoint"),
        (Tensor("float32", "0", 48, 0, (24,), (1,)), "has 96 bytes, expected 48 of float32"),
        (Tensor("float64", "0", 24, 0, (24,), (1,)), "has 96 bytes, expected 24 of float64"),
        (Tensor("float32", "7", 24, 0, (24,), (1,)), "has no archive/data/7"),
        (Tensor("float32", "../../etc/passwd", 24, 0, (24,), (1,)), "has no archive/data/"),
        (Tensor("QInt8Storage", "0", 96, 0, (24,), (1,)), "torch.QInt8Storage"),
    ],
)
def test_tensors_that_reach_outside_their_storage(tmp_path, view, message):
    path = write_views(tmp_path / "x.pt", view)
    with pytest.raises(InputError) as caught:
        torch_files.open_file(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def nested(tables: dict[str, bytes]) -> bytes:
    """A pickled dictionary of values that are pickled already."""
    return b"\x80\x02}(" + b"".join(torch_writer.text(name) + value for name, value in tables.items()) + b"u."


def state(*names: str) -> bytes:
    return torch_writer.state_dict({name: Tensor("float32", "0", 24, 0, (24,), (1,)) for name in names})[2:-1]


def test_a_state_dict_beside_the_counters_of_a_run(tmp_path):
    content = nested({"state_dict": state("a", "b"), "epoch": torch_writer.integer(3), "name": torch_writer.text("x")})
    path = torch_writer.write_archive(tmp_path / "x.pt", content, {"0": NUMBERS.tobytes()})
    assert_same(read_all(path), {"a": NUMBERS, "b": NUMBERS})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": state("a"), "ema": state("a")}, "found the tables model, ema; save the model's alone"),
        ({"model": state("a"), "b": b"N", "optimizer": b"}"}, "found the tables model, optimizer"),
        ({"model": nested({"a": b"]"})[2:-1]}, "found list at 'a'"),
        ({"epoch": torch_writer.integer(3)}, "found int at 'epoch'"),
    ],
)
def test_checkpoints_that_are_no_state_dict(tmp_path, tables, message):
    path = torch_writer.write_archive(tmp_path / "x.pt", nested(tables), {"0": NUMBERS.tobytes()})
    with pytest.raises(InputError, match=message):
        torch_files.open_file(path)


def test_a_compressed_archive_is_refused(tmp_path):
    """torch never compresses; a small file could otherwise claim any amount of memory."""
    bomb = {"0": bytes(1 << 24)}
    view = Tensor("float32", "0", 1 << 22, 0, (1 << 22,), (1,))
    path = write_views(tmp_path / "x.pt", view, storages=bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(InputError, match="compressed or encrypted"):
        torch_files.open_file(path)


def test_sizes_that_the_file_does_not_have(tmp_path):
    """The directory of the archive claims 4 GB where 96 bytes are."""
    path = write_views(tmp_path / "x.pt", Tensor("float32", "0", 2**30 - 1, 0, (5,), (1,)))
    claim = (2**32 - 4).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace((96).to_bytes(4, "little") * 2, claim * 2))
    with pytest.raises(InputError, match="beyond the end of the file"):
        torch_files.open_file(path)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = torch_writer.save(tmp_path / "x.pt", {"a": NUMBERS, "b": NUMBERS + 1})
    data = bytearray(path.read_bytes())
    data[data.index(NUMBERS.tobytes()) + 40] ^= 1
    path.write_bytes(data)
    a, b = torch_files.open_file(path)
    with pytest.raises(InputError, match="damaged"):
        a.read()
    np.testing.assert_array_equal(b.read(), NUMBERS + 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "neither a zip archive"),
        (lambda path: path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), "not a torch checkpoint"),
        (lambda path: path.write_bytes(torch_writer.save(path, {"a": NUMBERS}).read_bytes()[:-30]), "neither a zip archive"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "one data.pkl"),
        (lambda path: torch_writer.save(path, {"a": NUMBERS}, byteorder=b"big"), "byte order"),
        (lambda path: torch_writer.write_archive(path, b"\x80\x02]q\x00.", {}), "expected a state dict, found list"),
        (lambda path: torch_writer.write_archive(path, b"\x80\x02}(X\x01\0\0\0aK\x01u.", {}), "found int at 'a'"),
        (lambda path: torch_writer.write_archive(path, b"\x80\x02}(K\x01K\x01u.", {}), "expected a str"),
        (lambda path: torch_writer.write_archive(path, b"\x80\x02" + b"(" * (17 << 20), {}), "more than"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, write, message):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(InputError) as caught:
        torch_files.open_file(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_name_given_twice(tmp_path):
    view = torch_writer.text("a") + torch_writer.tensor(Tensor("float32", "0", 24, 0, (24,), (1,)))
    path = torch_writer.write_archive(tmp_path / "x.pt", b"\x80\x02}(" + 2 * view + b"u.", {"0": NUMBERS.tobytes()})
    with pytest.raises(InputError, match="a is there twice"):
        torch_files.open_file(path)


# --- damage -----------------------------------------------------------------------------------------------------------

SAMPLES = {
    ".safetensors": lambda path: save_file({"ab": NUMBERS.reshape(4, 6), "c": NUMBERS.astype(np.float16)}, path),
    ".pt": lambda path: torch_writer.save(path, {"ab": NUMBERS.reshape(4, 6), "c": NUMBERS.astype(np.float16)}),
}


@pytest.mark.parametrize("suffix", SAMPLES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(suffix, data, tmp_path_factory):
    """Cut, flipped, overwritten and repeated pieces: an InputError or tensors, never another exception."""
    path = tmp_path_factory.mktemp("file") / f"x{suffix}"
    SAMPLES[suffix](path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, max(0, len(content) - 1)))
        stop = min(len(content), start + data.draw(st.integers(1, 16)))
        change = data.draw(st.sampled_from(["cut", "flip", "write", "repeat", "remove"]))
        if change == "cut":
            del content[start:]
        elif change == "flip" and content:
            content[start] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "write":
            content[start:stop] = data.draw(st.binary(min_size=1, max_size=16))
        elif change == "repeat":
            content[start:start] = content[start:stop]
        elif change == "remove":
            del content[start:stop]
    path.write_bytes(content)
    try:
        read_all(path)
    except InputError as error:
        assert str(path) in str(error)


# --- torch before 1.6 -------------------------------------------------------------------------------------------------

# Of torch 2.14: save(state, path, _use_new_zipfile_serialization=False)
LEGACY = pathlib.Path(__file__).parent / "torch_legacy.pth"


def test_reads_what_torch_wrote_before_1_6():
    base = np.arange(24, dtype=np.float32)
    expected = {
        "a": base.reshape(4, 6),
        "b": base[3:9],
        "c": np.array([1, -2, 3]),
        "d": np.ones((3, 2), np.float16),
        "e": np.array(7),
    }
    assert_same(read_all(LEGACY), expected)


@pytest.mark.parametrize("length", [1, 14, 15, 30, 100, 300, 700, 900, 957])
def test_a_legacy_file_that_was_cut_off(tmp_path, length):
    (tmp_path / "x.pth").write_bytes(LEGACY.read_bytes()[:length])
    with pytest.raises(InputError, match="x.pth: "):
        read_all(tmp_path / "x.pth")


def test_a_legacy_file_with_more_or_other_bytes(tmp_path):
    data = LEGACY.read_bytes()
    (tmp_path / "x.pth").write_bytes(data + b"\0")
    with pytest.raises(InputError, match="959 bytes, its tensors take 958"):
        read_all(tmp_path / "x.pth")
    start = data.rfind((24).to_bytes(8, "little") + np.arange(2, dtype=np.float32).tobytes())
    (tmp_path / "x.pth").write_bytes(data[:start] + (25).to_bytes(8, "little") + data[start + 8 :])
    with pytest.raises(InputError, match=r"truncated or damaged at storage \d+, expected 24 elements"):
        read_all(tmp_path / "x.pth")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(15, 700), value=st.integers(0, 255))
def test_a_legacy_file_with_a_changed_byte_is_read_or_refused(at, value, tmp_path_factory):
    data = bytearray(LEGACY.read_bytes())
    data[at] = value
    path = tmp_path_factory.mktemp("changed") / "x.pth"
    path.write_bytes(bytes(data))
    try:
        read_all(path)
    except InputError as error:
        assert str(path) in str(error)
