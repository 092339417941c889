"""Parts "generate_bfloat16" and "generate_int8": what a token of the 14B model costs, with random weights made on the device.

Figures are those of benchmarks/generate.py; the first setting is measured again under the variant that was the quickest in
benchmarks/gpu/loops.py. `written_in_loop`: arrays of a megabyte and more that a token writes besides its cache; int8 kernels
widened in memory would show here. `peak_bytes` is the most that the process has held so far.
"""

import os

from benchmarks import measure as timing
from benchmarks.gpu.record import Record, run_part

FULL = {"preset": "14b", "prompt": 64, "tokens": 256, "more_tokens": 1024, "chunk": 16, "steps": 8, "more_steps": 28}
TINY = {"preset": "tiny", "prompt": 8, "tokens": 16, "more_tokens": 32, "chunk": 4, "steps": 2, "more_steps": 3}
CFG = 7.5
ROUNDS = 3
BATCHES = (4, 16)


def measure(record: Record, a) -> None:
    from benchmarks import generate
    from benchmarks.gpu.loops import VARIANTS, require_decoding_flags
    from benchmarks.gpu.trace import largest_entries

    require_decoding_flags(os.environ)
    size = TINY if record.tiny else FULL
    config = generate.decoding_config(size["preset"], a.dtype)
    params = generate.random_params(config, a.dtype)
    programs = {}

    def setting(name, parts, variant="default", tokens=size["tokens"], sampler="ab2", steps=size["steps"], batch=1):
        settings = sampler_config(sampler, steps)
        found = generate.compile_programs(
            config, settings, params, batch, tokens, size["prompt"], CFG, size["chunk"], parts, **VARIANTS[variant]
        )
        programs[name] = found
        seconds = generate.per_token(timing.alternate(found.runs, ROUNDS), size["chunk"])
        return {"variant": variant} | generate.figures_of(config, settings, params, found, seconds, batch, tokens)

    tokens, steps = size["tokens"], size["steps"]
    main = f"{tokens} tokens, ab2 {steps} steps"
    record.attempt(main, lambda: setting(main, generate.PARTS), needs=20)
    if main in programs:
        record.attempt("written_in_loop", lambda: written(programs[main].loop), needs=1)
    name = f"{tokens} tokens, {size['more_steps']} steps"
    slow = dict(sampler="august2025", steps=size["more_steps"])
    record.attempt(name, lambda: setting(name, ("a_token", "flow_head"), **slow), needs=15)
    longer = f"{size['more_tokens']} tokens, ab2 {steps} steps"
    record.attempt(longer, lambda: setting(longer, ("a_token", "prefill"), tokens=size["more_tokens"]), needs=15)
    for batch in BATCHES:
        name = f"batch {batch}"
        record.attempt(name, lambda name=name, batch=batch: setting(name, ("a_token", "prefill"), batch=batch), needs=35)
    # Last, because they may end the process: options that have crashed in some release, and the profiler.
    if a.variant != "default":
        other = f"{main}, {a.variant}"
        record.attempt(other, lambda: setting(other, ("a_token",), a.variant), needs=15)
    if main in programs:
        record.attempt("trace", lambda: largest_entries(programs[main].runs["a_token"]), needs=5)


def sampler_config(sampler: str, steps: int):
    from nextstep_jax.generation.token_loop import SamplerConfig

    return SamplerConfig(branches=2, sampler=sampler, steps=steps, normalize_tokens=True)


def written(loop) -> list[dict]:
    """The largest arrays that the token loop writes."""
    from benchmarks.gpu.hlo import written_in_loops

    return written_in_loops(loop.as_text(), at_least=2**20)[:10]


if __name__ == "__main__":
    run_part(measure, dtype=dict(default="bfloat16"), variant=dict(default="default"))
