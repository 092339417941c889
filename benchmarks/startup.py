"""How long until something happens: importing the package, and the first image with the built-in model, cold and warm.

    python -m benchmarks.startup --json startup.json [--checkpoint DIR]

Every run is a process of its own. Cold: an empty cache of compiled programs. Warm: the same command again. `--clock cpu` counts
the processor time of those processes instead of the time on the wall. `profile` is what `generate --profile` printed.
With `--checkpoint` the image is that checkpoint's; its `load` stands beside the time that reading its files takes.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import measure

IMPORTS = {
    "nextstep_jax": "import nextstep_jax",
    "command line": "import nextstep_jax.cli",
    "pipeline": "import nextstep_jax.generation.pipeline",
    "jax alone": "import jax",
}
DRAW = "from nextstep_jax.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a checkpoint instead of the built-in model")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """Medians of the imports; one cold and `--rounds` warm first images."""
    figures: dict = {"clock": a.clock}
    figures["import_seconds"] = {
        name: statistics.median(timed([sys.executable, "-c", code], a.clock)[0] for _ in range(a.rounds))
        for name, code in IMPORTS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", DRAW, "generate", "a red circle", "--out", f"{folder}/a.png", "--profile"]
        command += ["--checkpoint", a.checkpoint] if a.checkpoint else []
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        figures["cold_seconds"], figures["cold_profile"] = timed(command, a.clock, environment)
        warm = sorted(timed(command, a.clock, environment) for _ in range(a.rounds))
        figures["warm_seconds"], figures["warm_profile"] = warm[len(warm) // 2]
    if a.checkpoint:
        start = time.perf_counter()
        size = sum(len(file.read_bytes()) for file in pathlib.Path(a.checkpoint).rglob("*") if file.is_file())
        figures["read_files"] = {"bytes": size, "seconds": time.perf_counter() - start}
    return figures


def timed(command: list[str], clock: str, environment: dict | None = None) -> tuple[float, dict]:
    """Seconds of a process, and the parts it printed on stderr as "name  1.234 s"."""

    def processor() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    now = processor if clock == "cpu" else time.perf_counter
    start = now()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds = now() - start
    lines = [line.rsplit(maxsplit=2) for line in done.stderr.splitlines() if line.endswith(" s")]
    return seconds, {name: float(value) for name, value, _ in lines}


if __name__ == "__main__":
    main()
