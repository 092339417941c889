"""Jacobi decoding: the tokens of sequential decoding in fewer steps, each image at its own pace."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep_jax.data.sequence import image_prefix
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.errors import InputError
from nextstep_jax.generation import jacobi, token_loop
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.prompts import align_rows, frame_prompt
from nextstep_jax.models.param_layouts import fuse_projections

TOKENS, ROW = 12, 4
SETTINGS = token_loop.SamplerConfig(branches=2, sampler="sde", steps=3, normalize_tokens=True)
GUIDANCE = np.stack([np.linspace(2, 4, TOKENS), np.ones(TOKENS)], 1).astype(np.float32)  # another strength at every token
TEXTS = ([5, 6, 7], [8, 9])


@pytest.fixture(scope="module", params=[False, True], ids=["", "gen_pos_embed"])
def model(request, tiny_config, tiny_params):

    config = tiny_config.with_transformer(fused_projections=True)
    return dataclasses.replace(config, use_gen_pos_embed=request.param), fuse_projections(tiny_params)


def prompt_of(config, texts, branches):
    special = SpecialIds.from_config(config, range(20, 30), 10)
    prefix = image_prefix(special, TOKENS // ROW, ROW)
    return align_rows([frame_prompt([t, prefix], special, config) for t in [*texts, *[[]] * len(texts) * (branches - 1)]], 16)


def draw(config, images, settings):
    keys = jax.vmap(lambda j: jax.random.fold_in(jax.random.key(0), j))(np.arange(images))
    return token_loop.draw_noise(keys, TOKENS, settings.num_noise_draws, config.token_channels)


def sequential(model, texts=TEXTS, settings=SETTINGS, noise=None):
    config, params = model
    state = token_loop.prefill(config, params, prompt_of(config, texts, settings.branches), settings.branches, TOKENS)
    noise = draw(config, len(texts), settings) if noise is None else noise
    return np.asarray(token_loop.decode_tokens(config, settings, params, state, noise, GUIDANCE, TOKENS).tokens)


def windows(model, window, tolerance=0.0, guess="last", stops=(TOKENS,), texts=TEXTS, settings=SETTINGS, noise=None):
    config, params = model
    how = jacobi.JacobiConfig(window, ROW, guess)
    state = jacobi.prefill(config, params, prompt_of(config, texts, settings.branches), settings.branches, TOKENS, how)
    noise = draw(config, len(texts), settings) if noise is None else noise
    for stop in stops:
        state = jacobi.decode_windows(config, settings, params, state, noise, GUIDANCE, stop, tolerance, how)
        assert state.decode.step.tolist() == [stop] * len(texts)
    return np.asarray(state.tokens[:, :TOKENS]), int(state.sweeps)


@pytest.mark.parametrize("window", [2, TOKENS + 3])
def test_tokens_are_those_of_sequential_decoding(model, window):
    found, sweeps = windows(model, window)
    np.testing.assert_allclose(found, sequential(model), atol=2e-5)
    assert sweeps <= TOKENS


def test_without_tolerance_a_small_window_gives_the_tokens_of_sequential_decoding_bit_for_bit(model):
    found, _ = windows(model, 2, texts=TEXTS[:1])
    np.testing.assert_array_equal(found, sequential(model, texts=TEXTS[:1]))


def test_without_tolerance_no_first_guess_changes_a_bit(model):
    first = windows(model, 5)[0]
    for guess in ("zero", "above", "shift"):
        np.testing.assert_array_equal(windows(model, 5, guess=guess)[0], first)


def test_a_tolerance_saves_sweeps_and_moves_tokens_by_as_little(model):
    found, sweeps = windows(model, 8, tolerance=1e-3)
    assert sweeps < TOKENS - 1
    programs = jacobi.decode_windows._cache_size()
    assert windows(model, 8, tolerance=0.5)[1] < sweeps and jacobi.decode_windows._cache_size() == programs
    expected = sequential(model)
    assert np.linalg.norm(found - expected, axis=-1).max() < 0.02 * np.linalg.norm(expected, axis=-1).min()


def test_stops_inside_a_window_change_nothing(model):
    np.testing.assert_allclose(windows(model, 5, stops=(1, 2, 7, TOKENS))[0], windows(model, 5)[0], atol=2e-5)


def test_an_image_does_not_depend_on_its_neighbours_pace(model):
    noise = draw(model[0], 2, SETTINGS)
    first = windows(model, 8, tolerance=1e-3, noise=noise)[0]
    other = windows(model, 8, tolerance=1e-3, noise=noise.at[:, :, 1].multiply(-1), texts=(TEXTS[0], [1]))[0]
    np.testing.assert_allclose(other[0], first[0], atol=2e-5)
    assert np.abs(other[1] - first[1]).max() > 0.1


def test_without_guidance_and_with_three_branches(tiny_config, tiny_params):
    model = tiny_config.with_transformer(fused_projections=True), fuse_projections(tiny_params)
    for branches in (1, 3):
        settings = token_loop.SamplerConfig(branches=branches, sampler="ode", steps=2)
        expected = sequential(model, settings=settings)
        np.testing.assert_allclose(windows(model, 5, settings=settings)[0], expected, atol=2e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.5]))
def test_accepted_are_the_leading_ones_that_settled_and_one_more(seed, width, tolerance):
    random = np.random.default_rng(seed)
    assumed = random.normal(size=(3, width, 4)).astype(np.float32)
    found = assumed + random.choice([0, 0, 0.05, 1], size=(3, width, 1)).astype(np.float32) * assumed
    counts = jacobi.count_accepted(found, assumed, tolerance)
    for b in range(3):
        expected = 1
        for j in range(width - 1):
            if np.linalg.norm(found[b, j] - assumed[b, j]) > tolerance * np.linalg.norm(found[b, j]):
                break
            expected += 1
        assert counts[b] == expected


def test_first_guesses():
    tokens = np.arange(1, 21, dtype=np.float32).reshape(1, 20, 1)  # token i holds i + 1
    at, known = np.arange(6, 14)[None], np.array([7])

    def guess(how, known=known, at=at):
        return np.asarray(jacobi.first_guess(how, tokens, known, at, 4))[0, :, 0].tolist()

    assert guess("zero") == [0] * 8
    assert guess("last") == [7] * 8
    assert guess("extrapolate") == [8] * 8
    assert guess("shift") == [0, 1, 2, 3, 4, 5, 6, 7]  # the window's last place is seven beyond what is known
    assert guess("shift", at=np.arange(5, 10)[None])[2:] == [5, 6, 7]
    assert guess("above") == [3, 4, 5, 6, 7, 4, 5, 6]  # rows of four: what is above an unknown token's unknown one counts
    for how in jacobi.FIRST_GUESSES:
        assert guess(how, np.array([0]), np.arange(3)[None]) == [0, 0, 0]
    assert guess("extrapolate", np.array([1]), np.arange(1, 4)[None]) == [1, 1, 1]
    assert guess("above", np.array([2]), np.arange(2, 6)[None]) == [2, 2, 1, 2]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"jacobi_window": 0}, "jacobi_window must be"),
        ({"jacobi_window": 5000}, "jacobi_window must be at most"),
        ({"jacobi_window": 2.5}, "jacobi_window must be"),
        ({"jacobi_tolerance": -0.1}, "jacobi_tolerance must be"),
        ({"jacobi_tolerance": 1.5}, "jacobi_tolerance must be"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        GenerationConfig(**values)
