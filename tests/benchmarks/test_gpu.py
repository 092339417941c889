"""The command that measures an accelerator: what it writes, and that nothing stops it."""

import argparse
import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import ahead
from benchmarks.gpu.attention import packed_segments, visible_pairs
from benchmarks.gpu.environment import MODULES
from benchmarks.gpu.hlo import written_in_loops
from benchmarks.gpu.loops import require_decoding_flags
from benchmarks.gpu.record import Record
from benchmarks.gpu.trace import largest_entries, reduce
from launch.xla_flags import FLAGS


def arguments_of_run(folder: pathlib.Path, seconds: float) -> argparse.Namespace:
    options = {"preset_scale": "tiny", "resume": False, "peer": None, "peer_packages": None}
    return argparse.Namespace(out=str(folder), seconds=seconds, cache=str(folder / "cache"), **options)


def test_a_failing_part_and_a_slow_one_leave_the_others_alone(tmp_path, monkeypatch):
    parts = {
        "environment": gpu.Part("environment", (), 60),
        "broken": gpu.Part("decoding", ("--dtype", "no such type"), 60),
        "slow": gpu.Part("tokenizer", (), 0.2),  # less than Python takes to start
        "last": gpu.Part("environment", (), 60),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "card_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpu, "training_flags", lambda: "")
    written = []
    write = gpu.write
    monkeypatch.setattr(gpu, "write", lambda file, result: (write(file, result), written.append(list(result["parts"]))))
    assert not gpu.run(arguments_of_run(tmp_path, seconds=200.0), list(parts))
    result = json.loads((tmp_path / "nvidia-h100-80gb-hbm3-tiny.json").read_text())
    assert {name: part["status"] for name, part in result["parts"].items()} == {
        "environment": "ok",
        "broken": "failed",
        "slow": "out of time",
        "last": "ok",
    }
    assert written == [list(parts)[: i + 1] for i in range(4)]  # on disk after every part
    assert "no such type" in result["parts"]["broken"]["error"]
    assert result["parts"]["last"]["figures"]["packages"]["jax"] == jax.__version__
    assert result["card"] == "NVIDIA H100 80GB HBM3" and result["scale"] == "tiny" and result["seconds"] > 0


def test_the_script_measures_every_loop_variant(tmp_path):
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
    command = ["bash", str(script), "--preset-scale", "tiny", "--parts", "loops", "--out", str(tmp_path)]
    values = os.environ | {"PYTHON": os.sys.executable, "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}  # not handed on
    subprocess.run([*command, "--cache", str(tmp_path / "cache")], env=values, check=True, capture_output=True)
    (file,) = tmp_path.glob("*.json")
    part = json.loads(file.read_text())["parts"]["loops"]
    assert part["status"] == "ok" and part["flags"] == ""
    from benchmarks.gpu.loops import VARIANTS

    assert list(part["figures"]) == list(VARIANTS)
    assert all(figure["token_seconds"] > 0 for figure in part["figures"].values())


def test_a_machine_without_the_data_stack_and_torch(tmp_path, monkeypatch):
    missing = ("grain", "tensorflow_datasets", "ml_collections", "torch", "transformers", "diffusers")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({missing})")  # as if not installed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ["environment", "torch", "attention"]
    monkeypatch.setattr(gpu, "PARTS", {name: gpu.PARTS[name]._replace(seconds=500) for name in names})
    assert gpu.run(arguments_of_run(tmp_path, seconds=2000.0), names)
    parts = json.loads((tmp_path / "cpu-tiny.json").read_text())["parts"]
    figures = parts["environment"]["figures"]
    assert figures["missing"] == [] and all(figures[f"import/{name}"] == module for name, module in MODULES.items())
    assert parts["torch"]["figures"] == {"reference loop": {"skipped": "torch is not installed"}}
    assert parts["attention"]["figures"]["library"]["seconds"]["both"] > 0


def test_no_time_left_means_skipped(tmp_path):
    part = gpu.run_part(gpu.Part("environment", (), 60), argparse.Namespace(preset_scale="tiny"), 5.0, "default")
    assert part["status"] == "skipped" and "5 s left" in part["error"]


def test_the_quickest_loop_is_the_one_decoding_gets():
    figures = {"default": {"token_seconds": 2.0}, "static chunk": {"token_seconds": 1.0}, "broken": {"error": "no"}}
    assert gpu.quickest_loop({"loops": {"figures": figures}}) == "static chunk"
    assert gpu.quickest_loop({}) == "default"


def test_times_faster_compares_the_same_setting():
    torch = {
        "setting": {"tokens": 256, "steps": 28},
        "reference loop, eager": {"seconds": {"a_token": 0.06}},
        "release": {"error": ""},
    }
    ours = {"256 tokens, 28 steps": {"seconds": {"a_token": 0.02}}, "256 tokens, ab2 8 steps": {"seconds": {"a_token": 0.01}}}
    parts = {"torch": {"figures": torch}, "generate_bfloat16": {"figures": ours}}
    assert gpu.times_faster(parts) == pytest.approx({"reference loop, eager": 3.0})
    assert gpu.times_faster({"torch": {"figures": torch}}) == {}


def test_resuming_runs_what_is_not_ok(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(gpu, "card_name", lambda: "cpu")
    monkeypatch.setattr(gpu, "run_part", lambda part, *_: ran.append(part.module) or {"status": "ok", "figures": {}})
    before = {"environment": {"status": "ok", "figures": {"kept": 1}}, "parity": {"status": "failed", "figures": {}}}
    (tmp_path / "cpu.json").write_text(json.dumps({"parts": before}))
    a = argparse.Namespace(out=str(tmp_path), preset_scale="full", seconds=100.0, resume=True)
    assert gpu.run(a, ["environment", "parity", "builtin"])
    assert ran == ["parity", "builtin"]
    assert json.loads((tmp_path / "cpu.json").read_text())["parts"]["environment"]["figures"] == {"kept": 1}


def test_parts_of_the_release_need_its_folder(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu", "--parts", "release_compiled"])
    with pytest.raises(SystemExit) as error:
        gpu.main()
    assert error.value.code == 2


def test_flags_of_training_never_reach_decoding():
    for flag in FLAGS["hopper"]:
        assert flag in gpu.training_flags()
        with pytest.raises(RuntimeError, match=flag):
            require_decoding_flags({"XLA_FLAGS": f"--{flag}=false"})
    require_decoding_flags({"XLA_FLAGS": "--xla_gpu_graph_min_graph_size=1"})
    assert gpu.environment("", "cache")["XLA_FLAGS"] == ""
    decoding = {"builtin", "decoding", "loops", "parity", "torch_loop", "tokenizer", "environment"}
    assert not any(part.training for part in gpu.PARTS.values() if part.module in decoding)


def test_a_record_is_on_disk_at_every_moment(tmp_path):
    record = Record(str(tmp_path / "figures.json"), 100, tiny=True)

    def stored():
        return json.loads((tmp_path / "figures.json").read_text())

    assert record.attempt("good", lambda: 1) == 1 and stored() == {"good": 1}
    assert record.attempt("bad", lambda: 1 / 0) is None and record.failed
    assert "ZeroDivisionError" in stored()["bad"]["error"]
    assert record.attempt("long", lambda: 2, needs=1000) is None and "skipped" in stored()["long"]
    assert record.attempt("after", lambda: 3) == 3 and stored()["after"] == 3


LOOP = """
HloModule m
%fused (p: s8[1024,1024]) -> bf16[1024,1024] {
  %p = s8[1024,1024]{1,0} parameter(0)
  ROOT %c = bf16[1024,1024]{1,0} convert(%p)
}
%body (t: (s32[], s8[1024,1024])) -> (s32[], s8[1024,1024]) {
  %t = (s32[], s8[1024,1024]{1,0}) parameter(0)
  %w = s8[1024,1024]{1,0} get-tuple-element(%t), index=1
  %widened = bf16[1024,1024]{1,0} fusion(%w), kind=kLoop, calls=%fused
  %dynamic-update-slice.1 = bf16[4096,1024]{1,0} dynamic-update-slice(%a, %b, %i)
  %small = f32[2,4]{1,0} add(%x, %y)
  ROOT %r = (s32[], s8[1024,1024]{1,0}) tuple(%i, %w)
}
ENTRY %main (w: s8[1024,1024]) -> s8[1024,1024] {
  %copied = f32[4096,4096]{1,0} copy(%w)
  %while.1 = (s32[], s8[1024,1024]{1,0}) while(%init), condition=%cond, body=%body
}
"""


def test_arrays_that_a_loop_writes():
    found = written_in_loops(LOOP, at_least=2**20)
    assert found == [{"name": "widened", "shape": "bf16[1024,1024]", "bytes": 2 * 2**20}]


def test_arrays_that_a_compiled_loop_writes():
    def loop(x, w):
        return jax.lax.fori_loop(0, x.shape[0], lambda i, y: jnp.sort(y @ w, axis=1), x)

    x = jnp.ones((512, 512))
    found = written_in_loops(jax.jit(loop).lower(x, x).compile().as_text(), at_least=2**20)
    assert found and all(array["bytes"] == 2**20 for array in found)


def test_a_trace_reduced():
    class Event:
        def __init__(self, name, start, length):
            self.name, self.start_ns, self.duration_ns = name, start, length

    kernels = [Event("a", 0, 10), Event("b", 20, 20), Event("a", 40, 10), Event("c", 45, 5)]
    found = reduce({"Stream #1": kernels, "XLA Modules": [Event("m", 0, 100)]}, {"Stream #1": kernels})
    assert [(entry["name"], entry["count"]) for entry in found["largest"]] == [("a", 2), ("b", 1), ("c", 1)]
    assert found["line"] == "Stream #1" and found["busy"] == 40 / 50
    assert reduce({}, {})["largest"] == []


def test_a_trace_of_a_program():
    run = jax.jit(lambda x: jnp.sin(x @ x).sum())
    found = largest_entries(lambda: run(jnp.ones((256, 256))))
    assert found["largest"] and 0 < found["busy"] <= 1


def test_packed_segments_say_where_segments_begin():
    ids = np.array([[1, 1, 1, 2, 2, 0, 0, 0], [1, 2, 2, 2, 3, 3, 4, 4]])
    offsets, lengths = packed_segments(ids, 4)
    np.testing.assert_array_equal(offsets, [[0, 3, 5, 8, -1], [0, 1, 4, 6, 8]])
    np.testing.assert_array_equal(lengths, [[3, 2, 3, -1], [1, 3, 2, 2]])
    assert visible_pairs(700) == 2 * sum(range(1, 301))


@pytest.mark.parametrize("arguments", [["--dtype", "bfloat16"], ["--dtype", "int8"], ["--train", "tiny", "--kernel", "xla"]])
def test_programs_for_another_device_lower(monkeypatch, arguments):
    """As benchmarks/gpu/ahead.py lowers them, here for this machine."""
    monkeypatch.setattr(
        "sys.argv", ["ahead", "--preset", "tiny", "--tokens", "8", "--prompt", "4", "--length", "300", *arguments]
    )
    lowered = []
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

    def run(a):
        lowered.append(ahead.lower_train_step(a, here) if a.train else ahead.lower_loop(a, here))
        return {}

    monkeypatch.setattr(ahead, "run", run)
    ahead.main()
    (program,) = lowered
    assert "while" in program.as_text() and program.out_info is not None
