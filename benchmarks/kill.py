"""Does a run survive kill -9? Kills a training at random moments, restarts it, and compares it with one that was left alone.

    python -m benchmarks.kill --kills 200 [--processes 4] [--bucket gs [--faults]] [--keep DIR [--minutes 10]] [--json FILE]

The training is stage 1 on shapes with a tiny model, through launch/train.py: text, pairs and stories in four data shards; an
average of the parameters; a checkpoint after every second step, so that many kills fall into a save. A run is killed and
started again until it ends by itself, then the next one begins, until there were enough kills. Half of the kills come within a
second of the first step, a quarter as soon after that as a save is seen on disk, a quarter anywhere from the start of the
process. Of every run must be identical to the one left alone:

- the samples of every step, by name, each time that the step is done: none is lost, none is seen twice;
- every line of metrics.jsonl but for its times, whenever a run was killed that had written it;
- the last checkpoint's digests of all leaves (parameters, moments, average, counters), and the exported parameters.

With --bucket the killed runs write to a bucket of that kind, in a stand-in on this machine (`stand_in_buckets`); the run left
alone stays on the disk. With --faults requests fail at random: 429 or 503, a connection reset in the middle of a body, a write
that is done and never answered (one in two hundred each), a listing without the newest object (one in fifty).

With --keep the data, the runs left alone and the outcome of every killed run (outcomes.json) stay in a folder: the same command
continues there, and ends after --minutes, once the run under way has ended and was compared. A run counts when it was compared.

With several processes (jax.distributed and gloo on this machine, found as Slurm's are) one of them is killed, and the others
must stop by themselves with exit code 1 and a line that says why. The run left alone has as many processes; its distance from
that of a single process, which sums in another order, is printed.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import stand_in_buckets
from nextstep_jax import checkpoints, storage
from nextstep_jax.checkpoints.steps import read_step
from nextstep_jax.data.build import build
from nextstep_jax.data.encode import encode
from nextstep_jax.data.sources import open_source
from nextstep_jax.launch import rendezvous
from nextstep_jax.launch import train as launch_train
from nextstep_jax.rewards.protocol import RewardRequest, Score
from nextstep_jax.training import metrics

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60
DATA_SHARDS = 4
STAGE_1, ONLINE = "nextstep_14b_stage1", ("nextstep_14b_nft", "nextstep_14b_grpo")
JOIN = 60  # seconds in which all processes of a run must have come
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
PATIENCE = 180.0  # seconds in which the processes left over must stop
ENDS = 600.0  # seconds in which a process must do something


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--bucket", choices=("gs", "s3"), help="where the runs that are killed write; default: on the disk")
    parser.add_argument("--faults", action="store_true", help="the bucket fails now and then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="a folder to continue in")
    parser.add_argument("--minutes", type=float, default=math.inf, help="kill no more after so long; goes with --keep")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    chance = 0.005 if arguments.faults else 0.0
    made_with = {name: getattr(arguments, name) for name in ("processes", "bucket", "faults", "seed")}
    buckets = {"gs": stand_in_buckets.google_bucket, "s3": stand_in_buckets.s3_bucket}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(arguments.keep or temporary).resolve()
        outcomes = Outcomes(folder, made_with)
        draw = random.Random(f"{arguments.seed} {len(outcomes.runs)}")
        faults = stand_in_buckets.Faults(chance, chance, chance, 4 * chance, draw.getrandbits(32))
        root = storage.at(stack.enter_context(buckets[arguments.bucket](faults)) if arguments.bucket else folder)
        prove(outcomes, root, arguments.kills, arguments.processes, draw, arguments.minutes, faults)
    result = outcomes.figures()
    for name, value in result.items():
        print(f"{name.replace('_', ' '):36}{value}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result) + "\n")
    return 0


class Outcomes:
    """What came of the killed runs of one setting so far, kept in a folder.

    Attributes:
      runs: the figures of each, in order.
      seen: what is known of the runs left alone, by name: the seconds to the first step, and their distance.
    """

    def __init__(self, folder: pathlib.Path, made_with: Mapping[str, Any]):
        self.folder, self._made_with = folder, dict(made_with)
        self._file = folder / "outcomes.json"
        self.runs: list[dict[str, float]] = []
        self.seen: dict[str, float] = {}
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            if kept["made_with"] != self._made_with:
                raise SystemExit(f"{self._file}: of another setting, {kept['made_with']}")
            self.runs, self.seen = kept["runs"], kept["seen"]

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps({"made_with": self._made_with, "seen": self.seen, "runs": self.runs}, indent=1) + "\n")
        os.replace(partial, self._file)

    def alone(self, name: str, count: int) -> "Run":
        """The run of `count` processes left alone; done once."""
        run = Run(self.folder, name, count)
        if name in self.seen:
            run.starting = self.seen[name]
            return run
        storage.of(run.path).remove_folder(run.path)
        run.remove_logs()
        self.seen[name] = finish(run).starting
        self.write()
        return run

    def sum(self, name: str) -> float:
        return sum(run[name] for run in self.runs)

    def figures(self) -> dict[str, float]:
        """All runs together."""
        found: dict[str, float] = {"processes": self._made_with["processes"], "runs": len(self.runs)}
        names = [name for name in (self.runs[0] if self.runs else ()) if name != "seconds_until_others_stopped"]
        found |= {name: self.sum(name) for name in names}
        if self._made_with["processes"] > 1:
            found["largest_difference_from_one_process"] = self.seen["distance"]
            found["seconds_until_others_stopped"] = max((r["seconds_until_others_stopped"] for r in self.runs), default=0.0)
        return found


def prove(
    outcomes: Outcomes,
    root: storage.Place,
    kills: int,
    count: int,
    draw: random.Random,
    minutes: float,
    faults: stand_in_buckets.Faults,
) -> None:
    """Kill runs of `count` processes until there were `kills`, or for so many minutes. SystemExit names what differed."""
    ends, folder = time.monotonic() + 60 * minutes, outcomes.folder
    if not (folder / "data").exists():
        make_data(folder / "making")
        (folder / "making").rename(folder / "data")
    alone = outcomes.alone("alone", count)
    if count > 1 and "distance" not in outcomes.seen:
        outcomes.seen["distance"] = distance(outcomes.alone("single", 1).path, alone.path)
        outcomes.write()
    done = outcomes.sum("kills") if outcomes.runs else 0
    while done < kills and time.monotonic() < ends:
        began, before = time.monotonic(), dict(faults.counts)
        run = Run(folder, f"killed_{len(outcomes.runs)}", count, root=root)
        run.remove_logs()  # of a time that was interrupted
        storage.of(run.path).remove_folder(run.path)
        figures = {"kills": 0, "inside_a_save": 0, "while_starting": 0, "seconds_until_others_stopped": 0.0}
        while done + figures["kills"] < kills and time.monotonic() < ends:
            with Life(run) as life:
                if not life.kill(draw, alone.starting):
                    life.require_good_end()
                    break
                stopped = round(life.require_others_stopped(), 1)
            figures["seconds_until_others_stopped"] = max(figures["seconds_until_others_stopped"], stopped)
            figures["kills"] += 1
            figures["inside_a_save"] += life.saving
            figures["while_starting"] += not life.stepped()
            require_same_metrics(alone, run)
            say(f"kill {figures['kills']}: {'in a save' if life.saving else 'not in a save'}, {len(run.log())} steps so far")
        else:
            finish(run)
        require_same_metrics(alone, run)
        require_same_samples(alone, run)
        require_same_end(alone, run)
        figures["steps_done_again"] = len(run.log()) - STEPS
        figures["minutes"] = round((time.monotonic() - began) / 60, 1)
        outcomes.runs.append(figures | {f"faults_{kind}": found - before[kind] for kind, found in faults.counts.items()})
        outcomes.write()
        done += figures["kills"]
        say(f"{run.name}: identical; so far {json.dumps(outcomes.figures())}")
        storage.of(run.path).remove_folder(run.path)
        run.remove_logs()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the training -----------------------------------------------------------------------------------------------------


def make_data(root: pathlib.Path) -> None:
    """Some pairs and stories of shapes with made-up latents: colors of 8x8 blocks in 16 channels."""
    mix = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)

    def latents(pixels: np.ndarray) -> np.ndarray:
        n, height, width, _ = pixels.shape
        return pixels.reshape(n, height // 8, 8, width // 8, 8, 3).mean((2, 4)) @ mix

    for kind in ("pair", "interleaved"):
        build(open_source(f"shapes:{kind}:train:200"), root / "pixels" / kind)
        encode(root / "pixels" / kind, latents, root / kind, area=64)


def brightness(requests: Sequence[RewardRequest]) -> list[Score | None]:
    """A reward: the mean level of an image, in [0, 1]."""
    return [{"reward": float(request.image.mean()) / 255} for request in requests]


@dataclasses.dataclass
class Run:
    """A work directory, and what its processes write beside it."""

    folder: pathlib.Path
    name: str
    count: int
    steps: int = STEPS
    starting: float = 0.0  # seconds from the start of a process to its first step
    root: storage.Place | None = None  # where its work directory is; None: in `folder`
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # settings that differ from those below
    stage: str = STAGE_1
    devices: int = 1  # pretended ones of each process

    @property
    def path(self) -> storage.Place:
        return (self.root or self.folder) / self.name

    def settings(self) -> list[str]:
        values = {
            "data.batch_size": DATA_SHARDS,
            "data.data_shards": DATA_SHARDS,
            "steps": self.steps,
            "model.transformer.layers": 1,
            "model.flow_head.layers": 1,
            "ema_decay": 0.9,
            "log_every": 1,
            "checkpoint.every": 2,
        }
        if self.stage in ONLINE:
            values |= {"rewards.shapes.reward": "python:benchmarks.kill:brightness", "rollouts.image_size": 32}
        else:
            values |= {"data.root": self.folder / "data", "data.seq_len": 160}
        values |= self.changes
        config = f"{ROOT / 'configs' / self.stage}.py:laptop"
        return ["--config", config, "--workdir", str(self.path), *(f"--config.{key}={value}" for key, value in values.items())]

    def remove_logs(self) -> None:
        """Forget what its processes wrote beside it."""
        for file in self.folder.glob(f"{self.name}.*"):
            file.unlink()

    def log(self) -> list[tuple[int, list[str]]]:
        """(step, names of its samples in the order of the batch), each time that all processes did it."""
        found = []
        for life in range(len(list(self.folder.glob(f"{self.name}.*.0.out")))):
            parts = []
            for process in range(len(list(self.folder.glob(f"{self.name}.{life:03}.*.out")))):
                file = self.folder / f"{self.name}.{life:03}.{process}.steps"
                lines = file.read_text().splitlines() if file.exists() else []
                parts.append(dict(json.loads(line) for line in lines if line.endswith("]]")))
            found += [(step, [n for part in parts for n in part[step]]) for step in parts[0] if all(step in p for p in parts)]
        return found

    def metrics(self) -> list[dict]:
        """The whole lines of metrics.jsonl, without times."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            {k: v for k, v in json.loads(line).items() if not re.search("second|goodput", k)}
            for line in lines
            if line.endswith("}")
        ]


