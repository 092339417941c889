import builtins
import functools
import operator
import os
import pathlib
import pickle
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.conversion import torch_files
from nextstep_jax.conversion.torch_pickle import read_pickle
from nextstep_jax.errors import InputError
from tests.conversion import torch_writer

PATH = pathlib.Path("x.pt")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


MARKER = "executed"
ATTACKS = {
    "os.system": Call(os.system, f"touch {MARKER}"),
    "builtins.eval": Call(eval, f"open({MARKER!r}, 'w')"),
    "builtins.exec": Call(exec, f"open({MARKER!r}, 'w')"),
    "builtins.open": Call(open, MARKER, "w"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", MARKER]),
    "builtins.getattr": Call(getattr, Call(builtins.__import__, "os"), "system"),
    "functools.partial": Call(functools.partial, os.system, f"touch {MARKER}"),
    "operator.attrgetter": Call(operator.attrgetter, "system.__call__"),
    "builtins.__import__": Call(builtins.__import__, "os"),
    "pathlib.PosixPath": pathlib.PosixPath("/tmp"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["alone", "value", "nested", "key", "state"])
def test_other_globals_are_refused_by_name_and_never_executed(tmp_path, monkeypatch, attack, protocol, place):
    monkeypatch.chdir(tmp_path)
    payload = ATTACKS[attack]
    content = {
        "alone": payload,
        "value": {"weight": payload},
        "nested": {"a": [{"b": (1, [payload])}]},
        "key": {payload: 1},
        "state": Call(dict, state={"x": payload}),
    }[place]
    path = torch_writer.write_archive(tmp_path / "x.pt", pickle.dumps(content, protocol), {})
    with pytest.raises(InputError) as caught:
        torch_files.open_file(path)
    message = str(caught.value)
    assert "nothing was executed" in message and str(path) in message and "\n" not in message
    assert ("dict" if place == "state" else attack.split(".")[-1]) in message
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n.",
        b"ctorch\nload\n.",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n.",
        b"ctorch.storage\n_load_from_bytes\n.",
        b"ccollections\ndefaultdict\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x04\x8c\x05torch\x8c\x21FloatStorage.__init__.__globals__\x93.",
        b"ctorch\nFloatStorage.__class__\n.",
    ],
)
def test_globals_next_to_the_admitted_ones(pickled):
    with pytest.raises(InputError, match="no part of a tensor"):
        read_pickle(pickled, PATH)


@pytest.mark.parametrize(
    "instruction", [b"i" + b"os\nsystem\n", b"(cos\nsystem\no", b"\x82\x01", b"\x81", b"S'x'\n", b"I1\n", b"P0\n", b"0"]
)
def test_instructions_no_checkpoint_needs(instruction):
    with pytest.raises(InputError):
        read_pickle(b"\x80\x02" + instruction + b".", PATH)


@pytest.mark.parametrize(
    "calls",
    [
        torch_writer.name_global("torch", "FloatStorage") + b")R",
        torch_writer.name_global("collections", "OrderedDict") + b"(K\x01tR",
        torch_writer.name_global("torch._utils", "_rebuild_tensor_v2") + b")R",
        torch_writer.name_global("torch._utils", "_rebuild_parameter") + b"(K\x01tR",
        torch_writer.text("x") + b")R",
        b"}" + b")R",
        torch_writer.text("storage") + b"Q",
        b"(" + torch_writer.text("module") + b"K\x01K\x01K\x01K\x01tQ",
    ],
)
def test_calls_that_make_no_tensor(tmp_path, calls):
    path = torch_writer.write_archive(tmp_path / "x.pt", b"\x80\x02" + calls + b".", {})
    with pytest.raises(InputError, match="not a torch checkpoint"):
        torch_files.open_file(path)


def test_a_pickle_that_contains_itself(tmp_path):
    """Shared and cyclic references cost nothing: nothing walks through them."""
    doubled = b"]q\x00" + b"".join(b"(h" + bytes([n]) + b"h" + bytes([n]) + b"lq" + bytes([n + 1]) for n in range(100))
    for pickled in (b"\x80\x02]q\x00h\x00a.", b"\x80\x02" + doubled + b"."):
        path = torch_writer.write_archive(tmp_path / "x.pt", pickled, {})
        with pytest.raises(InputError):
            torch_files.open_file(path)


