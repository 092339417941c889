"""Whether one commit is slower than another on this machine: run before a release.

    python -m benchmarks.regress v0.1.0                    # this commit against a tag
    python -m benchmarks.regress main~20 main --threads 1 --clock cpu --turns 7 --json regress.json    # on a busy machine

Both commits are checked out into a temporary folder. Each measure runs in processes of its own, the commits taking turns, so
that what else the machine does meets both alike; a commit is measured by its own programs (benchmarks/generate.py and
train_step.py). `times_slower` is the ratio of the medians, the new commit's over the base's; `spread` is the largest value over
the smallest, of each commit: a ratio within it says nothing.

Exit codes: 0 no measure is more than `--limit` times slower, 1 one is, 2 an option that cannot be used.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import measure
from nextstep_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]


class Program(NamedTuple):
    """A program of `benchmarks`, its options, and the entries of its "seconds" that are compared."""

    module: str
    options: tuple[str, ...]
    seconds: tuple[str, ...]


PROGRAMS = {
    "token mid": Program("generate", ("--preset", "mid", "--chunk", "8"), ("a_token", "prefill")),
    "token tiny": Program("generate", ("--preset", "tiny", "--chunk", "64"), ("a_token", "prefill")),
    "train mid": Program("train_step", ("--preset", "mid"), ("step",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit to compare with")
    parser.add_argument("new", nargs="?", default="HEAD", help="commit to judge (default: HEAD)")
    parser.add_argument("--programs", help=f"only these, separated by commas, of {', '.join(PROGRAMS)}")
    parser.add_argument("--turns", type=int, default=5, help="processes of each program and commit")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs in a process")
    parser.add_argument("--threads", type=int, help="cores to use")
    parser.add_argument("--clock", choices=measure.CLOCKS, help="cpu: processor time; both commits must know the option")
    parser.add_argument("--limit", type=float, default=1.1, help="times slower that are still allowed")
    parser.add_argument("--json", help="write the figures to this file")
    a = parser.parse_args()
    names = a.programs.split(",") if a.programs else list(PROGRAMS)
    if unknown := [name for name in names if name not in PROGRAMS]:
        parser.error(f"--programs must be among {', '.join(PROGRAMS)}, found {', '.join(unknown)}")
    try:
        with checked_out(a.base) as base, checked_out(a.new) as new:
            found = {name: take_turns(PROGRAMS[name], {"base": base, "new": new}, a) for name in names}
    except InputError as error:
        parser.error(str(error))
    figures = {f"{name}: {entry}": compare(values) for name, entries in found.items() for entry, values in entries.items()}
    measure.report({"base": a.base, "new": a.new, "measures": figures}, a.json)
    slower = [name for name, figure in figures.items() if figure["times_slower"] > a.limit]
    for name in slower:
        print(f"slower: {name}, {figures[name]['times_slower']:.2f} times", file=sys.stderr)
    sys.exit(1 if slower else 0)


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[pathlib.Path]:
    """A folder that holds a commit's tree.

    Raises:
      InputError: the repository has no such commit.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"commit {commit}: {' '.join(done.stderr.split())}")
        return done.stdout.strip()

    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), git("rev-parse", "--verify", f"{commit}^{{commit}}"))
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def take_turns(program: Program, trees: dict[str, pathlib.Path], a: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by entry and commit; in every other turn the commits change places."""
    found: dict[str, dict[str, list[float]]] = {entry: {name: [] for name in trees} for entry in program.seconds}
    for turn in range(a.turns):
        for name in list(trees)[:: 1 if turn % 2 == 0 else -1]:
            seconds = run(program, trees[name], a)
            for entry in program.seconds:
                found[entry][name].append(seconds[entry])
    return found


def run(program: Program, tree: pathlib.Path, a: argparse.Namespace) -> dict[str, float]:
    """What a commit's program measures.

    Raises:
      InputError: it fails, or gives no such figures.
    """
    file = tree / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{program.module}", *program.options, "--rounds", str(a.rounds)]
    for name in ("threads", "clock"):
        command += [f"--{name}", str(value)] if (value := getattr(a, name)) else []
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": str(tree / ".compiled")}
    done = subprocess.run([*command, "--json", str(file)], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"benchmarks.{program.module} of {tree} failed: {done.stderr.strip()[-500:]}")
    seconds = json.loads(file.read_text())["seconds"]
    if missing := [entry for entry in program.seconds if entry not in seconds]:
        raise InputError(f"benchmarks.{program.module} of {tree} does not time {', '.join(missing)}")
    return seconds


def compare(values: dict[str, list[float]]) -> dict:
    """The figures of one measure of both commits."""
    medians = {name: statistics.median(seconds) for name, seconds in values.items()}
    return {
        "seconds": medians,
        "times_slower": medians["new"] / medians["base"],
        "spread": {name: max(seconds) / min(seconds) for name, seconds in values.items()},
    }


if __name__ == "__main__":
    main()
