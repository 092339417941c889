"""What the benchmarks share: alternating medians, the machine's own bandwidth and matrix speed, peak memory, output."""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def options(parser: argparse.ArgumentParser) -> None:
    """The options that every timing program has."""
    parser.add_argument("--threads", type=int, help="cores to use")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: this process's processor time, on a busy machine")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; figures are medians")
    parser.add_argument("--json", help="write the figures to this file")


def prepare(arguments: argparse.Namespace) -> None:
    """Pin this process to `--threads` of the cores it may use and choose the clock; before jax makes its threads."""
    global clock
    clock = CLOCKS[arguments.clock]
    if arguments.threads is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0), reverse=True)[: arguments.threads])


def now() -> float:
    """Seconds on the chosen clock."""
    return clock()


def seconds(run: Callable) -> float:
    """Time of one call, waiting for what it computes; a call that returns a number has timed itself."""
    start = now()
    result = run()
    if isinstance(result, float):
        return result
    jax.block_until_ready(result)
    return now() - start


def alternate(runs: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of each callable; they take turns, so that what else the machine does meets all of them alike."""
    for run in runs.values():
        seconds(run)
    found = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in found.items()}


def copy_bandwidth(size: int | None = None) -> float:
    """Bytes per second, read plus written, of a plain addition over a large array. Default: 64 MB on CPUs, 4 GB elsewhere."""
    size = size or (2**26 if jax.default_backend() == "cpu" else 2**32)
    x = jnp.zeros(size // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * size / alternate({"add": lambda: add(x)}, 9)["add"]


def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of a large square matrix product, the best of nine: the ceiling that this machine really has."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # processors run quicker on constants
    dot = jax.jit(lambda x: x @ x)
    jax.block_until_ready(dot(x))
    return 2 * size**3 / min(seconds(lambda: dot(x)) for _ in range(9))


def peak_memory() -> int:
    """The most bytes held so far: by the device where it counts them, else by this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compiled_memory(compiled) -> dict[str, int]:
    """The compiler's account of a program's bytes: arguments, temporaries, and the peak as their sum with new outputs."""
    m = compiled.memory_analysis()
    if m is None:  # of a program that was read from a cache, some backends know nothing
        return {}
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    return {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "peak": m.argument_size_in_bytes + m.temp_size_in_bytes + outputs,
    }


def report(figures: dict, json_file: str | None) -> None:
    """Print the figures, and write them to a file if one is named."""
    text = json.dumps(figures, indent=1)
    print(text, flush=True)
    if json_file:
        pathlib.Path(json_file).write_text(text + "\n")