def bomb(depth: int) -> bytes:
    """A pair of pairs, `depth` levels deep, as memo entry 0 and on top of the stack. Written out it has 2**depth values."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(depth)) + b"q\x00"


BOMBS = {
    "a storage's id": bomb(200) + b"Q",
    "a storage's kind": b"(" + bomb(200) + torch_writer.name_global("torch", "FloatStorage") + b"K\x00K\x00K\x01tQ",
    "a storage's type": b"(" + torch_writer.text("storage") + bomb(200) + b"K\x00K\x00K\x01tQ",
    "a storage's key": (
        b"(" + torch_writer.text("storage") + torch_writer.name_global("torch", "FloatStorage") + bomb(200) + b"K\x00K\x01tQ"
    ),
    "a storage's size": (
        b"("
        + torch_writer.text("storage")
        + torch_writer.name_global("torch", "FloatStorage")
        + b"K\x00K\x00"
        + bomb(200)
        + b"tQ"
    ),
    "a function": bomb(200) + b")R",
    "arguments": bomb(200) + torch_writer.name_global("torch._utils", "_rebuild_tensor_v2") + b"(NNh\x00h\x00tR",
    "a shape": bomb(200) + torch_writer.name_global("torch._utils", "_rebuild_tensor_v2") + b"(NK\x00h\x00h\x00tR",
    "no parameter": bomb(200) + torch_writer.name_global("torch._utils", "_rebuild_parameter") + b"h\x00\x85R",
    "no dictionary": torch_writer.name_global("collections", "OrderedDict") + bomb(200) + b"R",
    "a module": bomb(200) + torch_writer.text("x") + b"\x93",
    "a module's member": torch_writer.text("torch") + bomb(200) + b"\x93",
    "a key": b"}" + bomb(200) + b"K\x01s",
    "a key of several": b"}(" + bomb(200) + b"K\x01u",
    "a value": b"}" + torch_writer.text("a") + bomb(200) + b"s",
    "a table": b"}" + torch_writer.text("a") + b"}" + torch_writer.text("b") + bomb(200) + b"ss",
    "state": bomb(200) + b"N" + b"b",
    "the whole": bomb(200),
    "more than one result": bomb(200) + bomb(200),
}


@pytest.mark.parametrize("place", BOMBS)
def test_shared_values_are_never_written_out(tmp_path, place):
    """Nothing that was read is hashed, compared or formatted: a few hundred bytes would describe 2**200 values."""
    path = torch_writer.write_archive(tmp_path / "x.pt", b"\x80\x02" + BOMBS[place] + b".", {})
    with pytest.raises(InputError) as caught:
        torch_files.open_file(path)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_a_pickle_of_many_instructions_is_refused_by_its_size(tmp_path):
    path = torch_writer.write_archive(tmp_path / "x.pt", b"}" * (torch_files.MAX_PICKLE_BYTES + 1), {})
    with pytest.raises(InputError, match="more than"):
        torch_files.open_file(path)


def test_a_long_shape_is_refused_before_it_is_looked_at():
    """A list that many tensors share would be read once for each."""
    shape = b"](" + b"K\x01" * 200_000 + b"eq\x00"
    tensor = torch_writer.name_global("torch._utils", "_rebuild_tensor_v2") + b"(NK\x00h\x00h\x00tR"
    with pytest.raises(ValueError, match="not made of sizes"):
        read_pickle(b"\x80\x02" + shape + tensor + b".", PATH)


PIECES = [
    b"(",
    b")",
    b"]",
    b"}",
    b"N",
    b"\x88",
    b"K\x01",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09" + bytes(8) + b"\x01",
    b"G" + bytes(8),
]
PIECES += [
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
    b"q\x00",
    b"\x94",
    b"h\x00",
    b"h\x07",
    b".",
]
PIECES += [torch_writer.text("storage"), torch_writer.text("0"), torch_writer.name_global("torch", "FloatStorage")]
PIECES += [torch_writer.name_global("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")]
PIECES += [torch_writer.name_global("collections", "OrderedDict"), torch_writer.integers((2, 3))]


@settings(max_examples=300, deadline=None)
@given(pickled=st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.binary(max_size=40)))
def test_random_pickles(pickled, tmp_path_factory):
    path = torch_writer.write_archive(tmp_path_factory.mktemp("file") / "x.pt", pickled + b".", {})
    try:
        assert torch_files.open_file(path) == []
    except InputError as error:
        assert str(path) in str(error)
