"""The image-token loop: one program, any chunks, rows that do not see each other."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from nextstep_jax.config import preset
from nextstep_jax.data.sequence import ImageTokens, image_prefix
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.prompts import align_rows, frame_prompt, row_batch
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.models.param_layouts import fuse_projections

SETTINGS = token_loop.SamplerConfig(branches=2, sampler="sde", steps=3)
TOKENS = 6


@pytest.fixture(scope="module")
def fused(tiny_config, tiny_params):
    return tiny_config.with_transformer(fused_projections=True), fuse_projections(tiny_params)


def prompt_of(config, texts, bucket=16):
    """Conditional rows of ids, then as many unconditional ones."""
    special = SpecialIds.from_config(config, range(20, 30), 10)
    prefix = image_prefix(special, 2, 3)
    rows = [frame_prompt([text, prefix], special, config) for text in [*texts, *[[]] * len(texts)]]
    return align_rows(rows, bucket)


def draw(config, images, seed=0):
    keys = jax.vmap(lambda j: jax.random.fold_in(jax.random.key(seed), j))(np.arange(images))
    return token_loop.draw_noise(keys, TOKENS, SETTINGS.num_noise_draws, config.token_channels)


def run(fused, texts, stops=(TOKENS,), bucket=16, noise=None, settings=SETTINGS):
    config, params = fused
    state = token_loop.prefill(config, params, prompt_of(config, texts, bucket), settings.branches, TOKENS)
    noise = draw(config, len(texts)) if noise is None else noise
    guidance = np.full((TOKENS, 2), (3.0, 1.0), np.float32)
    for stop in stops:
        state = token_loop.decode_tokens(config, settings, params, state, noise, guidance, stop)
    return np.asarray(state.tokens)


def test_chunks_do_not_change_the_result(fused):
    np.testing.assert_array_equal(run(fused, [[5, 6, 7]], stops=(1, 4, 6)), run(fused, [[5, 6, 7]]))


def test_a_row_does_not_depend_on_its_neighbours(fused):
    config, _ = fused
    noise = draw(config, 2)
    first = run(fused, [[5, 6, 7], [8, 9, 10, 11]], noise=noise)
    other = run(fused, [[5, 6, 7], [1]], noise=noise.at[:, :, 1].add(1.0))
    np.testing.assert_array_equal(first[0], other[0])
    assert np.abs(first[1] - other[1]).max() > 0.1


def test_padding_does_not_change_the_result(fused):
    np.testing.assert_allclose(run(fused, [[5, 6, 7]], bucket=16), run(fused, [[5, 6, 7]], bucket=40), atol=1e-4)


def test_prompts_of_one_bucket_share_a_program(fused):
    run(fused, [[5, 6, 7]])
    compiled = token_loop.decode_tokens._cache_size(), token_loop.prefill._cache_size()
    run(fused, [[5, 6, 7, 8]])
    assert (token_loop.decode_tokens._cache_size(), token_loop.prefill._cache_size()) == compiled


def test_image_parts_are_written_as_in_training():
    config = preset("tiny")
    special = SpecialIds.from_config(config, range(480, 490), 490)
    tokens = np.arange(2 * config.token_channels, dtype=np.float32).reshape(2, -1)
    row = frame_prompt([[7], ImageTokens(tokens, 1, 2)], special, config)
    assert row.text_ids.tolist() == [7, 501, 481, 490, 482, 502, 504, 504, 503]
    np.testing.assert_array_equal(row.image_tokens, tokens)
    prompt = align_rows([row], 4)
    assert prompt.text_ids.shape == (1, 12) and prompt.lengths.tolist() == [9]
    np.testing.assert_array_equal(prompt.image_tokens[0, 9:11], tokens)


def test_normalized_tokens_have_zero_mean_and_unit_variance(fused):
    settings = token_loop.SamplerConfig(branches=2, sampler="ode", steps=2, normalize_tokens=True)
    noise = draw(fused[0], 1)[:, :1]
    tokens = run(fused, [[5]], noise=noise, settings=settings)
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.var(-1), 1, atol=1e-3)


def test_profiles_name_the_stages_of_a_token(fused):
    config, params = fused
    state = jax.eval_shape(lambda: token_loop.prefill(config, params, prompt_of(config, [[5]]), 2, TOKENS))
    settings = token_loop.SamplerConfig(branches=2, sampler="sde", steps=3, normalize_tokens=True)
    lowered = token_loop.decode_tokens.lower(
        config, settings, params, state, draw(config, 1), np.ones((TOKENS, 2), np.float32), TOKENS
    )
    found = lowered.as_text(debug_info=True)
    stages = ("embed_times", "transformer_step", "write_cache", "masked_attention", "apply_rope", "flow_step", "velocity")
    stages += ("guide", "sampler_update", "normalize_token", "append_token", "image_in_projector", "image_out_projector")
    assert not [stage for stage in stages if f"{stage}/" not in found]


def velocity64(params, x, t, condition):
    """The flow head's velocity in float64, from its equations."""
    silu = lambda y: y / (1 + np.exp(-y))  # noqa: E731

    def dense(layer, y):
        return y @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)

    def normal(y, gain=1.0, bias=0.0):
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * gain + bias

    angles = t * 10000.0 ** (-np.arange(128) / 128)
    time = dense(
        params["time_embed"]["out"], silu(dense(params["time_embed"]["in"], np.append(np.cos(angles), np.sin(angles))))
    )
    cond = silu(time + dense(params["condition"], condition))
    y = dense(params["input"], x)
    for name in sorted(name for name in params if name.startswith("blocks_")):
        block = params[name]
        shift, scale, gate = np.split(dense(block["modulation"], cond), 3, axis=-1)
        norm = normal(y, *(np.asarray(block["norm"][part], np.float64) for part in ("scale", "bias")))
        y = y + gate * dense(block["mlp_out"], silu(dense(block["mlp_in"], norm * (1 + scale) + shift)))
    shift, scale = np.split(dense(params["final"]["modulation"], cond), 2, axis=-1)
    return dense(params["final"]["output"], normal(y) * (1 + scale) + shift)


