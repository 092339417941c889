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

`compile` is the time to trace and compile the two programs without a cache. Peak memory is the compiler's account of the
loop's program, and what the device (or, on a CPU, the process) counted. On CPUs a model may fit the caches: then a
product can be quicker than the floor says.
"""

import argparse
import functools

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
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """The figures of one setting."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nextstep_jax.config import preset
    from nextstep_jax.generation import token_loop
    from nextstep_jax.models.nextstep import NextStep

    config = preset(a.preset).with_transformer(
        dtype="bfloat16" if a.dtype == "int8" and jax.default_backend() != "cpu" else a.dtype.replace("int8", "float32"),
        fused_projections=True,
    )
    settings = token_loop.SamplerConfig(branches=2 if a.cfg > 1 else 1, sampler=a.sampler, steps=a.steps, normalize_tokens=True)
    params = random_params(config, a.dtype)
    rows = settings.branches * a.batch
    ids = np.full((rows, a.prompt), 7, np.int32)
    empty = np.zeros((rows, a.prompt, config.token_channels), np.float32)
    prompt = token_loop.Prompt(ids, empty, ids == 0, np.full(rows, a.prompt, np.int32))
    keys = jax.random.split(jax.random.key(0), a.batch)
    noise = token_loop.draw_noise(keys, a.tokens, settings.num_noise_draws, config.token_channels)
    guidance = jnp.tile(jnp.asarray([a.cfg, 1.0]), (a.tokens, 1))

    began = measure.now()
    prefill = token_loop.prefill.lower(config, params, prompt, settings.branches, a.tokens).compile()
    state = prefill(params, prompt)
    decode_tokens = token_loop.decode_tokens.lower(config, settings, params, state, noise, guidance, 1).compile()
    compile_seconds = measure.now() - began

    def tokens():
        state = jax.block_until_ready(prefill(params, prompt))
        began = measure.now()
        jax.block_until_ready(decode_tokens(params, state, noise, guidance, a.chunk))
        return measure.now() - began

    @jax.jit
    def transformer(params, state):
        def step(carry, _):
            x, cache = carry
            hidden, cache = token_loop.transformer_step(config, params, x, state.positions, cache, state.valid)
            return (hidden, cache), None

        return jax.lax.scan(step, (state.embedding, state.cache), length=a.chunk)[0][0]

    @jax.jit
    def flow_head(params, condition):
        times = token_loop.embed_times(config, settings, params)

        def step(condition, noise):
            token = token_loop.flow_step(config, settings, params, condition, times, noise, guidance[0, 0], guidance[0, 1])
            again = NextStep(config).apply({"params": params}, token, method="embed_image")  # the next needs this one
            return jnp.tile(again, (settings.branches, 1)), None

        return jax.lax.scan(step, condition, noise[: a.chunk])[0]

    runs = {
        "ours/a_token": tokens,
        "ours/transformer": lambda: transformer(params, state),
        "ours/flow_head": lambda: flow_head(params, state.embedding),
        "ours/prefill": lambda: prefill(params, prompt),
    }
    if a.peer:
        from benchmarks.torch_peer import Peer

        peer = Peer(a.peer, config, a.threads or 1)
        runs["peer/a_token"] = peer.decoder(a.batch, a.prompt, a.tokens, a.chunk, a.cfg, a.steps)
        runs["peer/flow_head"] = peer.flow_head(a.batch, a.cfg, a.steps)
        runs["peer/prefill"] = peer.prefill(a.batch, settings.branches, a.prompt, a.tokens)
    found = measure.alternate(runs, a.rounds)
    for name in ("ours/a_token", "ours/transformer", "ours/flow_head", "peer/a_token"):
        if name in found:
            found[name] /= a.chunk

    bandwidth = measure.copy_bandwidth()
    moved = traffic(config, params, settings, state)
    ours = {name.split("/")[1]: value for name, value in found.items() if name.startswith("ours/")}
    theirs = {name.split("/")[1]: value for name, value in found.items() if name.startswith("peer/")}
    if theirs:
        theirs["transformer"] = theirs["a_token"] - theirs["flow_head"]
    return {
        "setting": {k: v for k, v in vars(a).items() if k not in ("json", "peer")},
        "device": jax.devices()[0].device_kind,
        "seconds": ours,
        "peer_seconds": theirs,
        "times_faster": {name: theirs[name] / ours[name] for name in theirs},
        "images_a_second": a.batch / (ours["a_token"] * a.tokens + ours["prefill"]),
        "copy_bytes_a_second": bandwidth,
        "bytes": moved,
        "floor_seconds": {name: value / bandwidth for name, value in moved.items()},
        "of_floor": {name: value / bandwidth / ours[name] for name, value in moved.items()},
        "compile_seconds": compile_seconds,
        "compiler_memory": measure.compiled_memory(decode_tokens),
        "peak_bytes": measure.peak_memory(),
    }


def random_params(config, dtype: str) -> dict:
    """Parameters for decoding, fused if `config` says so, drawn leaf by leaf on the device in their final dtype."""
    import jax
    import jax.numpy as jnp

    from nextstep_jax.models.nextstep import init_params
    from nextstep_jax.models.param_layouts import fuse_projections, quantize_kernels

    plain, fused = config.with_transformer(fused_projections=False), config.transformer.fused_projections
    make = (lambda key: fuse_projections(init_params(plain, key))) if fused else functools.partial(init_params, plain)
    shapes = jax.eval_shape(make, jax.random.key(0))
    stored = config.transformer.dtype

    def draw(path, shape):
        if path[-1].key == "scale":
            return jnp.ones(shape.shape, stored)
        key = jax.random.key(hash(jax.tree_util.keystr(path)) % 2**31)
        return 0.02 * jax.random.normal(key, shape.shape, stored)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return quantize_kernels(params) if dtype == "int8" else params


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
    return {"transformer": transformer, "flow_head": flow_head, "a_token": transformer + projectors + flow_head}


def decode_times(settings):
    from nextstep_jax.flow.samplers import timesteps

    return timesteps(settings.sampler, settings.steps, settings.shift)


if __name__ == "__main__":
    main()
