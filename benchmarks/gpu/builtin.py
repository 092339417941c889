"""Part "builtin": images of the model inside the package, end to end, and how far they are from those of the CPU.

Seconds count everything from the prompt to the pixels: cold with compiling, warm without. `pixel_difference` is the mean
difference of all pixels, of 255, from the CPU's images; in the default precision a GPU multiplies float32 matrices as TF32.
"""

import time

from benchmarks.gpu.record import Record, run_part

PROMPTS = ["a red circle left of a blue square", "a green triangle above a yellow circle"]
SEED = 1


def measure(record: Record, _) -> None:
    import jax

    found = record.attempt("default precision", draw)
    if jax.default_backend() == "cpu":
        return
    with jax.default_matmul_precision("highest"):
        exact = record.attempt("highest precision", draw, needs=10)
    with jax.default_device(jax.devices("cpu")[0]):
        reference = record.attempt("cpu", draw, needs=10)
    for name, figures in (("default precision", found), ("highest precision", exact)):
        if figures and reference:
            record.attempt(f"pixel_difference/{name}", lambda name=name: difference(_pixels[name], _pixels["cpu"]))


_pixels: dict[str, list] = {}


def draw() -> dict:
    """Seconds of PROMPTS' first and second images. AssertionError where one shows nothing."""
    import jax

    from nextstep_jax.generation.pipeline import Pipeline

    began = time.perf_counter()
    pipeline = Pipeline.from_checkpoint()
    load = time.perf_counter() - began
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        images = [pipeline.generate(prompt, seed=SEED)[0] for prompt in PROMPTS]
        seconds.append((time.perf_counter() - began) / len(PROMPTS))
    device = jax.config.jax_default_device
    precision = jax.config.jax_default_matmul_precision
    _pixels["cpu" if device else f"{precision or 'default'} precision"] = [image.pixels for image in images]
    if blank := [prompt for prompt, image in zip(PROMPTS, images, strict=True) if image.pixels.std() < 1]:
        raise AssertionError(f"blank images of {blank}")
    return {"load_seconds": load, "cold_seconds": seconds[0], "warm_seconds": seconds[1]}


def difference(images: list, others: list) -> float:
    import numpy as np

    return float(np.mean([np.abs(a.astype(float) - b.astype(float)).mean() for a, b in zip(images, others, strict=True)]))


if __name__ == "__main__":
    run_part(measure)