def flow_token(config, params, settings, condition, noise, cfg=4.0, image_cfg=2.0):
    @jax.jit
    def draw(params, condition, noise):
        times = token_loop.embed_times(config, settings, params)
        return token_loop.flow_step(config, settings, params, condition, times, noise, cfg, image_cfg)

    return np.asarray(draw(params, condition, noise))


@pytest.mark.parametrize("branches", [2, 3])
def test_guidance_in_an_interval_is_that_of_float64(fused, branches):
    config, params = fused
    random = np.random.default_rng(branches)
    condition = random.normal(size=(branches * 2, config.transformer.width)).astype(np.float32)
    noise = random.normal(size=(1, 2, config.token_channels)).astype(np.float32)
    settings = token_loop.SamplerConfig(branches, "ode", 10, guidance_start=0.2, guidance_end=0.7)
    assert settings.branches_along() == [(2, 1), (7, branches), (10, 1)]
    x = noise[0].astype(np.float64)
    for i in range(10):
        v = [velocity64(params["flow_head"], x, i / 10, c) for c in np.split(condition.astype(np.float64), branches)]
        guided = v[1] + 4 * (v[0] - v[1]) if branches == 2 else v[2] + 2 * (v[1] - v[2]) + 4 * (v[0] - v[1])
        x = x + (guided if 2 <= i < 7 else v[0]) / 10
    np.testing.assert_allclose(flow_token(config, params, settings, condition, noise), x, atol=2e-5)
    everywhere = dataclasses.replace(settings, guidance_start=0.0, guidance_end=1.0)
    assert np.abs(flow_token(config, params, everywhere, condition, noise) - x).max() > 0.01


def test_an_interval_of_all_times_is_plain_guidance(fused):
    config, params = fused
    condition, noise = np.eye(2, config.transformer.width, dtype=np.float32), np.ones((1, 1, config.token_channels), np.float32)
    plain = token_loop.SamplerConfig(2, "ab2", 8)
    widest = dataclasses.replace(plain, guidance_end=0.876)  # the last time is 0.875
    np.testing.assert_array_equal(*(flow_token(config, params, how, condition, noise) for how in (plain, widest)))


