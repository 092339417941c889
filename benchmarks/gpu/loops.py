"""Part "loops": the token loop under the compiler options that decide how its kernels are launched.

A model of 14B's widths and a quarter of its layers: launches weigh the same, and it compiles quickly. Each variant is compiled
with options of its own in one process. A loop that is launched from the host asks it after every token whether to go on; in a
command buffer that holds the loop (WHILE) the device decides.
"""

import os
from collections.abc import Mapping

from benchmarks import measure as timing
from benchmarks.gpu.record import Record, run_part

_EVERYTHING = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
_WHILE = {"xla_gpu_enable_command_buffer": _EVERYTHING, "xla_gpu_graph_min_graph_size": 1}
# Keyword arguments of benchmarks.generate.compile_programs. Those that have crashed in some release come last.
VARIANTS: dict[str, dict] = {
    "default": {},
    "static chunk": dict(static_chunk=True),
    "no merged products": dict(compiler_options={"xla_gpu_dot_merger_threshold_mb": 0}),
    "no command buffers": dict(compiler_options={"xla_gpu_enable_command_buffer": ""}),
    "while in a command buffer": dict(compiler_options=_WHILE),
    "static chunk, while in a command buffer": dict(compiler_options=_WHILE, static_chunk=True),
    "static chunk, unrolled command buffer": dict(
        compiler_options=_WHILE | {"xla_gpu_command_buffer_unroll_loops": True}, static_chunk=True
    ),
}
ROUNDS = 5


def measure(record: Record, _) -> None:
    from benchmarks import generate
    from benchmarks.gpu.decoding import CFG, FULL, TINY, sampler_config

    require_decoding_flags(os.environ)
    size = TINY if record.tiny else FULL
    config = generate.decoding_config(size["preset"], "bfloat16", layers=3 if record.tiny else 12)
    params = generate.random_params(config, "bfloat16")
    settings = sampler_config("ab2", size["steps"])
    for name, options in VARIANTS.items():

        def run(options=options):
            shape = (1, size["tokens"], size["prompt"], CFG, size["chunk"])
            programs = generate.compile_programs(config, settings, params, *shape, ("a_token",), **options)
            seconds = generate.per_token(timing.alternate(programs.runs, ROUNDS), size["chunk"])
            return {"token_seconds": seconds["a_token"], "compile_seconds": programs.compile_seconds}

        record.attempt(name, run, needs=6)


def require_decoding_flags(environment: Mapping[str, str]) -> None:
    """RuntimeError where a flag of training is set: decoding needs the products that those turn off."""
    from launch.xla_flags import FLAGS

    if set_here := [flag for flag in FLAGS["hopper"] if flag in environment.get("XLA_FLAGS", "")]:
        raise RuntimeError(f"XLA_FLAGS holds flags of training: {', '.join(set_here)}")


if __name__ == "__main__":
    run_part(measure)
