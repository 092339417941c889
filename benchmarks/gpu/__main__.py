"""Measure one accelerator in one command: parity, generation, the PyTorch release beside it, training, image tokenizer, traces.

    benchmarks/gpu.sh --out results                          # an H100 or H200: under eight minutes
    benchmarks/gpu.sh --preset-scale tiny --out results      # the same programs with tiny models, on any machine

Every part is a process of its own, so that no part's compiler flags, memory or failure reach another. A part writes each figure
as soon as it has it and is stopped at its deadline; what it had measured by then is kept. All figures go to one file in `--out`
that is named after the card and is rewritten after every part:

    card, scale, started, seconds   which device, "full" or "tiny", when, and how long the run took
    times_faster                    seconds of a token of each PyTorch loop over ours, in the same setting in bfloat16
    parts.NAME.status               "ok"; "failed": something in it raised, the rest ran on; "out of time": stopped; "skipped"
    parts.NAME.seconds, .flags      wall-clock seconds; the XLA_FLAGS that the process was given
    parts.NAME.figures              what was measured; {"error": traceback} or {"skipped": why} in place of a figure
    parts.NAME.error                the end of the process's output, where the status is not "ok"

Parts run in the order of PARTS, which is by worth. Compiled programs and tuning results are kept in a folder that the parts
share (`--cache`), so a second run on the same machine compiles little; `compile_seconds` then means reading the cache. With
`--resume` it runs only the parts that are not ok yet in the file that is there.

Exit codes: 0 every part is ok, 1 some part is not, 2 an option that cannot be used.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
TAIL = 4000  # characters of a failed part's output that are kept


class Part(NamedTuple):
    """A part of the run.

    Attributes:
      module, options: it runs `python -m benchmarks.gpu.MODULE` with these options.
      seconds: that it may take at most.
      training: with the compiler flags that the launchers train with. Decoding has none: it needs Triton's products, which
        those turn off.
      release: only with `--peer`.
    """

    module: str
    options: tuple[str, ...]
    seconds: float
    training: bool = False
    release: bool = False


PARTS = {
    "environment": Part("environment", (), 30),
    "parity": Part("parity", (), 80),
    "builtin": Part("builtin", (), 45),
    "loops": Part("loops", (), 70),
    "generate_bfloat16": Part("decoding", ("--dtype", "bfloat16"), 130),
    "torch": Part("torch_loop", (), 75),
    "generate_int8": Part("decoding", ("--dtype", "int8"), 100),
    "train_1.5b": Part("training", ("--model", "1.5b"), 80, training=True),
    "image_tokenizer": Part("tokenizer", (), 45),
    "attention": Part("attention", (), 45, training=True),
    "train_3b": Part("training", ("--model", "3b"), 80, training=True),
    "release_compiled": Part("torch_loop", ("--compiled",), 120, release=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results", help="folder for the figures (default: benchmarks/results)")
    parser.add_argument("--preset-scale", default="full", choices=["full", "tiny"], help="tiny: tiny models, for a trial run")
    parser.add_argument("--parts", help=f"only these, separated by commas, of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=470, help="the whole run's limit; parts beyond it are skipped")
    parser.add_argument("--resume", action="store_true", help="only the parts that are not ok in the file in --out")
    parser.add_argument("--peer", help="checkout of the PyTorch release: its own loop is timed beside the reference loop")
    parser.add_argument("--peer-packages", help="folder of Python packages for the release's process alone")
    parser.add_argument("--cache", default=f"{tempfile.gettempdir()}/nextstep_jax_gpu_cache", help="of compiled programs")
    a = parser.parse_args()
    names = a.parts.split(",") if a.parts else [name for name, part in PARTS.items() if a.peer or not part.release]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts must be among {', '.join(PARTS)}, found {', '.join(unknown)}")
    if not a.peer and any(PARTS[name].release for name in names):
        parser.error("a part of the release needs --peer")
    sys.exit(0 if run(a, names) else 1)


def run(a: argparse.Namespace, names: list[str]) -> bool:
    """Run the parts one after another and keep the results up to date on disk; whether all of them are ok."""
    began = time.monotonic()
    out = pathlib.Path(a.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "card": card_name(),
        "scale": a.preset_scale,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "parts": {},
    }
    file = out / f"{re.sub(r'[^a-z0-9]+', '-', result['card'].lower()).strip('-')}{'-tiny' * (a.preset_scale == 'tiny')}.json"
    if a.resume and file.exists():
        result["parts"] = json.loads(file.read_text())["parts"]
    for name in names:
        if result["parts"].get(name, {}).get("status") == "ok":
            continue
        left = a.seconds - (time.monotonic() - began)
        result["parts"][name] = run_part(PARTS[name], a, left, quickest_loop(result["parts"]))
        result["seconds"], result["times_faster"] = time.monotonic() - began, times_faster(result["parts"])
        write(file, result)
        print(f"{result['seconds']:6.1f} s  {name}: {result['parts'][name]['status']}", flush=True)
    print(f"wrote {file}", flush=True)
    return all(part["status"] == "ok" for part in result["parts"].values())


def times_faster(parts: dict) -> dict[str, float]:
    """Of our token loop over every PyTorch loop that was measured in the same run."""
    figures = parts.get("torch", {}).get("figures", {}) | parts.get("release_compiled", {}).get("figures", {})
    setting = figures.get("setting", {})
    ours = (
        parts.get("generate_bfloat16", {})
        .get("figures", {})
        .get(f"{setting.get('tokens')} tokens, {setting.get('steps')} steps")
    )
    if not ours or "seconds" not in ours:
        return {}
    loops = {name: figure["seconds"] for name, figure in figures.items() if isinstance(figure, dict) and "seconds" in figure}
    return {name: seconds["a_token"] / ours["seconds"]["a_token"] for name, seconds in loops.items()}


def quickest_loop(parts: dict) -> str:
    """The variant of benchmarks/gpu/loops.py with the quickest token, so far as it was measured."""
    found = parts.get("loops", {}).get("figures", {})
    seconds = {name: figure["token_seconds"] for name, figure in found.items() if "token_seconds" in figure}
    return min(seconds, key=seconds.get, default="default")


def run_part(part: Part, a: argparse.Namespace, left: float, variant: str) -> dict:
    """A part's entry of the result."""
    seconds = min(part.seconds, left)
    if seconds < min(20, part.seconds):
        return {"status": "skipped", "seconds": 0.0, "figures": {}, "error": f"{max(left, 0):.0f} s left of the whole run"}
    flags = training_flags() if part.training and card_name() != "cpu" else ""
    with tempfile.TemporaryDirectory() as folder:
        figures, log = pathlib.Path(folder) / "figures.json", pathlib.Path(folder) / "log"
        command = [sys.executable, "-m", f"benchmarks.gpu.{part.module}", "--json", str(figures)]
        command += ["--seconds", f"{seconds:.1f}", "--scale", a.preset_scale, *part.options]
        command += ["--variant", variant] if part.module == "decoding" else []
        if part.module == "torch_loop":
            command += [f"--{name}={value}" for name, value in [("peer", a.peer), ("peer-packages", a.peer_packages)] if value]
        began = time.monotonic()
        with open(log, "wb") as output:
            code = wait(command, environment(flags, a.cache), output, seconds)
        text = log.read_text(errors="replace")
        print(text, end="", flush=True)
        return {
            "status": {0: "ok", None: "out of time"}.get(code, "failed"),
            "seconds": time.monotonic() - began,
            "flags": flags,
            "figures": json.loads(figures.read_text()) if figures.exists() else {},
            **({} if code == 0 else {"error": text[-TAIL:]}),
        }


def wait(command: list[str], environment: dict, output, seconds: float) -> int | None:
    """The exit code of a command; None if it had to be stopped, with whatever it had started."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(flags: str, cache: str) -> dict[str, str]:
    """A part's environment: its own compiler flags and none of the caller's, most of the card's memory, a shared cache."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "XLA_FLAGS": flags,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


def training_flags() -> str:
    """The XLA_FLAGS that the launchers train with on these cards."""
    from launch.xla_flags import environment

    return environment("hopper")["XLA_FLAGS"]


@functools.cache
def card_name() -> str:
    """What the driver calls the first GPU; "cpu" without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        found = []
    return found[0].strip() if found else "cpu"


def write(file: pathlib.Path, result: dict) -> None:
    """Replace the file in one step: whoever reads it, or stops this program, finds a whole one."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
