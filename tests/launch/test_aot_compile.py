"""Ahead-of-time compilation: a shrunk stage through the real TPU compiler, and one line for every mistake."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from nextstep_jax.config import preset
from nextstep_jax.launch import aot_compile
from nextstep_jax.launch.xla_flags import FLAGS
from nextstep_jax.sharding.topologies import CHIPS
from nextstep_jax.training import aot
from nextstep_jax.training.hlo_cost import INSTRUCTION, Cost, Item

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "nextstep_14b_stage1.py")


def compile_for_tpu(*arguments) -> tuple[int, dict]:
    """Exit code and report of the command, in a process of its own: libtpu is told where it is when it is loaded."""
    command = [sys.executable, "-m", "launch.aot_compile", "--config", CONFIG + ":laptop", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.count("\n") == 1, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


LIMIT = 40e6
SHRUNK = [
    *("--topology", "v5e:2x2", "--tokens_per_chip", "512"),
    "--config.data.seq_len=512",
    "--config.mesh.tensor=2",
    "--config.model.transformer.layers=2",
    "--config.model.transformer.head_dim=128",
    "--config.model.transformer.dtype=bfloat16",
    "--config.model.transformer.remat=attention",
]


@pytest.mark.tpu_compiler
def test_the_training_step_compiles_for_a_tpu_and_fits():
    code, report = compile_for_tpu(*SHRUNK)
    assert code == 0 and report["fits"] is True
    assert (report["chips"], report["tokens_per_chip"]) == (4, 512)
    assert report["flags"] == FLAGS["v5e"]
    assert report["compile_seconds"] > 0 and 0 < report["estimated_mfu"] < 1
    # Splash, forward and backward once in each layer: the rematerialized forward pass does not launch it again.
    assert report["attention_kernels"] == 4
    # What it takes today, and a tenth: more is a regression.
    assert report["bytes_per_chip"] < LIMIT
    assert report["bytes_by_kind"]["optimizer"] == pytest.approx(2 * report["bytes_by_kind"]["parameters"], rel=0.01)
    # The kernels: seven products over the one block of pairs that a row of 512 has, of which little more than half are useful.
    heads = preset("tiny").transformer.heads
    a_product = 2 * 2 * 4 * heads * 512**2 * 128  # of 2 layers, 4 rows
    kernels, useful = 7 * a_product, 6 * a_product * 513 / 1024
    # Other products: the useful ones, the forward pass a second time, and heads run on every position.
    assert 1.0 < (report["program_flops"] - kernels) / (report["useful_flops"] - useful) < 2.0
    assert report["collectives"]["all-gather"]["count"] > 0


@pytest.mark.tpu_compiler
def test_the_token_loop_compiles_for_a_tpu(tmp_path):
    """One image token: every layer once, and the flow head at every step of the sampler."""
    vocabulary = "--config.model.transformer.vocab_size=16384"  # or the time embedding were a large part of the parameters
    hlo = tmp_path / "program.txt"
    more = ("--top", "3", "--hlo", str(hlo))
    code, report = compile_for_tpu("--topology", "v5e:2x2", "--what", "generate", vocabulary, *more)
    assert code == 0 and report["mesh"]["tensor"] == 4
    assert report["bytes_by_kind"]["cache"] > 0 and report["estimated_seconds"] > 0
    assert 1.0 < report["program_flops"] / report["useful_flops"] < 1.5
    assert hlo.read_text().startswith("HloModule")
    seconds = [item["seconds"] for item in report["costliest"]]
    assert len(seconds) == 3 and seconds == sorted(seconds, reverse=True)
    assert f"{seconds[0] * 1e3:.2f} ms" in aot_compile.text(report)


def test_more_set_aside_than_a_chip_has_does_not_fit(monkeypatch):
    """Although the compiler took the program."""
    item = Item(INSTRUCTION, 1.0, 1.0, "add", "f32[1000]", "")
    monkeypatch.setattr(aot, "read_cost", lambda *_: Cost(1.0, [item], {}))
    lowered = aot.Lowered(jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((1000,), "float32")), {}, 1.0, 1)
    for memory, fits in ((8_000 + 1e6, True), (7_999, False)):
        report, _ = aot.compile_report(lowered, CHIPS["v5e"]._replace(memory=memory), 1)
        assert report["fits"] is fits and report["bytes_per_chip"] >= 8_000
        assert ("reason" in report) is not fits


@pytest.fixture
def run(monkeypatch):
    def main(*arguments):
        argv = ["launch/aot_compile.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for the overrides
        flags = aot_compile.FLAGS
        flags.unparse_flags()
        for flag in ("config", "topology"):
            flags[flag].value = None
        for name in [name for name in flags if name.startswith("config.")]:
            delattr(flags, name)
        return aot_compile.main(argv)

    return main


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing"),
        (["--config", CONFIG], "--topology is missing"),
        (["--config", CONFIG, "--topology", "v5p"], "found 'v5p'"),
        (["--config", CONFIG, "--topology", "v9:4x4"], "found 'v9:4x4'"),
        (["--config", CONFIG, "--topology", "v5e:4x4", "--slices", "0"], "slices must be at least 1"),
        (["--config", CONFIG, "--topology", "v5e:4x4", "--what", "dream"], "dream"),
        (["--config", CONFIG, "--topology", "v5e:4x4", "--config.steps=many"], "many"),
        (["--config", CONFIG, "--topology", "v5e:4x4", "again"], "unexpected argument 'again'"),
        (["--config", CONFIG, "--topology", "v5e:4x4", "--flags", "fast"], "NAME=VALUE,NAME=VALUE, found 'fast'"),
        (["--config", CONFIG, "--topology", "v6e:4x4", "--flags", "xla_tpu_scoped_vmem_limit_kib=999999"], "up to 131072"),
        (["--config", CONFIG, "--topology", "v5p:2x2x1", "--flags", "xla_tpu_scoped_vmem_limit_kib=98304"], "65536 on v5p"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_help_explains_the_estimate(run, capsys):
    assert run("--help") == 0
    assert "MFU             useful FLOPs / (seconds * chips * peak)" in capsys.readouterr().out
