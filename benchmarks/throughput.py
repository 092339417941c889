"""Images a second, and memory, when several are drawn side by side as a server does.

    python -m benchmarks.throughput --model builtin --threads 2 --json builtin.json
    python -m benchmarks.throughput --model mid --threads 2 --chunk 4 --batches 1 4 16 64

`--model` is `builtin`, whose images are decoded to pixels as well, or a preset with random weights. All images of a batch begin
together: prompts of `--prompt` positions, guidance, then all tokens. The batches take turns in one process.

  seconds           prefill, one token of all images, pixels
  images_a_second   the batch over prefill, tokens and pixels together
  times             images a second over those of the first batch size
  memory            the compiler's account of the token loop: what it is given (weights, cache, noise) and works with
"""

import argparse
from collections.abc import Callable

from benchmarks import measure
from benchmarks.generate import compile_programs, decoding_config, random_params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help="builtin, tiny, mid, 0.5b, 1.5b, 3b, 7b or 14b")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"], help="of a preset")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64], help="images at once")
    parser.add_argument("--tokens", type=int, default=256, help="of a preset's image")
    parser.add_argument("--prompt", type=int, default=64, help="positions of the prompt")
    parser.add_argument("--sampler", default="ode")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=16, help="tokens a timed run samples")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """The figures of each batch size."""
    import jax

    from nextstep_jax.generation.token_loop import SamplerConfig

    settings = SamplerConfig(branches=2, sampler=a.sampler, steps=a.steps, normalize_tokens=True)
    if a.model == "builtin":
        config, params, tokens, decode = builtin()
    else:
        config, tokens, decode = decoding_config(a.model, a.dtype), a.tokens, None
        params = random_params(config, a.dtype)
    chunk, runs, memory = min(a.chunk, tokens), {}, {}
    for batch in a.batches:
        programs = compile_programs(config, settings, params, batch, tokens, a.prompt, 3.0, chunk, ("a_token", "prefill"))
        memory[batch] = measure.compiled_memory(programs.loop)
        runs |= {(batch, part): one for part, one in programs.runs.items()}
        if decode:
            runs[batch, "pixels"] = decode(batch)
    found = measure.alternate(runs, a.rounds)
    rows = {}
    for batch in a.batches:
        seconds = {part: value for (size, part), value in found.items() if size == batch}
        seconds["a_token"] /= chunk
        image = seconds["prefill"] + tokens * seconds["a_token"] + seconds.get("pixels", 0.0)
        rows[batch] = {"seconds": seconds, "images_a_second": batch / image, "memory": memory[batch]}
    first = rows[a.batches[0]]["images_a_second"]
    rows = {batch: row | {"times": row["images_a_second"] / first} for batch, row in rows.items()}
    setting = {name: value for name, value in vars(a).items() if name != "json"} | {"tokens": tokens}
    return {"setting": setting, "device": jax.devices()[0].device_kind, "batches": rows, "peak_bytes": measure.peak_memory()}


def builtin() -> tuple:
    """The built-in model: config, parameters, tokens of an image, and what makes a function that decodes images to pixels."""
    import jax

    from nextstep_jax.generation.pipeline import Pipeline

    pipeline = Pipeline.from_checkpoint()
    h, w = pipeline.grid(pipeline.settings())

    def decode(batch: int) -> Callable:
        tokens = jax.random.normal(jax.random.key(0), (batch, h * w, pipeline.config.token_channels))
        return lambda: pipeline.decode_batch(tokens, h, w) and None

    return pipeline.config, pipeline.params, h * w, decode


if __name__ == "__main__":
    main()
