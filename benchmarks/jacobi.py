"""Jacobi decoding: tokens accepted a sweep, what that changes, and what a sweep costs.

    python -m benchmarks.jacobi --json jacobi.json [--checkpoint DIR] [--sizes 64x64 64x128] [--threads 1] [--clock cpu]

`acceptance` draws PROMPTS with a checkpoint at each size, alone, with every window, tolerance and first guess, from the same
noise as sequential decoding: tokens a sweep, and the root-mean-square distance of the tokens. `cost` times, at a preset with
random weights, a sweep of W tokens beside a sequential step of one, with the flow head's sampler as given: `tokens` is that
ratio. A sweep pays where it accepts more tokens than it costs.
"""

import argparse
import itertools
from collections.abc import Callable

from benchmarks import measure
from benchmarks.generate import decoding_config, random_params
from benchmarks.shortcuts import PROMPTS, distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a checkpoint [the built-in model]")
    parser.add_argument("--sizes", nargs="*", default=["64x64", "256x256"], help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-4, 0.01, 0.02, 0.1])
    parser.add_argument("--preset", default="mid", help="whose sweeps are timed; - for none")
    parser.add_argument(
        "--samplers", nargs="*", default=["ode:20", "ab2:10", "map:2"], help="SAMPLER:STEPS to time sweeps with"
    )
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    figures: dict = {"acceptance": {size: acceptance(arguments, size) for size in arguments.sizes}}
    if arguments.preset != "-":
        samplers = [(name, int(steps)) for name, steps in (text.split(":") for text in arguments.samplers)]
        figures["cost"] = {f"{name} {steps}": cost(arguments, name, steps) for name, steps in samplers}
    measure.report(figures, arguments.json)


def acceptance(a: argparse.Namespace, size: str) -> list[dict]:
    """Tokens a sweep and distances from sequential decoding, by window, tolerance and first guess; other guesses than the
    library's with the first window and tolerance alone.
    """
    import jax
    import numpy as np

    from nextstep_jax.data.sequence import image_prefix
    from nextstep_jax.generation import jacobi, token_loop
    from nextstep_jax.generation.pipeline import Pipeline
    from nextstep_jax.generation.prompts import align_rows, frame_prompt

    pipeline = Pipeline.from_checkpoint(a.checkpoint)
    settings, config, params = pipeline.settings(), pipeline.config, pipeline.params
    h, w = pipeline.grid(settings, *map(int, size.split("x")))
    how, guidance = settings.sampler_config(False), settings.guidance(h * w)

    def draw(text: str, key, window: jacobi.JacobiConfig | None, tolerance: float = 0.0):
        prefix = image_prefix(pipeline.special, h, w)
        rows = [[text, prefix], [settings.negative_prompt, prefix]][: how.branches]
        prompt = align_rows([frame_prompt(row, pipeline.special, config, pipeline.vocabulary) for row in rows])
        noise = token_loop.draw_noise(key[None], h * w, how.num_noise_draws, config.token_channels)
        if window is None:
            state = token_loop.prefill(config, params, prompt, how.branches, h * w)
            state = token_loop.decode_tokens(config, how, params, state, noise, guidance, h * w)
            return np.asarray(state.tokens), h * w
        state = jacobi.prefill(config, params, prompt, how.branches, h * w, window)
        state = jacobi.decode_windows(config, how, params, state, noise, guidance, h * w, tolerance, window)
        return np.asarray(state.tokens)[:, : h * w], int(state.sweeps)

    keys = jax.random.split(jax.random.key(0), len(PROMPTS))
    sequential = [draw(text, key, None)[0] for text, key in zip(PROMPTS, keys, strict=True)]
    rows = []
    settled = itertools.product(a.windows, a.tolerances, ["last"])
    others = [guess for guess in jacobi.FIRST_GUESSES if guess != "last"]
    guessed = itertools.product(a.windows[:1], a.tolerances[:1], others)
    for width, tolerance, guess in (*settled, *guessed):
        window = jacobi.JacobiConfig(width, w, guess)
        found, sweeps = zip(*[draw(text, key, window, tolerance) for text, key in zip(PROMPTS, keys, strict=True)], strict=True)
        row = {"window": width, "tolerance": tolerance, "first_guess": guess}
        row["tokens_a_sweep"] = float(np.mean([h * w / count for count in sweeps]))
        row["distance"] = float(np.mean([distance(a, b) for a, b in zip(found, sequential, strict=True)]))
        print(size, row, flush=True)
        rows.append(row)
    return rows


def cost(a: argparse.Namespace, sampler: str, steps: int) -> dict:
    """Seconds of a sequential step and of a sweep of each window at one place of a 256-token image, batch 1, two branches."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from nextstep_jax.generation import jacobi, token_loop

    tokens, prompt = 256, 64
    config = dataclasses.replace(decoding_config(a.preset, "float32"), map_head=sampler == "map")
    how = token_loop.SamplerConfig(branches=2, sampler=sampler, steps=steps, normalize_tokens=True)
    params = random_params(config, "float32")
    ids = np.full((2, prompt), 7, np.int32)
    inputs = token_loop.Prompt(ids, np.zeros((2, prompt, config.token_channels), np.float32), ids == 0, np.full(2, prompt))
    noise = token_loop.draw_noise(jax.random.split(jax.random.key(0), 1), tokens, how.num_noise_draws, config.token_channels)
    guidance = jnp.tile(jnp.asarray([7.5, 1.0]), (tokens, 1))

    def sequential() -> Callable:
        begun = token_loop.prefill(config, params, inputs, 2, tokens)
        times = token_loop.embed_times(config, how, params)
        step = jax.jit(
            lambda params, state: token_loop.sample_step(config, how, params, times, state, noise[0], guidance[0])[0]
        )
        return lambda: step(params, begun)

    def sweep(width: int) -> Callable:
        window = jacobi.JacobiConfig(width, 16)
        begun = jacobi.prefill(config, params, inputs, 2, tokens, window)
        times = token_loop.embed_times(config, how, params)
        stop = jnp.asarray(tokens)
        step = jax.jit(
            lambda params, state: jacobi.sweep(config, how, params, times, state, noise, guidance, stop, 0.02, window)
        )
        return lambda: step(params, begun)

    runs = {"one token": sequential()} | {str(width): sweep(width) for width in a.windows}
    found = measure.alternate(runs, a.rounds)
    return {name: {"seconds": value, "tokens": value / found["one token"]} for name, value in found.items()}


if __name__ == "__main__":
    main()
