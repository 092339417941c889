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
