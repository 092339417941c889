"""A run of tests says when it skipped what it may not skip."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(("allowed", "code"), [(None, 0), ("the extra (dev|docs)", 0), ("the extra docs", 1), ("^$", 1)])
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_skip_for_another_reason_is_a_failure(tmp_path, allowed, code, processes):
    (tmp_path / "test_a.py").write_text(
        "import pytest\n\ndef test_one():\n    pass\n\ndef test_two():\n    pytest.skip('needs the extra dev')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTSTEP_JAX_MAY", "PYTEST_"))}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"NEXTSTEP_JAX_MAY_SKIP": allowed} if allowed else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-n", processes, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("test_a.py::test_two: may not be skipped here" in done.stdout) == bool(code)
    assert "1 passed, 1 skipped" in done.stdout.splitlines()[-1]
