"""A command does its work without a home, a terminal, its streams, or a locale; what cannot be delivered is not a success."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from nextstep_jax import cli_generate, cli_shared, cli_streams
from nextstep_jax.cli import main

COMMAND = [sys.executable, "-m", "nextstep_jax"]


def test_an_image_is_drawn_with_every_stream_closed_and_no_home(tiny_checkpoint, tmp_path):
    generate = [*COMMAND, "generate", "a red circle", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "x.png")]
    environment = {"HOME": "/proc/nowhere", "TMPDIR": "/nowhere", "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    closed = ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *generate]
    assert subprocess.run(closed, env=kept | environment, check=False).returncode == 0
    assert (tmp_path / "x.png").stat().st_size > 100


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "error: No space left on device\n"
    with open("/dev/full", "w") as full:
        assert subprocess.run([*COMMAND, "submit", "moon"], stderr=full, check=False).returncode == 2


def test_a_reader_that_leaves_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_progress_goes_on_where_stderr_breaks():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    stream = cli_streams._Lenient(Broken())
    assert stream.write("text") == 4 and not stream.isatty()
    stream.flush()


@pytest.mark.parametrize("encoding, printed", [("ascii", b"\\xe9 \xff\\udd00"), ("utf-8", "é ".encode() + b"\xff\\udd00")])
def test_every_character_and_name_can_be_printed(encoding, printed):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    cli_streams._print_everything(stream)
    stream.write("é \udcff")
    stream.write("\udd00")
    stream.flush()
    assert raw.getvalue() == printed


@pytest.mark.parametrize("caches", ["/dev/null", "/proc/nowhere", None])
def test_the_cache_of_compiled_programs_is_optional(caches, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if caches:
        monkeypatch.setenv("XDG_CACHE_HOME", caches)
    assert cli_shared.cache_folder() is None


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(28, "No space left on device", "x.png"), 1, "error: x.png: No space left on device\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_ends_a_command_is_one_line(error, code, line, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli_generate, "load_pipeline", fail)
    monkeypatch.setattr(sys, "argv", ["nextstep-jax", "caption", "x.png"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code and capsys.readouterr().err == line


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    script = 'cd "$1" && rmdir "$1" && shift && "$@"'
    gone.mkdir()
    done = subprocess.run(
        ["bash", "-c", script, "bash", gone, *COMMAND, "generate", "a", "--out", "x.png"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_bar_is_shown_on_a_terminal_that_does_not_tell_its_size(tiny_checkpoint, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()  # 0 columns and rows
    options = ["--n", "2", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "x.png")]
    done = subprocess.run([*COMMAND, "generate", "a red circle", *options], stderr=theirs, stdout=subprocess.PIPE, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0 and "16/16" in shown


def test_libtpu_is_left_alone_without_a_tpu(monkeypatch):
    monkeypatch.setattr(cli_shared.importlib.util, "find_spec", lambda name: object())
    for devices, platforms, expected in (([], None, "cpu"), (["/dev/accel0"], None, None), ([], "tpu", "tpu")):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        if platforms:
            monkeypatch.setenv("JAX_PLATFORMS", platforms)
        monkeypatch.setattr(cli_shared.glob, "glob", lambda pattern, devices=devices: devices)
        cli_shared.leave_out_absent_tpus()
        assert os.environ.get("JAX_PLATFORMS") == expected
