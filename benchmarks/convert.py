"""How much memory and time converting and exporting take: a synthetic sharded checkpoint, each step in a process of its own.

    python benchmarks/convert.py                      # 8 GB in 4 shards, tensors of up to 300 MB
    python benchmarks/convert.py --gigabytes 1 --json

Prints the peak resident memory above a bare Python interpreter's and the speed. Needs twice the checkpoint's size on disk,
in a temporary folder that is removed at the end.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from nextstep_jax.config import FlowHeadConfig, NextStepConfig, TransformerConfig
from nextstep_jax.conversion import names

SHARDS = 4
ROOT = pathlib.Path(__file__).parents[1]

# VmHWM and not getrusage: on Linux the latter starts from the memory of the process that started this one.
STEP = """
import json, pathlib, re, resource, sys, time
start = time.perf_counter()
if sys.argv[1] == "convert":
    from nextstep_jax.conversion import convert
    convert(sys.argv[2], sys.argv[3])
elif sys.argv[1] == "export":
    from nextstep_jax.conversion import export
    export(sys.argv[2], sys.argv[3])
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak": peak, "seconds": time.perf_counter() - start}))
"""

FIELDS = {"vocab_size": 36_600, "width": 2048, "heads": 16, "kv_heads": 4, "mlp_width": 8192}
IDS = {"bos_id": 36_499, "eos_id": 36_499, "pad_id": 36_500}
IDS |= {"begin_of_image_id": 36_502, "end_of_image_id": 36_503, "image_placeholder_id": 36_504}


def synthetic_config(gigabytes: float) -> NextStepConfig:
    """A float32 model of about that size: two tables of 300 MB, the rest in layers of 243 MB."""

    def config(layers: int) -> NextStepConfig:
        return NextStepConfig(TransformerConfig(**FIELDS, layers=layers), FlowHeadConfig(1024, 6), **IDS)

    one, two = (sum(4 * math.prod(entry.shape) for entry in names.model_entries(config(n))) for n in (1, 2))
    return config(max(1, 1 + round((gigabytes * 1e9 - one) / (two - one))))


def write_checkpoint(folder: pathlib.Path, config: NextStepConfig) -> tuple[int, int]:
    """A released folder in `SHARDS` files, written tensor by tensor; returns its bytes and those of its largest tensor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_released()))
    entries = names.model_entries(config)
    sizes = {entry.source: 4 * math.prod(entry.source_shape) for entry in entries}
    total, written, weight_map = sum(sizes.values()), 0, {}
    shards = [[] for _ in range(SHARDS)]
    for entry in entries:
        shards[min(SHARDS - 1, written * SHARDS // total)].append(entry)
        written += sizes[entry.source]
    block = np.random.default_rng(0).standard_normal(1 << 24, np.float32).tobytes()
    for number, shard in enumerate(shards, start=1):
        header, end = {}, 0
        for entry in shard:
            start, end = end, end + sizes[entry.source]
            header[entry.source] = {"dtype": "F32", "shape": entry.source_shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        weight_map |= dict.fromkeys(header, file)
        with open(folder / file, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            while end > 0:
                end -= stream.write(block[: min(end, len(block))])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total, max(sizes.values())


def measure(step: str, *places: pathlib.Path) -> dict[str, float]:
    """{"peak": bytes, "seconds": wall time} of one step in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STEP, step, *map(str, places)]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the checkpoint")
    parser.add_argument("--folder", type=pathlib.Path, help="where the temporary folder goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work = pathlib.Path(name)
        start = time.perf_counter()
        total, largest = write_checkpoint(work / "released", synthetic_config(arguments.gigabytes))
        written = time.perf_counter() - start
        bare = measure("nothing")["peak"]
        results = {"bytes": total, "largest_tensor": largest, "shards": SHARDS, "interpreter_rss": bare}
        for step, src, dst in (("convert", "released", "checkpoint"), ("export", "checkpoint", "exported")):
            if step == "export":
                for file in (work / "released").iterdir():
                    file.unlink()
            figures = measure(step, work / src, work / dst)
            above = figures["peak"] - bare
            results[step] = {"peak_above_interpreter": above, "megabytes_per_second": total / 1e6 / figures["seconds"]}
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{total / 1e9:.2f} GB in {SHARDS} shards, largest tensor {largest / 1e6:.0f} MB, written in {written:.0f} s")
    for step in ("convert", "export"):
        peak, speed = results[step]["peak_above_interpreter"] / 1e9, results[step]["megabytes_per_second"]
        print(f"{step:8} peak {peak:.2f} GB above the interpreter, {speed:.0f} MB/s")


if __name__ == "__main__":
    main()
