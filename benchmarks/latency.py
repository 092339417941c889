"""The paper's Table 9 on the machine at hand: what the parts of an image token cost, and what images of several sizes take.

    python -m benchmarks.latency --preset mid --threads 2 --json latency.json
    python -m benchmarks.latency --checkpoint DIR --dtype bfloat16 --steps 28     # a converted release, on an accelerator

For each number of image tokens the last token is timed, with the whole cache before it, batch 1:

  decoder    one transformer step over the guidance rows
  LM head    their logits. The loop takes none at image tokens; the paper's sums contain them, so these do as well
  flow head  one integration of `--steps` evaluations

Sums are the number of tokens times a token of the compiled loop, whose cache has its full size from the first token on, so
that all tokens cost the same; `--whole` runs every token instead. "no flow head" leaves the integration out. The floor of each
is the larger of bytes over the bandwidth of a copy and operations over the speed of a matrix product, both measured in the
same run. On CPUs a model may fit the caches: then a part can be quicker than its floor.
"""

import argparse
import math
import platform
import re
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.generate import compile_programs, decode_times, decoding_config, per_token, random_params, traffic

# Per token of batch 1 on an H100, and seconds of 256, 1024 and 4096 tokens.
PAPER = {"decoder": 7.2e-3, "lm_head": 0.40e-3, "flow_head": 3.40e-3}
PAPER_SUMS = {256: (2.82, 1.95), 1024: (11.31, 7.83), 4096: (45.77, 31.86)}


class Work(NamedTuple):
    """What a part has to do for a token: bytes to read, operations."""

    bytes: int
    flops: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", default="mid", help="tiny, mid, 0.5b, 1.5b, 3b, 7b or 14b; random weights")
    model.add_argument("--checkpoint", help="a checkpoint folder instead of a preset")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096], help="image tokens")
    parser.add_argument("--prompt", type=int, default=64, help="positions of the prompt")
    parser.add_argument("--cfg", type=float, default=7.5, help="1 for no guidance, which halves the rows")
    parser.add_argument("--sampler", default="august2025")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=8, help="tokens a timed run samples")
    parser.add_argument("--whole", action="store_true", help="time all tokens of an image, not --chunk of them")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    figures = run(arguments)
    print(table(figures))
    if arguments.json:
        measure.report(figures, arguments.json)


def run(a: argparse.Namespace) -> dict[str, Any]:
    """The figures of all numbers of tokens."""
    import jax

    from nextstep_jax.generation.token_loop import SamplerConfig

    config, params = _model(a)
    settings = SamplerConfig(branches=2 if a.cfg > 1 else 1, sampler=a.sampler, steps=a.steps, normalize_tokens=True)
    dtype = "bfloat16" if a.dtype == "bfloat16" else "float32"
    bandwidth, peak = measure.copy_bandwidth(), measure.matmul_peak(dtype)
    rows = {}
    for tokens in a.tokens:
        chunk = tokens if a.whole else min(a.chunk, tokens)
        parts = ("a_token", "transformer", "flow_head", "lm_head")
        programs = compile_programs(config, settings, params, 1, tokens, a.prompt, a.cfg, chunk, parts)
        found = per_token(measure.alternate(programs.runs, a.rounds), chunk)
        seconds = {"decoder": found["transformer"], "lm_head": found["lm_head"], "flow_head": found["flow_head"]}
        seconds["all"] = tokens * (found["a_token"] + found["lm_head"])
        seconds["no_flow_head"] = tokens * (found["transformer"] + found["lm_head"])
        floors = _floors(_work(config, params, settings, programs.state), bandwidth, peak, tokens)
        rows[tokens] = {"seconds": seconds, "floor_seconds": floors, "loop_seconds": tokens * found["a_token"]}
    return {
        "setting": {name: value for name, value in vars(a).items() if name != "json"},
        "device": jax.devices()[0].device_kind,
        "machine": machine(),
        "bytes_a_second": bandwidth,
        "flops_a_second": peak,
        "tokens": rows,
    }


def _model(a: argparse.Namespace) -> tuple[Any, dict]:
    if a.checkpoint is None:
        config = decoding_config(a.preset, a.dtype)
        return config, random_params(config, a.dtype)
    from nextstep_jax.generation.load import load_model

    loaded = load_model(a.checkpoint, a.dtype)
    return loaded["config"], loaded["params"]


def _work(config, params: dict, settings, state) -> dict[str, Work]:
    """Of each part, from its parameters and the cache; every row multiplies with every weight."""
    import jax

    moved = traffic(config, params, settings, state)
    t, rows, slots = config.transformer, settings.branches, state.valid.shape[-1]

    def weights(*names: str) -> int:
        return sum(leaf.size for name in names if name in params for leaf in jax.tree.leaves(params[name]))

    attention = 4 * t.layers * t.heads * t.head_dim * slots
    head = 2 * weights("flow_head") * len(decode_times(settings))
    return {
        "decoder": Work(moved["transformer"], rows * (2 * weights("decoder") + attention)),
        "lm_head": Work(moved["lm_head"], rows * 2 * t.width * t.vocab_size),
        "flow_head": Work(moved["flow_head"], rows * head),
    }


def _floors(work: dict[str, Work], bandwidth: float, peak: float, tokens: int) -> dict[str, float]:
    floors = {name: max(part.bytes / bandwidth, part.flops / peak) for name, part in work.items()}
    without = floors["decoder"] + floors["lm_head"]
    return floors | {"all": tokens * (without + floors["flow_head"]), "no_flow_head": tokens * without}


def machine() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            found = re.search(r"model name\s*: (.*)", file.read())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def table(figures: dict[str, Any]) -> str:
    """The paper's table: each cell the measured value and, after a slash, its floor."""
    columns = {"decoder": "decoder ms", "lm_head": "LM head ms", "flow_head": "flow head ms", "all": "sum s"}
    columns |= {"no_flow_head": "no flow head s"}
    lines = [["tokens", *columns.values()]]
    for tokens, row in figures["tokens"].items():
        cells = [str(tokens)]
        for name in columns:
            scale = 1 if name in ("all", "no_flow_head") else 1e3
            cells.append(f"{_digits(scale * row['seconds'][name])} / {_digits(scale * row['floor_seconds'][name])}")
        lines.append(cells)
        if int(tokens) in PAPER_SUMS:
            parts = [_digits(1e3 * value) for value in PAPER.values()]
            lines.append(["  paper, H100", *parts, *map(_digits, PAPER_SUMS[int(tokens)])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
    head = f"{figures['device']} ({figures['machine']}), measured / floor"
    speeds = f"{figures['bytes_a_second'] / 1e9:.3g} GB/s, {figures['flops_a_second'] / 1e9:.4g} GFLOP/s"
    return "\n".join([f"{head}: {speeds}", *rows])


def _digits(value: float) -> str:
    """Three figures."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


if __name__ == "__main__":
    main()
