"""What products of a few rows with a kernel reach on this CPU: XLA's, NumPy's and PyTorch's, beside the machine.

    OMP_NUM_THREADS=1 python -m benchmarks.products --threads 1 --rows 1 2 4 8 16 40
    OMP_NUM_THREADS=1 python -m benchmarks.products --threads 1 --inputs 512 --outputs 512 --kernels 24  # stay in the cache

x [R, inputs] is multiplied by `--kernels` different kernels [inputs, outputs] one after another, as layers do; by default more
of them than caches hold. All programs take turns in one process, and each figure is for one product:

  einsum     XLA's product, which the library uses
  by_row     each row by itself, for up to sixteen
  numpy      its BLAS
  torch      `torch.nn.functional.linear`, if it is installed, with the weight as PyTorch lays it out
  read       the sum of each kernel's numbers: what reading it costs

`first_row` is the largest difference, of numbers around 20, of the first row's result by `einsum` from the same row's among
two. `bytes_a_second` counts the kernel once, `flops` two operations a number and row; `peak_flops` is that of a large product.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable

from benchmarks import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 40])
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--kernels", type=int, default=40)
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """Seconds, bytes and operations a second of each program and number of rows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(0)
    kernels = [random.normal(size=(a.inputs, a.outputs)).astype(np.float32) for _ in range(a.kernels)]
    on_device = [jnp.asarray(kernel) for kernel in kernels]
    sums = jax.jit(lambda kernels: [kernel.sum() for kernel in kernels])
    runs: dict[tuple[int, str], Callable] = {(0, "read"): lambda: sums(on_device)}
    every = random.normal(size=(max(2, *a.rows), a.inputs)).astype(np.float32)
    for rows in a.rows:
        x = every[:rows]
        runs |= {(rows, name): one for name, one in programs(x, kernels, on_device).items()}
    found, size = measure.alternate(runs, a.rounds), a.inputs * a.outputs
    figures: dict[str, dict] = {}
    for (rows, name), seconds in found.items():
        one = seconds / a.kernels
        figures.setdefault(str(rows), {})[name] = {
            "microseconds": 1e6 * one,
            "bytes_a_second": 4 * size / one,
            "flops": 2 * rows * size / one,
        }
    among_two = np.asarray(programs(every[:2], kernels, on_device)["einsum"]()[0])[0]
    for rows in a.rows:
        first = np.asarray(runs[rows, "einsum"]()[0])[0]
        figures[str(rows)]["first_row"] = float(np.abs(first - among_two).max())
    setting = {name: value for name, value in vars(a).items() if name != "json"}
    return {"setting": setting, "kernel_bytes": 4 * size * a.kernels, "peak_flops": measure.matmul_peak(), "rows": figures}


def programs(x, kernels: list, on_device: list) -> dict[str, Callable]:
    """Functions that multiply x by every kernel."""
    import jax
    import jax.numpy as jnp

    given = jnp.asarray(x)
    einsum = jax.jit(lambda x, kernels: [jnp.einsum("RI,IO->RO", x, kernel) for kernel in kernels])

    def numpy() -> None:
        for kernel in kernels:
            x @ kernel

    found = {"einsum": lambda: einsum(given, on_device), "numpy": numpy}
    if len(x) <= 16:
        by_row = jax.jit(lambda x, kernels: [jnp.stack([row @ kernel for row in x]) for kernel in kernels])
        found["by_row"] = lambda: by_row(given, on_device)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        laid_out, row = [torch.from_numpy(kernel.T.copy()) for kernel in kernels], torch.from_numpy(x)

        def of_torch() -> None:
            with torch.no_grad():
                for weight in laid_out:
                    torch.nn.functional.linear(row, weight)

        found["torch"] = of_torch
    return found


if __name__ == "__main__":
    main()
