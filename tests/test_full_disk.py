"""No command ends with 0 without its result when the disk is full: real file systems that are too small."""

import json
import os
import subprocess
import sys

import pytest

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def _may_mount() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not _may_mount(), reason="needs a namespace of its own with a file system of its own")
def test_a_full_disk_is_no_success(tmp_path):
    """Every command with too little space, from hardly any to nearly enough: an exit code, one line that names the place."""
    command = [*NAMESPACE, sys.executable, "-m", "tests.full_disk", str(tmp_path)]
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["name"] for row in rows} == {"convert", "export", "build", "encode", "candidates", "generate", "train"}
    for row in rows:
        assert row["there"] if row["code"] == 0 else row["code"] in (1, 2), row
        assert row["name"] == "train" or "Traceback" not in row["said"], row  # Orbax logs those of its threads
        if row["code"]:
            last = row["said"].splitlines()[-1]
            assert last.startswith("error: ") and ("No space left" in last or "could not be saved" in last), row
    assert sum(row["code"] == 0 for row in rows) < 4
