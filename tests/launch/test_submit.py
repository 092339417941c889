"""What launch/submit.py would run, on each kind of cluster."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from nextstep_jax import checkpoints, storage
from nextstep_jax.launch import submit, xla_flags

pytest_plugins = ["tests.buckets"]

TRAIN = ["--config", "configs/nextstep_14b_stage1.py", "--workdir", "/mnt/my runs/stage 1"]
OVERRIDES = ["--config.data.root=/mnt/it's data", "--config.steps=7"]
AFTER = ["--", *OVERRIDES]
TPU = ["--name", "pod", "--zone", "us-east5-a"]


def dry_run(capsys, *arguments):
    place = arguments.index("--") if "--" in arguments else len(arguments)
    assert submit.main([*arguments[:place], "--dry-run", *arguments[place:]]) == 0
    return capsys.readouterr().out


def words_of_training(command: str) -> list[str]:
    """The words that a shell would give to python in a command line."""
    words = shlex.split(command)
    return words[words.index("nextstep-jax") + 2 :]


def test_tpu_create_queues_for_a_slice(capsys):
    out = dry_run(capsys, "tpu-create", *TPU, "--type", "v5p-128", "--spot", "--project", "mine")
    assert shlex.split(out) == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--zone=us-east5-a", "--project=mine"),
        *("--node-id=pod", "--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"),
    ]


def test_tpu_setup_copies_the_commit_to_all_workers(capsys):
    archive, copy, install = dry_run(capsys, "tpu-setup", *TPU).splitlines()
    assert archive.startswith("git archive") and "--worker=all" in copy
    assert ".venv/bin/pip install -q -e '.[train,tpu]'" in shlex.split(install)[-1]


def test_tpu_train_starts_every_worker_with_its_generations_flags(capsys):
    out = dry_run(capsys, "tpu-train", *TPU, "--type", "v6e-256", *TRAIN, *AFTER)
    *ssh, command = shlex.split(out)
    assert ssh[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"] and ssh[-1] == "--worker=all"
    remote = command.removeprefix("--command=")
    assert "cd nextstep_jax" in remote and "nohup" in remote
    inner = remote[remote.index("(") + 1 : remote.rindex(">> train.log")]
    assert words_of_training(inner) == [*TRAIN, "--distributed", *OVERRIDES]
    assert f"LIBTPU_INIT_ARGS={xla_flags.environment('v6e')['LIBTPU_INIT_ARGS']}" in shlex.split(inner)


def test_xpk_puts_slices_on_the_data_axis_and_starts_an_unfinished_run_again(capsys):
    cluster = ["--cluster", "k", "--image", "gcr.io/mine/image", "--slices", "2"]
    words = shlex.split(dry_run(capsys, "xpk", *TPU, "--type", "v6e-256", *cluster, *TRAIN, *AFTER))
    assert words[:3] == ["xpk", "workload", "create"]
    assert {"--tpu-type=v6e-256", "--num-slices=2", "--workload=pod", "--docker-image=gcr.io/mine/image"} <= set(words)
    training, finished = words[-1].removeprefix("--command=").split(" && ")
    assert words_of_training(training) == [*TRAIN, "--distributed", "--config.mesh.data=2", *OVERRIDES]
    assert shlex.split(finished) == ["test", "-e", "/mnt/my runs/stage 1/export"]


def test_slurm_runs_a_process_for_each_gpu_and_saves_before_its_time_is_up(capsys):
    out = dry_run(capsys, "slurm", "--nodes", "4", "--gpus", "8", "--partition", "h100", *TRAIN, *AFTER)
    script = out[out.index("#!") : out.rindex("EOF")]
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=h100", "--signal=TERM@120"} <= set(
        re.findall(r"^#SBATCH (\S+)$", script, re.MULTILINE)
    )
    (srun,) = [line for line in script.splitlines() if line.startswith("srun")]
    assert words_of_training(srun.removesuffix(" || exit $?")) == [*TRAIN, "--distributed", *OVERRIDES]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_run_in_a_bucket_is_finished_when_its_export_is_a_checkpoint(capsys, stand_ins, tiny_checkpoint, tmp_path):
    """The test that the launchers give to a shell, run by one: a result is there once its manifest is."""
    workdir = f"{stand_ins['gs']}/my run"
    train = ["--config", "shapes_nextstep", "--workdir", workdir]
    out = dry_run(capsys, "xpk", "--cluster", "k", "--image", "i", *TPU, "--type", "v6e-8", *train)
    test = shlex.split(out)[-1].rpartition(" && ")[2]
    assert shlex.split(test) == ["nextstep-jax", "info", f"{workdir}/export"]
    script = dry_run(capsys, "slurm", "--nodes", "1", "--gpus", "8", *train).splitlines()
    assert f'{test} || scontrol requeue "$SLURM_JOB_ID"' in script
    (tmp_path / "nextstep-jax").write_text(f'#!/bin/sh\nexec {sys.executable} -m nextstep_jax "$@"\n')
    (tmp_path / "nextstep-jax").chmod(0o755)
    path = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def finished() -> bool:
        return subprocess.run(["sh", "-c", test], env=path, capture_output=True, check=False).returncode == 0

    export = storage.at(workdir) / "export"
    (export / "config.json").write_bytes(b"{}")  # an export under way
    assert not finished()
    export.remove_below()
    files = checkpoints.params.load_extra_files(tiny_checkpoint)
    leaves, config = checkpoints.iterate_params(tiny_checkpoint), checkpoints.load_config(tiny_checkpoint)
    checkpoints.save_params(export, leaves, config, files)
    assert finished()


def test_gpu_is_one_process_of_this_python(capsys):
    words = shlex.split(dry_run(capsys, "gpu", *TRAIN, *AFTER))
    assert words[1:5] == [sys.executable, "-m", "nextstep_jax", "train"] and words[-len(TRAIN) - 2 :] == [*TRAIN, *OVERRIDES]
    assert words[0] == f"XLA_FLAGS={xla_flags.environment('hopper')['XLA_FLAGS']}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "PLACE"),
        (["moon"], "invalid choice: 'moon'"),
        (["tpu-train", *TPU, "--type", "v5p-128", "--config", "c.py"], "required: --workdir"),
        (["slurm", *TRAIN, "--nodes", "many", "--gpus", "8"], "--nodes: invalid int value: 'many'"),
        (["tpu-create", *TPU, "--type", "v4-8"], "--type must be one of v5litepod-N, v5p-N, v6e-N, tpu7x-N, found 'v4-8'"),
        (
            ["tpu-create", *TPU, "--type", "tpu7x-128"],
            "tpu7x-128: there are Cloud TPU VMs of v5e, v5p, v6e alone, use xpk",
        ),
        (["tpu-train", *TPU, "--type", "tpu7x-128", *TRAIN], "--type tpu7x-128: there are Cloud TPU VMs of"),
        (["gpu", *TRAIN, "--config.steps=7"], "unrecognized arguments: --config.steps=7"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    try:
        code = submit.main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_command_that_fails_ends_it_with_its_exit_code(monkeypatch, capsys):
    failing = submit.Command([sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['CODE']))"], {"CODE": "7"})
    never = submit.Command(["/nowhere/to/be/found"])
    monkeypatch.setattr(submit, "gpu", lambda options: [failing, never])
    assert submit.main(["gpu", *TRAIN]) == 7
    monkeypatch.setattr(submit, "gpu", lambda options: [never])
    assert submit.main(["gpu", *TRAIN]) == 2
    assert "/nowhere/to/be/found is not installed here" in capsys.readouterr().err


def test_the_gpu_flags_exist_in_this_jaxlib():
    """XLA refuses a flag that it does not know, whatever the platform."""
    program = "import jaxlib.xla_client as client; client.make_cpu_client()"
    for flags, works in ((xla_flags.environment("hopper")["XLA_FLAGS"], True), ("--xla_gpu_no_such_flag=1", False)):
        done = subprocess.run([sys.executable, "-c", program], env={"XLA_FLAGS": flags}, capture_output=True, check=False)
        assert (done.returncode == 0) is works, done.stderr
