"""What an image token costs, part by part, beside the memory traffic it cannot do without and beside the PyTorch release.

    python -m benchmarks.generate --preset mid --threads 2 --peer path/to/NextStep-1 --json generate.json
    python -m benchmarks.generate --preset 14b --dtype bfloat16 --steps 28 --tokens 256   # one GPU of 80 GB; or 1024 tokens
    python -m benchmarks.generate --preset mid --batch 16                                    # images per second

Weights are random. A token is one transformer step over all guidance rows and one integration of the flow head (`--steps`
evaluations). Timed on their own and together, in the compiled loop that the library generates with:

  seconds    median of `--rounds` alternating runs; `a_token` is for all images of the batch at once
  bytes      what has to move: every weight of the transformer and all cache slots once; of the flow head the modulation
             weights once and the others once an evaluation
  floor      those bytes over the bandwidth of a copy measured in the same process
  of_floor   floor / seconds: 1 would be a program that does nothing but read

`peer` and, with `--peer-compile`, `peer_compiled` hold the release's seconds and `times_faster`, theirs over ours. Its
transformer's are the rest of its token.

`compile` is the time to trace and compile the two programs without a cache. Peak memory is the compiler's account of the
loop's program, and what the device (or, on a CPU, the process) counted. On CPUs a model may fit the caches: then a
product can be quicker than the floor says.
"""

import argparse
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mid", help="tiny, mid, 0.5b, 1.5b, 3b, 7b or 14b")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--tokens", type=int, default=256, help="image tokens of an image")
    parser.add_argument("--prompt", type=int, default=64, help="positions of the prompt")
    parser.add_argument("--cfg", type=float, default=7.5, help="1 for no guidance")
    parser.add_argument("--sampler", default="august2025")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=8, help="tokens a timed run samples")
    parser.add_argument("--peer", help="checkout of the PyTorch release to time as well (float32, CPU)")
    parser.add_argument("--peer-compile", action="store_true", help="and once more under torch.compile")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """The figures of one setting."""
    from nextstep_jax.generation.token_loop import SamplerConfig

    config = decoding_config(a.preset, a.dtype)
    settings = SamplerConfig(branches=2 if a.cfg > 1 else 1, sampler=a.sampler, steps=a.steps, normalize_tokens=True)
    params = random_params(config, a.dtype)
    programs = compile_programs(config, settings, params, a.batch, a.tokens, a.prompt, a.cfg, a.chunk)
    runs = {f"ours/{name}": run for name, run in programs.runs.items()}
    if a.peer:
        from benchmarks.torch_peer import Peer

        peer = Peer(a.peer, config, a.threads or 1, compiled=a.peer_compile)
        theirs = {
            "a_token": peer.decoder(a.batch, a.prompt, a.tokens, a.chunk, a.cfg, a.steps),
            "flow_head": peer.flow_head(a.batch, a.cfg, a.steps),
        }
        runs |= {f"peer/{name}": peer.uncompiled(run) for name, run in theirs.items()}
        runs["peer/prefill"] = peer.prefill(a.batch, settings.branches, a.prompt, a.tokens)
        runs |= {f"peer_compiled/{name}": run for name, run in theirs.items() if a.peer_compile}
    seconds: dict[str, dict[str, float]] = {}
    for name, value in measure.alternate(runs, a.rounds).items():
        seconds.setdefault(name.split("/")[0], {})[name.split("/")[1]] = value
    ours = per_token(seconds.pop("ours"), a.chunk)
    setting = {k: v for k, v in vars(a).items() if k not in ("json", "peer")}
    figures = {"setting": setting} | figures_of(config, settings, params, programs, ours, a.batch, a.tokens)
    for name, found in seconds.items():
        found["a_token"] /= a.chunk
        found["transformer"] = found["a_token"] - found["flow_head"]
        figures[name] = {"seconds": found, "times_faster": {part: found[part] / ours[part] for part in found}}
    return figures


