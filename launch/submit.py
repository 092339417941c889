"""Start a training where the accelerators are. Every command that is run is printed; with --dry-run it is only printed.

    nextstep-jax submit tpu-create --name N --zone Z --type v5p-128 [--spot]       queue for a slice of Cloud TPU VMs
    nextstep-jax submit tpu-setup  --name N --zone Z                               install this commit on its workers
    nextstep-jax submit tpu-train  --name N --zone Z --type v5p-128 --config C --workdir W [-- --config.key=value]
    nextstep-jax submit xpk        --name N --zone Z --cluster K --type v5p-128 --image I --config C --workdir W [-- ...]
    nextstep-jax submit slurm      --nodes 8 --gpus 8 --config C --workdir W [--time 24:00:00] [-- ...]
    nextstep-jax submit gpu        --config C --workdir W [-- ...]                 this machine, all its GPUs

The same command again continues a run that was stopped. Exit codes: that of the command that failed; 2 for bad options.
The page "Pods" of the documentation (docs/pods.md) says what was measured, and where all of it is gone through once.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from nextstep_jax import storage
from nextstep_jax.launch import xla_flags

REPOSITORY = "nextstep_jax"  # folder on a worker, below its home
ARCHIVE = "nextstep_jax.tar.gz"
RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
PREFIXES = {"v5litepod-": "v5e", "v5p-": "v5p", "v6e-": "v6e", "tpu7x-": "tpu7x"}


class Command(NamedTuple):
    """A command, its environment beside that of this process, and what it reads."""

    argv: Sequence[str]
    environment: dict[str, str] = {}
    stdin: str = ""

    def __str__(self) -> str:
        line = " ".join([*_assignments(self.environment), shlex.join(self.argv)])
        return f"{line} <<'EOF'\n{self.stdin}EOF" if self.stdin else line


def generation(accelerator: str) -> str:
    """ "v5p" of "v5p-128"; ValueError for what has no entry."""
    for prefix, name in PREFIXES.items():
        if accelerator.startswith(prefix) and accelerator.removeprefix(prefix).isdigit():
            return name
    raise ValueError(f"--type must be one of {', '.join(f'{p}N' for p in PREFIXES)}, found {accelerator!r}")


def of_virtual_machines(accelerator: str) -> str:
    """`generation`; ValueError also for one that there are no Cloud TPU VMs of."""
    if (kind := generation(accelerator)) not in RUNTIMES:
        raise ValueError(f"--type {accelerator}: there are Cloud TPU VMs of {', '.join(RUNTIMES)} alone, use xpk")
    return kind


def train(options: argparse.Namespace, *flags: str) -> list[str]:
    """The training with its options."""
    return ["nextstep-jax", "train", "--config", options.config, "--workdir", options.workdir, *flags, *options.rest]


def _assignments(environment: dict[str, str]) -> list[str]:
    return [f"{name}={shlex.quote(value)}" for name, value in environment.items()]


def _shell(environment: dict[str, str], argv: Sequence[str]) -> str:
    return " ".join([*_assignments(environment), shlex.join(argv)])


# --- one function for each place --------------------------------------------------------------------------------------


def tpu_create(options: argparse.Namespace) -> list[Command]:
    """Queue for a slice; `gcloud compute tpus queued-resources describe` says when it is ACTIVE."""
    argv = ["gcloud", "compute", "tpus", "queued-resources", "create", options.name, *_where(options)]
    argv += [f"--node-id={options.name}", f"--accelerator-type={options.type}"]
    argv += [f"--runtime-version={RUNTIMES[of_virtual_machines(options.type)]}"]
    return [Command([*argv, "--spot"] if options.spot else argv)]


def tpu_setup(options: argparse.Namespace) -> list[Command]:
    """Copy this commit to every worker and install it there."""
    archive = Command(["git", "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD"])
    copy = ["gcloud", "compute", "tpus", "tpu-vm", "scp", ARCHIVE, f"{options.name}:", *_where(options), "--worker=all"]
    install = [
        f"mkdir -p {REPOSITORY}",
        f"tar -xzf {ARCHIVE} -C {REPOSITORY}",
        f"cd {REPOSITORY}",
        "python3.11 -m venv .venv",
        ".venv/bin/pip install -q -e '.[train,tpu]'",
    ]
    return [archive, Command(copy), _on_workers(options, " && ".join(install))]


def tpu_train(options: argparse.Namespace) -> list[Command]:
    """Start the training on every worker, detached from this connection; its output goes to train.log on each."""
    environment = {"PATH": ".venv/bin:/usr/bin:/bin"} | xla_flags.environment(of_virtual_machines(options.type))
    command = shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *train(options, "--distributed")])
    return [_on_workers(options, f"cd {REPOSITORY} && (setsid nohup {command} >> train.log 2>&1 < /dev/null &)")]


def _on_workers(options: argparse.Namespace, command: str) -> Command:
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", options.name, *_where(options), "--worker=all"]
    return Command([*ssh, f"--command={command}"])


def _where(options: argparse.Namespace) -> list[str]:
    return [f"--zone={options.zone}", *([f"--project={options.project}"] if options.project else [])]


def _finished(workdir: str) -> str:
    """A shell command that succeeds once a run has exported its result."""
    result = os.path.join(workdir, "export")
    return shlex.join(["nextstep-jax", "info", result] if storage.is_address(workdir) else ["test", "-e", result])


def xpk(options: argparse.Namespace) -> list[Command]:
    """A workload on a GKE cluster made with xpk. JAX finds the other pods from what GKE sets (TPU_WORKER_*, MEGASCALE_*).

    A pod that was told to stop has saved everything and left with 0; the test after it makes that a failure, so that the
    workload is started again.
    """
    slices = [f"--config.mesh.data={options.slices}"] if options.slices > 1 else []
    command = _shell(xla_flags.environment(generation(options.type)), train(options, "--distributed", *slices))
    finished = _finished(options.workdir)
    argv = ["xpk", "workload", "create", f"--cluster={options.cluster}", f"--workload={options.name}", *_where(options)]
    argv += [f"--tpu-type={options.type}", f"--num-slices={options.slices}", f"--docker-image={options.image}"]
    return [Command([*argv, f"--max-restarts={options.restarts}", f"--command={command} && {finished}"])]


def slurm(options: argparse.Namespace) -> list[Command]:
    """A batch job of one process a GPU: that is how JAX reads Slurm's variables (process = task, device = local task).

    --gpus-per-task must not be used: each task would then see one GPU, called 0, and not find the one of its own number.
    Two minutes before its time is up the job is told to stop, saves, and queues itself again unless it is finished.
    """
    finished = _finished(options.workdir)
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=nextstep_jax",
        f"#SBATCH --nodes={options.nodes}",
        f"#SBATCH --ntasks-per-node={options.gpus}",
        f"#SBATCH --gpus-per-node={options.gpus}",
        f"#SBATCH --time={options.time}",
        *([f"#SBATCH --partition={options.partition}"] if options.partition else []),
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        *(f"export {assignment}" for assignment in _assignments(xla_flags.environment("hopper"))),
        f"srun --kill-on-bad-exit=1 {shlex.join(train(options, '--distributed'))} || exit $?",
        f'{finished} || scontrol requeue "$SLURM_JOB_ID"',
    ]
    return [Command(["sbatch"], stdin="\n".join(lines) + "\n")]


def gpu(options: argparse.Namespace) -> list[Command]:
    """This machine: one process for all its GPUs."""
    return [Command([sys.executable, "-m", "nextstep_jax", *train(options)[1:]], xla_flags.environment("hopper"))]


# --- command line -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        print(f"error: {self.prog.rpartition('.')[2]}: {message}", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="nextstep-jax submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places = top.add_subparsers(required=True, metavar="PLACE", parser_class=_Parser)

    def place(name: str, function, required: Sequence[str] = (), optional: Sequence[str] = (), trains: bool = True):
        one = places.add_parser(name, description=function.__doc__, allow_abbrev=False)
        one.set_defaults(function=function, rest=[])
        for option in (*required, *(("config", "workdir") if trains else ())):
            one.add_argument(f"--{option}", required=True)
        for option in optional:
            one.add_argument(f"--{option}", default="")
        one.add_argument("--dry-run", action="store_true", help="print what would be run")
        return one

    place("tpu-create", tpu_create, ("name", "zone", "type"), ("project",), trains=False).add_argument(
        "--spot", action="store_true", help="cheaper, and taken away at any time"
    )
    place("tpu-setup", tpu_setup, ("name", "zone"), ("project",), trains=False)
    place("tpu-train", tpu_train, ("name", "zone", "type"), ("project",))
    one = place("xpk", xpk, ("name", "cluster", "zone", "type", "image"), ("project",))
    one.add_argument("--slices", type=int, default=1)
    one.add_argument("--restarts", type=int, default=100, help="times that the workload is started again")
    one = place("slurm", slurm, (), ("partition",))
    one.add_argument("--nodes", type=int, required=True)
    one.add_argument("--gpus", type=int, required=True, help="of a node")
    one.add_argument("--time", default="24:00:00")
    place("gpu", gpu)
    return top


def main(argv: Sequence[str]) -> int:
    """Print the commands and run them, one after another, until one fails. Returns the exit code."""
    mine, rest = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    try:
        options = parser().parse_args(mine)
        options.rest = list(rest)
        commands = options.function(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for command in commands:
        print(command, flush=True)
        if not options.dry_run:
            try:
                done = subprocess.run(
                    command.argv, env=os.environ | command.environment, input=command.stdin or None, text=True, check=False
                )
            except FileNotFoundError:
                print(f"error: {command.argv[0]} is not installed here", file=sys.stderr)
                return 2
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
