"""Models spread over devices: the commands make what one device makes, from a checkpoint in a bucket."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.data.images import load
from nextstep_jax.errors import InputError
from nextstep_jax.generation.load import load_model
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.sharding.params import logical_axes
from tests.test_cli import run  # noqa: F401 (a fixture)

pytest_plugins = ["tests.buckets"]
ROOT = pathlib.Path(__file__).parents[2]
# What gloo's threads print of their peers, in pieces that may come between each other.
GLOO = re.compile(r"(\[Gloo\]|Rank|Expected|number|of|connected|is|to|peer|ranks|[.:\d\s])*")


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_images_and_text_are_those_of_one_device(bucket, tiny_checkpoint, tmp_path):
    """Eight pretended devices, in a process of their own; images differ by rounding at most."""
    config, files = checkpoints.load_config(tiny_checkpoint), checkpoints.params.load_extra_files(tiny_checkpoint)
    checkpoints.save_params(f"{bucket}/tiny", checkpoints.iterate_params(tiny_checkpoint), config, files)
    program = pathlib.Path(__file__).parent / "programs/on_a_mesh.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, program, f"{bucket}/tiny", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("same_text") and set(found) == {"tensor=2", "tensor=8"}
    for mesh, (difference, split) in found.items():
        assert difference <= 1 and split, (mesh, found)


def run_together(*command):
    """Two processes of four pretended devices each, started with one command line; the lines that each of them printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "PYTHONPATH": str(ROOT)}
    environment = os.environ | told | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    line, pipes = [sys.executable, *map(str, command)], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(line, env=environment | {"JAX_PROCESS_ID": str(i)}, **pipes) for i in range(2)]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    return [[line for line in out.splitlines() if not GLOO.fullmatch(line)] for out, _ in ended]


def test_processes_on_one_mesh_make_what_one_makes_and_the_first_writes_it(tiny_checkpoint, tiny_pipeline, tmp_path):
    prompts, command = ("a red circle", "a blue square"), ("-m", "nextstep_jax")
    common = ("--checkpoint", tiny_checkpoint, "--mesh", "tensor=4", "--distributed")
    shown = ("--out", tmp_path, "--preview", tmp_path / "now.png")
    printed = run_together(*command, "generate", *prompts, "--seed", 3, *shown, *common)
    assert printed == [[str(tmp_path / f"image-{i}.png") for i in range(2)], []]
    for i, image in enumerate(tiny_pipeline.generate(list(prompts), seed=3)):
        difference = np.asarray(load(tmp_path / f"image-{i}.png"), np.int32) - np.asarray(image.pixels, np.int32)
        assert np.abs(difference).max() <= 1
    assert np.array_equal(np.asarray(load(tmp_path / "now.png")), np.asarray(load(tmp_path / "image-0.png")))
    text, nothing = run_together(*command, "complete", "a red", "--max-tokens", 8, "--json", *common)
    assert json.loads(text[0])["parts"] == [{"text": tiny_pipeline.generate_text("a red", max_tokens=8)}] and nothing == []


def test_an_array_that_processes_hold_parts_of_is_whole_on_each_host():
    printed = run_together(pathlib.Path(__file__).parent / "programs/whole_on_the_host.py")
    assert [json.loads(lines[-1]) for lines in printed] == [np.arange(16.0).reshape(8, 2).tolist()] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--distributed",), "--distributed needs --mesh"),
        (("--mesh", "tensor=1", "--distributed", "--rewrite", "openai:http://localhost:9#m"), "--rewrite does not go with"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(run, tiny_checkpoint, options, message, monkeypatch):  # noqa: F811
    code, _, err = run("generate", "a red circle", "--checkpoint", tiny_checkpoint, *options)
    assert code == 2 and re.search(message, err) and err.count("\n") == 1


def test_what_the_environment_says_of_several_processes_is_checked_in_its_words(run, tiny_checkpoint, monkeypatch):  # noqa: F811
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    command = ("generate", "a red circle", "--checkpoint", tiny_checkpoint, "--mesh", "tensor=1", "--distributed")
    code, _, err = run(*command)
    wanted = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
    assert code == 2
    assert err == f"error: JAX_COORDINATOR_ADDRESS is missing: a run of several processes needs {wanted}\n"


@pytest.mark.parametrize(
    ("mesh", "message"),
    [("tensor=3", "mesh .* does not fit 1 devices"), ("fsdp=2", "expected tensor=N, data=N"), ("tensor=0", "not a mesh")],
)
def test_a_mesh_that_cannot_be_is_one_line(run, tiny_checkpoint, mesh, message):  # noqa: F811
    code, _, err = run("generate", "a red circle", "--checkpoint", tiny_checkpoint, "--mesh", mesh)
    assert code == 2 and re.search(message, err) and err.count("\n") == 1


def test_kernels_in_int8_and_their_scales_are_split_alike():
    for layer, kernel in (("attention/q", 3), ("attention/o", 3), ("mlp/down", 2)):
        axes = logical_axes(f"model/decoder/layers_0/{layer}/kernel", kernel)
        outputs = kernel - (2 if layer.endswith("/o") else 1)
        assert logical_axes(f"model/decoder/layers_0/{layer}/kernel_scale", outputs) == axes[-outputs:]


def test_on_one_device_a_mesh_changes_nothing(tiny_checkpoint):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    plain, placed = load_model(tiny_checkpoint), load_model(tiny_checkpoint, mesh=mesh)
    assert placed["config"] == plain["config"] and placed["mesh"] is mesh
    assert jax.tree.structure(placed["params"]) == jax.tree.structure(plain["params"])
    with pytest.raises(InputError, match="does not fit"):
        make_mesh({"data": -1, "tensor": 3})