def decoding_config(preset_name: str, dtype: str, **changes):
    """The preset in decoding form. int8 kernels are multiplied in bfloat16, on CPUs in float32."""
    import jax

    from nextstep_jax.config import preset

    if dtype == "int8":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return preset(preset_name).with_transformer(dtype=dtype, fused_projections=True, **changes)


class Programs(NamedTuple):
    """The compiled programs of a setting: functions to time, of which all but `prefill` run `chunk` tokens (see `per_token`).

    Attributes:
      loop: the compiled token loop.
      state: what it starts from.
      compile_seconds: of prefill and loop, traced and compiled.
    """

    runs: dict[str, Callable]
    loop: Any
    state: Any
    compile_seconds: float


PARTS = ("a_token", "transformer", "flow_head", "lm_head", "prefill")


def compile_programs(
    config,
    settings,
    params: dict,
    batch: int,
    tokens: int,
    prompt: int,
    cfg: float,
    chunk: int,
    parts: Sequence[str] = PARTS,
    compiler_options: dict | None = None,
    static_chunk: bool = False,
) -> Programs:
    """Compile what has to be timed.

    Args:
      batch, tokens, prompt: images, image tokens of each, positions of the prompt.
      parts: which of PARTS.
      static_chunk: a loop whose trip count the compiler knows, not the library's, which takes it as an argument.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nextstep_jax.generation import token_loop
    from nextstep_jax.models.nextstep import NextStep

    model, rows = NextStep(config), settings.branches * batch
    ids = np.full((rows, prompt), 7, np.int32)
    empty = np.zeros((rows, prompt, config.token_channels), np.float32)
    inputs = token_loop.Prompt(ids, empty, ids == 0, np.full(rows, prompt, np.int32))
    keys = jax.random.split(jax.random.key(0), batch)
    noise = token_loop.draw_noise(keys, tokens, settings.num_noise_draws, config.token_channels)
    guidance = jnp.tile(jnp.asarray([cfg, 1.0]), (tokens, 1))

    @functools.partial(jax.jit, donate_argnums=1)
    def known_trip_count(params, state, noise, guidance, _):
        times = token_loop.embed_times(config, settings, params)

        def body(_, state):
            k = state.step
            return token_loop.sample_step(config, settings, params, times, state, noise[k], guidance[k])[0]

        return jax.lax.fori_loop(0, chunk, body, state)

    began = measure.now()
    prefill = token_loop.prefill.lower(config, params, inputs, settings.branches, tokens).compile()
    state = prefill(params, inputs)
    if static_chunk:
        loop = known_trip_count.lower(params, state, noise, guidance, chunk)
    else:
        loop = token_loop.decode_tokens.lower(config, settings, params, state, noise, guidance, chunk)
    loop = loop.compile(compiler_options)
    compile_seconds = measure.now() - began

    def a_token():
        state = jax.block_until_ready(prefill(params, inputs))
        began = measure.now()
        jax.block_until_ready(loop(params, state, noise, guidance, chunk))
        return measure.now() - began

    @jax.jit
    def transformer(params, state):
        def step(carry, _):
            x, cache = carry
            hidden, cache = token_loop.transformer_step(config, params, x, state.positions, cache, state.valid)
            return (hidden, cache), None

        return jax.lax.scan(step, (state.embedding, state.cache), length=chunk)[0][0]

    @jax.jit
    def flow_head(params, condition):
        times = token_loop.embed_times(config, settings, params)

        def step(condition, noise):
            token = token_loop.flow_step(config, settings, params, condition, times, noise, guidance[0, 0], guidance[0, 1])
            again = model.apply({"params": params}, token, method="embed_image")  # the next needs this one
            return jnp.tile(again, (settings.branches, 1)), None

        return jax.lax.scan(step, condition, noise[:chunk])[0]

    @jax.jit
    def lm_head(params, hidden):
        def step(hidden, _):
            logits = model.apply({"params": params}, hidden, method="logits")
            return hidden + (1e-6 * logits.max(axis=-1, keepdims=True)).astype(hidden.dtype), None

        return jax.lax.scan(step, hidden, length=chunk)[0]

    runs = {
        "a_token": a_token,
        "transformer": lambda: transformer(params, state),
        "flow_head": lambda: flow_head(params, state.embedding),
        "lm_head": lambda: lm_head(params, state.embedding),
        "prefill": lambda: prefill(params, inputs),
    }
    return Programs({name: runs[name] for name in parts}, loop, state, compile_seconds)


def per_token(seconds: dict[str, float], chunk: int) -> dict[str, float]:
    """Seconds of one token from those of `Programs.runs`."""
    return {name: value if name == "prefill" else value / chunk for name, value in seconds.items()}


def figures_of(config, settings, params: dict, programs: Programs, seconds: dict[str, float], batch: int, tokens: int) -> dict:
    """What is reported of a setting, given the seconds of its parts."""
    import jax

    bandwidth = measure.copy_bandwidth()
    moved = traffic(config, params, settings, programs.state)
    image = seconds["a_token"] * tokens + seconds.get("prefill", 0.0)
    return {
        "device": jax.devices()[0].device_kind,
        "seconds": seconds,
        "images_a_second": batch / image,
        "copy_bytes_a_second": bandwidth,
        "bytes": moved,
        "floor_seconds": {name: value / bandwidth for name, value in moved.items()},
        "of_floor": {name: value / bandwidth / seconds[name] for name, value in moved.items() if name in seconds},
        "compile_seconds": programs.compile_seconds,
        "compiler_memory": measure.compiled_memory(programs.loop),
        "peak_bytes": measure.peak_memory(),
    }


def random_params(config, dtype: str) -> dict:
    """Parameters for decoding, drawn leaf by leaf on the device in their final dtype."""
    return draw_like(param_shapes(config, dtype))


def param_shapes(config, dtype: str) -> dict:
    """Shapes and dtypes of parameters for decoding, fused if `config` says so, quantized if `dtype` is int8."""
    import jax

    from nextstep_jax.models.nextstep import init_params
    from nextstep_jax.models.param_layouts import fuse_projections, quantize_kernels

    plain, fused = config.with_transformer(fused_projections=False), config.transformer.fused_projections

    def make(key):
        params = jax.tree.map(lambda leaf: leaf.astype(config.transformer.dtype), init_params(plain, key))
        params = quantize_kernels(params) if dtype == "int8" else params
        return fuse_projections(params) if fused else params

    return jax.eval_shape(make, jax.random.key(0))


def draw_like(shapes):
    """Random arrays of these shapes and dtypes, drawn on the device one after another."""
    import jax
    import jax.numpy as jnp

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def numbers(key, shape, dtype):
        if dtype == jnp.int8:
            return jax.random.randint(key, shape, -127, 128, dtype)
        return 0.02 * jax.random.normal(key, shape, dtype)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        if path[-1].key == "kernel_scale":
            return jnp.full(leaf.shape, 0.02 / 73, leaf.dtype)  # 73: the root mean square of -127 to 127
        return numbers(jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode())), leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def traffic(config, params: dict, settings, state) -> dict[str, int]:
    """Bytes that a token has to read: see the module's docstring."""
    import jax

    def size(tree) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    head = params["flow_head"]
    once = size([head["time_embed"], head["condition"]]) + size(head["final"]["modulation"])
    once += sum(size(block["modulation"]) for name, block in head.items() if name.startswith("blocks_"))
    evaluations = len(decode_times(settings))
    flow_head = once + evaluations * (size(head) - once)
    projectors = size([params["image_in_projector"], params["image_out_projector"]])
    transformer = size(params["decoder"]) + size(state.cache.layers)
    lm_head = size(params["lm_head"] if "lm_head" in params else params["embedding"])
    whole = transformer + projectors + flow_head
    return {"transformer": transformer, "flow_head": flow_head, "lm_head": lm_head, "a_token": whole}


def decode_times(settings):
    from nextstep_jax.flow.samplers import timesteps

    return timesteps(settings.sampler, settings.steps, settings.shift)


if __name__ == "__main__":
    main()
