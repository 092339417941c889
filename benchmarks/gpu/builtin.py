"""Part "builtin": images of the model inside the package, end to end, and how far they are from those of the CPU.

Seconds count everything from the prompt to the pixels: cold with compiling, warm without. `pixel_difference` is the mean
difference of all pixels, of 255, from the CPU's images; in the default precision a GPU multiplies float32 matrices as TF32.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.gpu.record import Record, run_part

PROMPTS = ["a red circle left of a blue square", "a green triangle above a yellow circle"]
SEED = 1


def measure(record: Record, a) -> None:
    import jax

    images: dict[str, np.ndarray] = {}

    def draw(name: str) -> dict:
        figures, images[name] = drawn()
        return figures

    if a.save:
        record.attempt("cpu", lambda: draw("cpu"))
        np.save(a.save, images["cpu"])
        return
    record.attempt("default precision", lambda: draw("default precision"))
    if jax.default_backend() == "cpu":
        return
    with jax.default_matmul_precision("highest"):
        record.attempt("highest precision", lambda: draw("highest precision"), needs=10)
    reference = record.attempt("cpu", lambda: on_cpu(images), needs=10)
    for name in ("default precision", "highest precision"):
        if reference and name in images:
            record.put(f"pixel_difference/{name}", float(np.abs(images[name] - images["cpu"]).mean()))


def drawn() -> tuple[dict, np.ndarray]:
    """Seconds of PROMPTS' first and second images, and the images as floats. AssertionError where one shows nothing."""
    from nextstep_jax.generation.pipeline import Pipeline

    began = time.perf_counter()
    pipeline = Pipeline.from_checkpoint()
    load = time.perf_counter() - began
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        images = [pipeline.generate(prompt, seed=SEED)[0].pixels for prompt in PROMPTS]
        seconds.append((time.perf_counter() - began) / len(PROMPTS))
    if blank := [prompt for prompt, pixels in zip(PROMPTS, images, strict=True) if pixels.std() < 1]:
        raise AssertionError(f"blank images of {blank}")
    return {"load_seconds": load, "cold_seconds": seconds[0], "warm_seconds": seconds[1]}, np.stack(images).astype(float)


def on_cpu(images: dict) -> dict:
    """The figures of another process, which sees the CPU alone; its images go into `images`."""
    with tempfile.TemporaryDirectory() as folder:
        saved, figures = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.gpu.builtin", "--json", str(figures), "--save", str(saved)]
        subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
        images["cpu"] = np.load(saved)
        return json.loads(figures.read_text())["cpu"]


if __name__ == "__main__":
    run_part(measure, save=dict(help="draw on the CPU and keep the images in this file"))
