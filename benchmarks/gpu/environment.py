"""Part "environment": versions, devices, which modules import, and the card's own ceilings."""

import importlib
import importlib.metadata
import os
import platform
import subprocess

from benchmarks.gpu.record import Record, run_part

# Distributions that the parts need; then those of which only the version is of interest.
NEEDED = "jax jaxlib flax orbax-checkpoint optax numpy ml_dtypes einops tokenizers safetensors msgpack pillow click tqdm"
OTHERS = "ml_collections jax-cuda13-plugin jax-cuda12-plugin grain tensorflow-datasets torch triton transformers diffusers"
MODULES = {
    "generation": "nextstep_jax.generation.pipeline",
    "command line": "nextstep_jax.cli",
    "parity": "nextstep_jax.conversion.parity",
    "objective": "nextstep_jax.training.multitask",
    "optimizer": "nextstep_jax.training.optimizer",
    "training step": "nextstep_jax.training.step",
    "packing": "nextstep_jax.data.packing",
}


def measure(record: Record, _) -> None:
    versions = {name: version(name) for name in f"{NEEDED} {OTHERS}".split()}
    record.put("python", platform.python_version())
    record.put("packages", {name: found for name, found in versions.items() if found})
    record.put("missing", [name for name in NEEDED.split() if not versions[name]])
    record.put("cpu", {"model": cpu_model(), "cores": len(os.sched_getaffinity(0))})
    record.attempt("driver", driver)
    for name, module in MODULES.items():
        record.attempt(f"import/{name}", lambda module=module: importlib.import_module(module).__name__)
    record.attempt("devices", devices)
    record.attempt("ceilings", ceilings, needs=5)


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def driver() -> str | None:
    """What nvidia-smi says of the card as it is found; None where there is none."""
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    try:
        found = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip()


def devices() -> dict:
    import jax

    first = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "kinds": [device.device_kind for device in jax.devices()],
        "memory_bytes": (first.memory_stats() or {}).get("bytes_limit"),
        "cache_empty": not os.listdir(folder) if os.path.isdir(folder := jax.config.jax_compilation_cache_dir or "") else True,
    }


def ceilings() -> dict:
    """Bytes per second of a copy, and FLOP/s of large matrix products, on random numbers."""
    from benchmarks import measure

    return {
        "copy_bytes_a_second": measure.copy_bandwidth(),
        "matmul_flops_a_second": {dtype: measure.matmul_peak(dtype) for dtype in ("bfloat16", "float32")},
    }


if __name__ == "__main__":
    run_part(measure)
