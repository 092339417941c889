"""The image-token loop: one program, any chunks, rows that do not see each other."""

import jax
import numpy as np
import pytest

from nextstep_jax.config import preset
from nextstep_jax.data.sequence import ImageTokens, image_prefix
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.prompts import align_rows, frame_prompt, row_batch
from nextstep_jax.models.nextstep import NextStep
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
