"""What each optimization of the token loop gains: the loop as it is, beside loops with one of them undone.

    python -m benchmarks.loop_ablations --preset mid --threads 2 --json loop_ablations.json

  modulations one by one       the flow head's modulations computed at each evaluation, not all of a token's in one product
  times embedded each time     and the time's embedding too
  branches one by one          a transformer step and a velocity for each guidance branch, not all of them in one product
  separate projections         q, k, v, gate and up as five products, not two
  stacked layers               weights and cache stacked over the layers and scanned, not arrays of their own
  logits                       the language head's logits at every image token
  a call a token               one compiled call for each token, its cache donated, not a loop on the device
  a call a token, not donated  the same with a copy of the cache at every call
  bfloat16 cache               one more, not one less, where `--dtype` is float32: half the bytes, widened when read

`times_slower` is the median time of a token over that of the library's loop; `distance` is the largest difference between
their tokens, over the tokens' own size. Weights are random. Not measured: that no transformer step follows an image's last
token (one step in `--tokens`, by construction).
"""

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.generate import random_params
from nextstep_jax.config import NextStepConfig, preset
from nextstep_jax.flow.guidance import guide
from nextstep_jax.flow.samplers import sample, timesteps
from nextstep_jax.generation import token_loop
from nextstep_jax.models.attention import LayerCache
from nextstep_jax.models.layers import layer_norm, rms_norm, rope_table
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.models.param_layouts import fuse_projections, stack_layers
from nextstep_jax.models.transformer import Block, Cache

BRANCHES = 2


class Loop(NamedTuple):
    """A way to sample tokens. `transformer`: params, state -> hidden states, cache; `flow`: params, condition, noise, guidance,
    time embeddings -> token.
    """

    transformer: Callable
    flow: Callable
    form: str = "fused"  # of the parameters
    logits: bool = False
    calls: bool = False  # a compiled call for each token
    donate: bool = True
    cache: str | None = None  # its dtype; None: the model's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mid", help="tiny, mid, 0.5b, 1.5b, 3b, 7b or 14b")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=256, help="image tokens of the image")
    parser.add_argument("--prompt", type=int, default=64, help="positions of the prompt")
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=8, help="tokens a timed run samples")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def loops(separate: NextStepConfig, settings: token_loop.SamplerConfig) -> dict[str, Loop]:
    """The library's loop and those with a measure undone."""
    config = separate.with_transformer(fused_projections=True)
    model, c = NextStep(config), config.transformer
    times = jnp.asarray(timesteps(settings.sampler, settings.steps, settings.shift))

    def transformer(params, state, config=config):
        return token_loop.transformer_step(config, params, state.embedding, state.positions, state.cache, state.valid)

    def flow(params, condition, noise, guidance, embedded):
        return token_loop.flow_step(config, settings, params, condition, embedded, noise, *guidance)

    def integrate(velocity, noise, guidance):
        """`token_loop.flow_step` over a velocity (rows [R, C], i) -> [R, C]."""

        def guided(x, i):
            return guide(velocity(jnp.tile(x, (BRANCHES, 1)), i), *guidance, BRANCHES)

        token = sample(guided, noise, sampler=settings.sampler, steps=settings.steps)
        return layer_norm(token, token_loop.TOKEN_NORM_EPS)

    def one_by_one(params, condition, noise, guidance, embedded):
        def velocity(x, i):
            now = model.apply({"params": params}, embedded.starts[i][None], condition, method="modulations")
            return model.apply({"params": params}, x, jax.tree.map(lambda table: table[0], now), method="velocity_at")

        return integrate(velocity, noise, guidance)

    def from_times(params, condition, noise, guidance, embedded):
        def velocity(x, i):
            return model.apply({"params": params}, x, jnp.full(len(x), times[i]), condition, method="velocity")

        return integrate(velocity, noise, guidance)

    def transformer_by_branch(params, state):
        def one(branch):
            embedding, positions, valid = (x[branch] for x in (state.embedding, state.positions, state.valid))
            layers = tuple(LayerCache(*(x[branch] for x in layer)) for layer in state.cache.layers)
            return token_loop.transformer_step(config, params, embedding, positions, Cache(layers, state.cache.index), valid)

        (first, a), (second, b) = one(slice(0, 1)), one(slice(1, 2))
        layers = jax.tree.map(lambda *x: jnp.concatenate(x), a.layers, b.layers)
        return jnp.concatenate([first, second]), Cache(layers, a.index)

    def flow_by_branch(params, condition, noise, guidance, embedded):
        tables = [model.apply({"params": params}, embedded.starts, row[None], method="modulations") for row in condition]

        def velocity(x, i):
            now = [jax.tree.map(lambda table: table[i], table) for table in tables]
            rows = zip(x[:, None], now, strict=True)
            return jnp.concatenate([model.apply({"params": params}, *row, method="velocity_at") for row in rows])

        return integrate(velocity, noise, guidance)

    def scanned(params, state):
        x, index = state.embedding[:, None].astype(c.dtype), state.cache.index
        rope = rope_table(state.positions[:, None], c.head_dim, c.rope_theta)

        def layer(x, inputs):
            weights, cache = inputs
            return Block(c).apply({"params": weights}, x, rope, cache, index, state.valid, method="extend")

        x, layers = jax.lax.scan(layer, x, (params["decoder"]["layers"], state.cache.layers))
        return rms_norm(x, params["decoder"]["final_norm"]["scale"], c.rms_norm_eps)[:, 0], Cache(layers, index + 1)

    plain = Loop(transformer, flow)
    return {
        "the library's loop": plain,
        "modulations one by one": plain._replace(flow=one_by_one),
        "times embedded each time": plain._replace(flow=from_times),
        "branches one by one": plain._replace(transformer=transformer_by_branch, flow=flow_by_branch),
        "separate projections": plain._replace(transformer=functools.partial(transformer, config=separate), form="separate"),
        "stacked layers": plain._replace(transformer=scanned, form="stacked"),
        "logits": plain._replace(logits=True),
        "a call a token": plain._replace(calls=True),
        "a call a token, not donated": plain._replace(calls=True, donate=False),
        "bfloat16 cache": plain._replace(cache="bfloat16"),
    }