def finish(run: Run) -> Run:
    """Let the run's processes go on to the end."""
    with Life(run) as life:
        life.wait_for_first_step()
        run.starting = time.monotonic() - life.began
        life.require_good_end()
    say(f"{run.name}: done, {run.starting:.1f} s to the first step, {time.monotonic() - life.began:.1f} s in all")
    return run


class Life:
    """The processes of a run from one start to their end."""

    def __init__(self, run: Run):
        self._run, self.began, self.saving = run, time.monotonic(), False
        self._number = len(list(run.folder.glob(f"{run.name}.*.0.out")))
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            self._port = probe.getsockname()[1]
        self._processes = [self._start(process) for process in range(run.count)]

    def _file(self, process: int, kind: str) -> pathlib.Path:
        return self._run.folder / f"{self._run.name}.{self._number:03}.{process}.{kind}"

    def _start(self, process: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "benchmarks.kill", "--log", str(self._file(process, "steps")), *self._run.settings()]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COMPILATION_CACHE_DIR": str(self._run.folder / "compiled"),  # a restart need not compile
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self._run.devices}" if self._run.devices > 1 else "",
        }
        if self._run.count > 1:
            told = {"coordinator": f"localhost:{self._port}", "num_processes": self._run.count, "process_id": process}
            if process == 0:
                command += [f"--{name}={value}" for name, value in told.items()]
            else:
                command.append("--distributed")
                variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
                environment |= dict(zip(variables, map(str, told.values()), strict=True))
        with open(self._file(process, "out"), "w") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=ROOT)

    def stepped(self) -> bool:
        return all(self._file(process, "steps").exists() for process in range(self._run.count))

    def wait_for_first_step(self) -> None:
        while not self.stepped() and not self._over() and time.monotonic() - self.began < ENDS:
            time.sleep(0.01)

    def _over(self) -> bool:
        """Whether a process has ended."""
        return any(process.poll() is not None for process in self._processes)

    def send(self, process: int, number: int) -> None:
        """Send a process a signal."""
        self._processes[process].send_signal(number)

    def kill(self, draw: random.Random, starting: float) -> bool:
        """Kill one process at a random moment. False if the run had ended before."""
        moment = draw.choice(("soon", "soon", "saving", "any"))
        if moment == "any":
            time.sleep(draw.uniform(0, 1.3 * starting))
        else:
            self.wait_for_first_step()
            time.sleep(draw.uniform(0, 1.0))
        while moment == "saving" and not self._in_a_save() and not self._over():
            time.sleep(0.001)
        self._victim = draw.randrange(self._run.count)
        if self._over():
            return False
        self.send(self._victim, signal.SIGKILL)
        self.wait(self._victim, ENDS)
        self.saving = self._in_a_save()
        return True

    def _in_a_save(self) -> bool:
        """Whether there is a step that is begun and not complete."""
        folder = self._run.path / "checkpoints"
        begun = {path.name.removesuffix(".partial") for path in folder.glob("*")}
        return any(name.isdigit() and not storage.of(folder).is_complete(folder / name) for name in begun)

    def require_good_end(self) -> None:
        """All processes end by themselves, with exit code 0."""
        for process in range(self._run.count):
            if code := self.wait(process, ENDS):
                raise SystemExit(f"process {process} of {self._run.name} ended with {code}:\n{self.said(process)}")

    def require_others_stopped(self) -> float:
        """The seconds until the last of the other processes had stopped. They must say what happened and exit with 1."""
        killed = time.monotonic()
        for process in range(self._run.count):
            if process != self._victim:
                code = self.wait(process, PATIENCE)
                said = self.said(process)
                if code != 1 or not re.search(r"^error: .*process", said, re.MULTILINE):
                    raise SystemExit(f"process {process} ended with {code} after the kill of {self._victim}:\n{said}")
        return time.monotonic() - killed

    def said(self, process: int) -> str:
        return self._file(process, "out").read_text()

    def wait(self, process: int, seconds: float) -> int:
        """The exit code of a process, negative for a signal. SystemExit if it does not end in time."""
        try:
            return self._processes[process].wait(seconds)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"process {process} still runs after {seconds} s:\n{self.said(process)}") from None

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_) -> None:
        """Nothing is left running, whatever happened."""
        for process in self._processes:
            process.kill()
            process.wait()


