"""Export a step of a run as a checkpoint folder to generate from, also while the run goes on.

    python -m launch.export --workdir RUN --out FOLDER [--step N] [--dtype bfloat16]

The newest complete step unless told otherwise; the averaged parameters where there are such. Everything is read from the
run's folder, leaf by leaf and verified, so that memory follows the largest leaf and the run notices nothing. Exit codes: 0
done, 2 bad input, 3 damaged data.
"""

import argparse
import os
import sys

from nextstep_jax import storage
from nextstep_jax.checkpoints import steps
from nextstep_jax.checkpoints.digests import check_dtype
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.training.config import resolve
from nextstep_jax.training.loop import make_stage
from nextstep_jax.training.stage import export_run


def main(argv: list[str]) -> int:
    """Parse the command line, export, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--step", type=int)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args(argv)
    try:
        check_dtype(options.dtype)
        print(f"step {export(options.workdir, options.out, options.step, options.dtype)} -> {options.out}")
    except NextStepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def export(workdir: str | os.PathLike, out: str | os.PathLike, step: int | None = None, dtype: str = "float32") -> int:
    """Export a step, the newest for None. Returns which. Raises as `export_params`."""
    folder = storage.at(workdir) / "checkpoints"
    complete = steps.list_steps(folder)
    if step is None and not complete:
        raise InputError(f"{workdir}: expected a run's folder with a complete step in checkpoints/, found none")
    step = complete[-1] if step is None else step
    if step not in complete:
        raise InputError(f"{workdir}: step {step} is not there, only {', '.join(map(str, complete))}")
    try:
        run = resolve(steps.read_step(folder / str(step))[0]["config"])
    except InputError as error:
        raise InputError(f"{workdir}, step {step}: {error}") from error
    return export_run(make_stage(run), workdir, out, step, dtype)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
