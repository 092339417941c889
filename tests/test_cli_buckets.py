"""The command line with addresses in buckets."""

import json
import subprocess
import sys

import pytest

from nextstep_jax import checkpoints, storage
from tests.test_cli import run  # noqa: F401 (a fixture)

pytest_plugins = ["tests.buckets"]


def test_convert_info_export_and_generate(run, bucket, goldens, tiny_checkpoint, tmp_path):  # noqa: F811
    code, out, err = run("convert", goldens / "tiny_model", f"{bucket}/ckpt", "--vae", goldens / "tiny_vae")
    assert code == 0 and out.startswith(f"{bucket}/ckpt: ") and "text tokenizer" in err
    code, out, _ = run("info", f"{bucket}/ckpt", "--json")
    assert code == 0 and json.loads(out)["checkpoint"] == f"{bucket}/ckpt" and json.loads(out)["parameters"]["total"] > 0
    code, out, _ = run("export", f"{bucket}/ckpt", f"{bucket}/back")
    assert code == 0 and (storage.at(bucket) / "back" / "model.safetensors").is_file()
    code, _, err = run("convert", goldens / "tiny_model", f"{bucket}/ckpt")
    assert code == 2 and "already exists" in err

    leaves = checkpoints.iterate_params(tiny_checkpoint)
    config, files = checkpoints.load_config(tiny_checkpoint), checkpoints.params.load_extra_files(tiny_checkpoint)
    checkpoints.save_params(f"{bucket}/tiny", leaves, config, files)
    images = []
    for place in (tiny_checkpoint, f"{bucket}/tiny"):
        code, _, err = run("generate", "a red circle", "--out", tmp_path / "a.png", "--seed", 7, "--checkpoint", place)
        assert code == 0, err
        images.append((tmp_path / "a.png").read_bytes()[-2000:])
    assert images[0] == images[1]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://nowhere/ckpt", "error: s3://nowhere: no such bucket"),
        ("s3://runs/nothing", "no such folder; expected a checkpoint folder"),
        ("az://runs/a", "expected gs://BUCKET/NAME or s3://BUCKET/NAME"),
    ],
)
def test_what_is_not_there_is_one_line(run, stand_ins, place, message):  # noqa: F811
    for verb in ("info", "generate"):
        arguments = [verb, place] if verb == "info" else [verb, "a circle", "--checkpoint", place]
        code, _, err = run(*arguments)
        assert code == 2 and message in err and err.count("\n") == 1


def test_curation_reads_and_writes_buckets(run, bucket, tmp_path):  # noqa: F811
    """From a dataset in a bucket into the bucket; the same bytes as on a disk, and the same command again makes nothing."""
    pytest.importorskip("cv2")
    for place in (str(tmp_path), bucket):
        assert run("data", "build", "shapes:pair:train:30", f"{place}/pairs")[0] == 0
        for _ in range(2):
            code, out, err = run("data", "curate", f"{place}/pairs", f"{place}/curated", "--config", "curate_control:laptop")
            assert code == 0 and "sft: " in out, err
    local, remote = tmp_path / "curated", storage.at(bucket) / "curated"
    names = [str(path.relative_to(local)) for path in local.rglob("*") if path.is_file() and "progress" not in path.parts]
    assert any(name.endswith(".array_record") for name in names) and "report.html" in names
    for name in names:
        assert (remote / name).read_bytes() == (local / name).read_bytes(), name


def test_nothing_listens(monkeypatch):
    """In a process of its own: the line comes in seconds, and says what is waited for."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    found = subprocess.run(
        [sys.executable, "-m", "nextstep_jax", "info", "gs://runs/a"], capture_output=True, text=True, timeout=100
    )
    assert found.returncode == 2 and "error: gs://runs: cannot be reached" in found.stderr