def train(argv: list[str]) -> int:
    """In a process of its own, `--log FILE` and the options of launch/train.py: train, and log the names of every step's
    samples. Returns the exit code.
    """
    log, sys.argv = argv[1], ["launch.train", *argv[2:]]
    remember = metrics.NonFiniteGuard.remember

    def logged(self, step: int, names: tuple[str, ...]) -> None:
        with open(log, "a") as file:
            file.write(json.dumps([step, names]) + "\n")
        remember(self, step, names)

    metrics.NonFiniteGuard.remember = logged
    rendezvous._JOIN_TIMEOUT_S, rendezvous._HEARTBEAT_TIMEOUT_S = JOIN, HEARTBEAT
    return launch_train.main(sys.argv)


# --- the comparison ---------------------------------------------------------------------------------------------------


def require_same_samples(alone: Run, run: Run) -> None:
    """Every step was given the samples that it is given in the run left alone, each time that it was done."""

    expected = dict(alone.log())
    for step, names in run.log():
        if names != expected[step]:
            raise SystemExit(f"{run.name}: step {step} was given other samples than in the run left alone")
    if missing := expected.keys() - dict(run.log()).keys():
        raise SystemExit(f"{run.name}: the steps {sorted(missing)} were never done")


def require_same_metrics(alone: Run, run: Run) -> None:
    expected = {line["step"]: line for line in alone.metrics()}
    for line in run.metrics():
        if line != expected[line["step"]]:
            raise SystemExit(f"{run.name}: metrics of step {line['step']} differ: {line}, expected {expected[line['step']]}")


def require_same_end(alone: Run, run: Run) -> None:
    if len(run.metrics()) != run.steps:
        raise SystemExit(f"{run.name}: metrics.jsonl has {len(run.metrics())} lines, expected {run.steps}")
    last = str(run.steps)
    expected, found = (read_step(each.path / "checkpoints" / last)[0]["leaves"] for each in (alone, run))
    different = [path for path in expected if expected[path] != found.get(path)]
    if different or expected.keys() != found.keys():
        raise SystemExit(f"{run.name}: {len(different)} leaves of the last state differ, the first is {different[:1]}")
    whole, mine = (dict(checkpoints.iterate_params(each.path / "export")) for each in (alone, run))
    if whole.keys() != mine.keys() or any(whole[path].tobytes() != mine[path].tobytes() for path in whole):
        raise SystemExit(f"{run.name}: the exported parameters differ")


def distance(one: storage.Place, other: storage.Place) -> float:
    """The largest difference between two exports' parameters."""
    whole, mine = (dict(checkpoints.iterate_params(path / "export")) for path in (one, other))
    return max(float(np.abs(whole[path].astype(np.float32) - mine[path].astype(np.float32)).max()) for path in whole)


if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]) if sys.argv[1:2] == ["--log"] else main())