def run(a: argparse.Namespace) -> dict:
    """Seconds of a token, times slower and distance of each loop."""
    separate = preset(a.preset).with_transformer(dtype=a.dtype)
    config = separate.with_transformer(fused_projections=True)
    settings = token_loop.SamplerConfig(branches=BRANCHES, sampler="august2025", steps=a.steps, normalize_tokens=True)
    params = {"separate": random_params(separate, a.dtype)}
    params["fused"] = jax.jit(fuse_projections)(params["separate"])
    params["stacked"] = jax.jit(stack_layers)(params["fused"])
    params["stacked"]["flow_head"] = params["fused"]["flow_head"]
    ids = np.tile(np.arange(a.prompt, dtype=np.int32) + 7, (BRANCHES, 1))
    lengths = np.asarray([a.prompt, a.prompt // 2], np.int32)
    empty = np.zeros((BRANCHES, a.prompt, config.token_channels), np.float32)
    prompt = token_loop.Prompt(ids, empty, ids < 0, lengths)
    keys = jax.random.split(jax.random.key(0), 1)
    noise = token_loop.draw_noise(keys, a.tokens, settings.num_noise_draws, config.token_channels)
    guidance = jnp.tile(jnp.asarray([a.cfg, 1.0]), (a.tokens, 1))
    tokens = {}

    def timed(name: str, loop: Loop) -> Callable[[], float]:
        decode_tokens = jax.jit(
            functools.partial(_decode_tokens, config, settings, loop), donate_argnums=(1,) if loop.donate else ()
        )
        stops = range(1, a.chunk + 1) if loop.calls else (a.chunk,)

        def once() -> float:
            state = token_loop.prefill(config, params["fused"], prompt, BRANCHES, a.tokens)
            if loop.form == "stacked":
                stacked = jax.tree.map(lambda *x: jnp.stack(x), *state.cache.layers)
                state = state._replace(cache=Cache(stacked, state.cache.index))
            if loop.cache is not None:
                layers = jax.tree.map(lambda x: x.astype(loop.cache), state.cache.layers)
                state = state._replace(cache=Cache(layers, state.cache.index))
            jax.block_until_ready(state)
            began = measure.now()
            for stop in stops:
                state = decode_tokens(params[loop.form], state, noise, guidance, stop)
            tokens[name] = np.asarray(state.tokens[:, : a.chunk])
            return measure.now() - began

        return once

    ways = loops(separate, settings)
    seconds = measure.alternate({name: timed(name, loop) for name, loop in ways.items()}, a.rounds)
    first = next(iter(ways))
    size = float(np.abs(tokens[first]).max())
    return {
        "setting": {k: v for k, v in vars(a).items() if k != "json"},
        "device": jax.devices()[0].device_kind,
        "loops": {
            name: {
                "seconds": seconds[name] / a.chunk,
                "times_slower": seconds[name] / seconds[first],
                "distance": float(np.abs(tokens[name] - tokens[first]).max()) / size,
            }
            for name in ways
        },
    }


def _decode_tokens(
    config: NextStepConfig, settings: token_loop.SamplerConfig, loop: Loop, params, state, noise, guidance, stop
):
    """`token_loop.decode_tokens` with the parts of `loop`."""
    model, embedded = NextStep(config), token_loop.embed_times(config, settings, params)

    def body(state: token_loop.DecodeState) -> token_loop.DecodeState:
        k = state.step
        hidden, cache = loop.transformer(params, state)
        condition = model.apply({"params": params}, hidden, method="project_out")
        token = loop.flow(params, condition, noise[k], guidance[k], embedded)
        embedding = model.apply({"params": params}, token, method="embed_image")
        if loop.logits:
            best = jnp.argmax(model.apply({"params": params}, hidden, method="logits"), axis=-1)
            embedding += 0.0 * best.sum()  # so that they are computed
        return token_loop.DecodeState(
            cache=cache,
            valid=state.valid,
            positions=state.positions + 1,
            embedding=jnp.tile(embedding, (BRANCHES, 1)),
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, k, 0)),
            step=k + 1,
        )

    return jax.lax.while_loop(lambda state: state.step < stop, body, state)


if __name__ == "__main__":
    main()
