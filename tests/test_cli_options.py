"""Whatever a user types as an option, a command answers in one line, never with a traceback."""

import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nextstep_jax import cli_evaluate, cli_generate
from nextstep_jax.cli import cli, main

VALUES = st.one_of(
    st.sampled_from(
        ["", " ", "-1", "0", "1", "2", "16", "64", "1e400", "nan", "-inf", "0.5", "4294967296", "9" * 30, "1:1", "0:0"]
    ),
    st.sampled_from(["16:9:1", "/dev/null", "/nowhere/x.png", "x.bmp", "x.jpg", "--", "-h", "é", "a" * 3000, "None"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
)


class Stopped(Exception):
    """Everything was accepted, and the work would begin."""


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, tiny_pipeline):
    """command(*arguments) -> (exit code, stderr); None for the code where the work would begin."""
    monkeypatch.chdir(tmp_path)

    def begin(*_, **__):
        raise Stopped

    for work in ("generate", "edit", "generate_text"):
        monkeypatch.setattr(type(tiny_pipeline), work, begin)
    for module in (cli_generate, cli_evaluate):
        monkeypatch.setattr(module, "load_pipeline", lambda *_, **__: tiny_pipeline)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as stop:
                main()
            code = stop.value.code or 0
        except Stopped:
            code = None
        return code, capsys.readouterr().err

    return call


def options_of(*path):
    found = cli
    for name in path:
        found = found.commands[name]
    return sorted(
        {
            spelling
            for parameter in found.params
            for spelling in (*parameter.opts, *parameter.secondary_opts)
            if spelling.startswith("--")
        }
    )


def check(code, err):
    """One line, unless the work would begin or help was asked for."""
    assert "Traceback" not in err
    if code:
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (code, err)


@pytest.mark.parametrize(
    "path, arguments",
    [
        (("generate",), ["a red circle"]),
        (("edit",), ["x.png", "a red circle"]),
        (("complete",), ["a red"]),
        (("caption",), ["x.png"]),
        (("evaluate", "shapes"), []),
        (("evaluate", "tokenizer"), ["/nowhere"]),
        (("data", "build"), ["/nowhere", "out"]),
        (("data", "inspect"), ["/nowhere"]),
        (("data", "encode"), ["/nowhere", "out"]),
        (("convert",), ["/nowhere", "out"]),
        (("export-run",), []),
        (("train",), []),
        (("aot",), []),
    ],
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_option_ends_in_a_traceback(command, path, arguments, data):
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(options_of(*path)), VALUES), min_size=1, max_size=3))
    flags = {name for name in options_of(*path) if name in ("--json", "--profile", "--help", "--distributed", "--verify")}
    words = [word for name, value in chosen for word in ([name] if name in flags else [f"{name}={value}"])]
    check(*command(*path, *words, *arguments))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.one_of(VALUES, st.sampled_from(["generate", "data", "train", "evaluate", "--json"])), max_size=4))
@example(words=["evaluate"])
@example(words=["train", "--workdir=", f"--config={'a' * 3000}"])
@example(words=["data", "build"])
@example(words=["train", "--config", "shapes_tokenizer", "--workdir", "x", "--config.steps"])
def test_no_command_line_ends_in_a_traceback(command, words):
    code, err = command(*words)
    assert "Traceback" not in err
