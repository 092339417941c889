"""Parts "train_1.5b" and "train_3b": the step of benchmarks/train_step.py on a packed row of 16,384 positions.

If the step with the platform's attention kernel fails, the same model is tried with XLA's attention on shorter rows.
"""

from benchmarks import measure as timing
from benchmarks.gpu.record import Record, run_part

REMAT = {"1.5b": "projections", "3b": "full"}  # what the backward pass keeps, see config.REMAT_POLICIES
LENGTH, SHORT = 16384, 4096
ROUNDS = 5


def measure(record: Record, a) -> None:
    import jax

    from benchmarks.gpu.trace import largest_entries
    from benchmarks.train_step import Training
    from nextstep_jax.config import preset

    name, lengths = ("tiny", (600, 300)) if record.tiny else (a.model, (LENGTH, SHORT))
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config = preset(name).with_transformer(dtype=dtype, remat=REMAT[a.model], scan_layers=True)

    def step(config, length):
        training = Training(config, 1, length)
        seconds = timing.alternate({"step": training.run_step}, ROUNDS)["step"]
        finite = bool(training.run_step().finite)
        record.put(f"{name}, {length} positions", {"seconds": seconds, "finite": finite, **training.figures(seconds)})
        if record.left > 8:
            record.attempt("trace", lambda: largest_entries(training.run_step))
        return record.figures[f"{name}, {length} positions"]

    if not record.attempt(f"{name}, {lengths[0]} positions", lambda: step(config, lengths[0])):
        plain = config.with_transformer(attention_kernel="xla")
        record.attempt(f"{name}, {lengths[1]} positions", lambda: step(plain, lengths[1]), needs=15)


if __name__ == "__main__":
    run_part(measure, model=dict(required=True, choices=sorted(REMAT)))