def test_outside_of_the_interval_the_head_computes_one_branch(fused):
    config, params = fused
    settings = token_loop.SamplerConfig(2, "ode", 10, guidance_start=0.2, guidance_end=0.7)
    condition, noise = np.zeros((6, config.transformer.width), np.float32), np.zeros((1, 3, config.token_channels), np.float32)
    times = token_loop.embed_times(config, settings, params)
    traced = jax.make_jaxpr(lambda c, x: token_loop.flow_step(config, settings, params, c, times, x, 4.0, 1.0))(
        condition, noise
    )
    scans = [scan for scan in equations(traced.jaxpr) if scan.primitive.name == "scan"]
    rows = [
        (scan.params["length"], {e.outvars[0].aval.shape[0] for e in equations(scan.params["jaxpr"].jaxpr, "logistic")})
        for scan in scans
    ]
    assert rows == [(2, {3}), (5, {6}), (3, {3})]


def test_no_compiler_may_join_the_modulations_of_a_token(fused):
    """XLA for GPUs would copy their kernels side by side, at every token."""
    config, params = fused
    settings = token_loop.SamplerConfig(2, "ode", 4)
    condition, noise = np.zeros((2, config.transformer.width), np.float32), np.zeros((1, 1, config.token_channels), np.float32)
    times = token_loop.embed_times(config, settings, params)
    traced = jax.make_jaxpr(lambda c, x: token_loop.flow_step(config, settings, params, c, times, x, 4.0, 1.0))(
        condition, noise
    )
    apart = [barrier.invars[1] for barrier in equations(traced.jaxpr, "optimization_barrier")]
    width = config.flow_head.width
    shapes = [(width, 3 * width)] * config.flow_head.layers + [(width, 2 * width)]
    assert [kernel.aval.shape for kernel in apart] == shapes and len(set(map(id, apart))) == len(apart)


def equations(jaxpr, name=None):
    """All equations of a jaxpr and of those inside of it; or those of one primitive."""
    for equation in jaxpr.eqns:
        if name in (None, equation.primitive.name):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


@pytest.mark.parametrize("bucket", [1, 16])
def test_the_step_after_a_prefill_is_the_end_of_a_whole_pass(fused, tiny_config, tiny_params, bucket):
    config, params = fused
    special = SpecialIds.from_config(config, range(20, 30), 10)
    rows = [frame_prompt([ids, image_prefix(special, 2, 3)], special, config) for ids in ([3, 14, 15, 9, 2, 6], [5, 3])]
    state = token_loop.prefill(config, params, align_rows(rows, bucket), branches=1, tokens=6)
    hidden, _ = token_loop.transformer_step(config, params, state.embedding, state.positions, state.cache, state.valid)
    for found, row in zip(hidden, rows, strict=True):
        whole = NextStep(tiny_config).apply({"params": tiny_params}, row_batch(row))
        np.testing.assert_allclose(found, whole[0, -1], atol=2e-5)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_map_token_takes_the_jumps_of_both_heads(tiny_config, tiny_params, cfg):
    """x + (t - s) (b + (t - s) a) from 0 to 1/4 and on to 1, by the methods that training calls."""
    config = dataclasses.replace(tiny_config, map_head=True)
    apply, images, branches = jax.jit(NextStep(config).apply, static_argnames="method"), 3, 1 if cfg == 1 else 2
    fresh = init_params(config, jax.random.key(1))["map_head"]
    head = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(2), leaf.shape), fresh)
    variables = {"params": tiny_params | {"map_head": head}}
    settings = token_loop.SamplerConfig(branches=branches, sampler="map", steps=2)
    condition = jax.random.normal(jax.random.key(3), (branches * images, config.transformer.width))
    noise = jax.random.normal(jax.random.key(4), (1, images, config.token_channels))

    @jax.jit
    def flow_step(params, condition, noise):
        times = token_loop.embed_times(config, settings, params)
        return token_loop.flow_step(config, settings, params, condition, times, noise, cfg, 1.0)

    found = flow_step(variables["params"], condition, noise)

    x = noise[0]
    for s, t in ((0.0, 0.25), (0.25, 1.0)):
        start, end = np.full(images, s, np.float32), np.full(images, t, np.float32)
        rows = np.tile(x, (branches, 1)), np.tile(start, branches), condition
        v = apply(variables, *rows, method="velocity")
        guided = v[:images] if cfg == 1 else v[images:] + cfg * (v[:images] - v[images:])
        conditions = condition[:images], condition[-images:], np.full(images, cfg, np.float32)
        bend = apply(variables, x, guided, v[:images], start, end, *conditions, method="acceleration")
        x = x + (t - s) * (guided + (t - s) * bend)
    np.testing.assert_allclose(found, x, atol=2e-5)
