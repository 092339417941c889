"""A watched process ends as its watcher does, and the other way round."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, time
from nextstep_jax.launch.watch import watch
if (code := watch()) is not None:
    sys.exit(code)
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print(os.getpid(), flush=True)
    time.sleep(60)
exec(sys.argv[1])
"""


def start(tmp_path, what):
    (tmp_path / "program.py").write_text(PROGRAM)
    command, env = [sys.executable, str(tmp_path / "program.py"), what], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 2, 3])
def test_an_exit_code_is_passed_on(tmp_path, code):
    process = start(tmp_path, f"print('once'); sys.exit({code})")
    assert process.communicate(timeout=60) == ("once\n", "")
    assert process.returncode == code


@pytest.mark.parametrize("name", ["SIGABRT", "SIGKILL", "SIGSEGV"])
def test_an_end_by_a_signal_is_one_line_and_exit_code_1(tmp_path, name):
    process = start(tmp_path, f"os.kill(os.getpid(), signal.{name})")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith(f"error: this process was ended by {name}") and error.count("\n") == 1


def test_a_sigterm_reaches_the_watched_process(tmp_path):
    process = start(tmp_path, "wait")
    process.stdout.readline()
    process.terminate()
    assert process.wait(60) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not end a process with its parent")
def test_a_watched_process_does_not_outlive_its_watcher(tmp_path):
    process = start(tmp_path, "wait")
    watched = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{watched}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{watched}")
