"""Structured fuzzing of every reader of files that came from elsewhere: whatever they hold, the answer is bounded and one line.

    python -m benchmarks.fuzz --seconds 600                     # every target for so long, one after another
    python -m benchmarks.fuzz --targets pickle safetensors --seconds 60 --seed 7
    python -m benchmarks.fuzz --seconds 300 --log fuzz.json     # and again: goes on where the log ends

An input is a folder, {relative name: content}, built by a hypothesis strategy that knows the format: instructions of a pickle,
entries of a header, members of a tar, chunks of an image, tables of JSON with values put in the place of others, and bytes
flipped, cut and repeated. A target reads the folder as the library would. It passes if it returns or raises InputError or
DamagedDataError with a message of bounded size, within `LIMIT_SECONDS` and `LIMIT_BYTES` of memory. What fails is shrunk by
hypothesis, printed and logged, and the exit code is 1.

To add a reader, add a row to `TARGETS` of benchmarks/fuzz_targets.py. Findings become rows of its `KEPT`, which
tests/benchmarks/test_fuzz.py runs with a few fresh examples.
"""

import argparse
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis

from benchmarks.fuzz_inputs import Files
from benchmarks.fuzz_targets import TARGETS, Target
from nextstep_jax.errors import DamagedDataError, InputError

LIMIT_SECONDS, LIMIT_BYTES, LIMIT_MESSAGE = 10, 1 << 29, 20_000


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of a target that the log does not know")
    parser.add_argument("--log", type=pathlib.Path, help="JSON file of seconds, inputs, next seed and failures by target")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore", UserWarning)  # Pillow's, of what is corrupt in an image
    log = json.loads(arguments.log.read_text()) if arguments.log and arguments.log.exists() else {}
    failed = 0
    for name in arguments.targets:
        row = log.setdefault(name, {"seconds": 0, "inputs": 0, "seed": arguments.seed, "failures": []})
        start, problem = time.monotonic(), ""
        while not problem and time.monotonic() - start < arguments.seconds:
            count, problem = try_many(name, 200, row["seed"])
            row["inputs"] += count
            row["seed"] += 1
        row["seconds"] += round(time.monotonic() - start)
        row["failures"] += [problem] if problem else []
        print(f"{name:16}{row['inputs']:9} inputs {row['seconds'] / 60:7.1f} min  {problem or 'ok'}", flush=True)
        failed += bool(problem)
        if arguments.log:
            arguments.log.write_text(json.dumps(log, indent=1))
    return min(failed, 1)


def try_many(name: str, examples: int, seed: int) -> tuple[int, str]:
    """(how many inputs were tried, what is wrong with the smallest one that fails or "")."""
    target, count, last = TARGETS[name], 0, ""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(target.inputs)
    def run(files: Files) -> None:
        nonlocal count, last
        count += 1
        last = repr(files)
        check(target, files)

    try:
        run()
    except Exception as error:  # whatever it is, it is what this program looks for
        return count, f"{type(error).__name__}: {error}\n    {last}"
    return count, ""


def check(target: Target, files: Files) -> None:
    """AssertionError unless the target answers as it should."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            _bounded(lambda: target.read(pathlib.Path(folder)))
        except (InputError, DamagedDataError) as error:
            message = str(error)
            assert len(message) < LIMIT_MESSAGE, f"a message of {len(message)} characters"


class TooSlow(BaseException):
    """Not an Exception, which a reader may turn into its own."""


def _bounded(action: Callable[[], Any]) -> None:
    """Run the action; AssertionError if it takes too long or too much memory, or ends with something that is no Exception."""

    def stop(*_):
        raise TooSlow

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
        try:
            action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TooSlow:
        raise AssertionError(f"more than {LIMIT_SECONDS} s") from None
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # such as a panic of native code
        raise AssertionError(f"{type(error).__name__}: {str(error)[:200]}") from None
    finally:
        signal.signal(signal.SIGALRM, previous)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < LIMIT_BYTES, f"{grown >> 20} MiB of memory"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
