"""Rollouts: the token loop's own images, what is kept of them, and what they depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.data.sequence import image_prefix
from nextstep_jax.errors import InputError
from nextstep_jax.flow.samplers import step_table
from nextstep_jax.generation import rollouts, token_loop
from nextstep_jax.generation.prompts import align_rows, frame_prompt
from nextstep_jax.generation.rollouts import RolloutConfig
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.objectives.policy_gradient import token_velocities

PROMPTS = ("a red circle", "a blue square left of a circle")
GRPO = RolloutConfig(images=3, steps=4, trained_steps=1, window=3)


@pytest.fixture(scope="module")
def framed(tiny_config, tiny_vocabulary):
    prefix = image_prefix(tiny_vocabulary.special, 2, 2)
    return [frame_prompt([text, prefix], tiny_vocabulary.special, tiny_config, tiny_vocabulary) for text in PROMPTS]


@pytest.fixture(scope="module")
def draw(tiny_config, tiny_params, framed):
    """(config, trained steps, step, prompts by number) -> (rows of prompts, rollouts, sampler)."""
    rows = rollouts.prompt_rows(framed, tiny_config.pad_id)

    def call(config, trained, step=0, numbers=(0, 1), normalize=True):
        sampler = config.sampler_config(1.0, normalize)
        prompts = rollouts.repeat_prompts(jax.tree.map(lambda a: jnp.asarray(a[list(numbers)]), rows), config.images)
        keys = rollouts.draw_keys(jax.random.key(7), step, jnp.asarray(numbers), config.images, config.shared_noise)
        arguments = (prompts, keys, jnp.asarray(trained, jnp.int32))
        found = rollouts.jit_rollouts(tiny_config, config, sampler, tiny_params, *arguments, tokens=4)
        return prompts, found, sampler

    return call


def test_without_trained_steps_they_are_what_the_token_loop_draws(draw, tiny_config, tiny_params, framed):
    config = RolloutConfig(images=2, sampler="ab2", steps=3)
    prompts, found, sampler = draw(config, [])
    keys, _ = rollouts.draw_keys(jax.random.key(7), 0, jnp.arange(2), 2, False)
    noise = token_loop.draw_noise(keys, 4, 1, tiny_config.token_channels)
    state = token_loop.prefill(tiny_config, tiny_params, align_rows([framed[i] for i in (0, 0, 1, 1)]), 1, 4)
    expected = token_loop.decode_tokens(tiny_config, sampler, tiny_params, state, noise, np.ones((4, 2), np.float32), 4)
    np.testing.assert_allclose(rollouts.read_tokens(sampler, found.tokens), expected.tokens, atol=2e-5)
    assert found.states.shape == (4, 4, 0, tiny_config.token_channels)


def test_the_parallel_pass_sees_the_velocity_that_each_token_was_drawn_with(draw, tiny_config, tiny_params):
    """Of one noisy step the drawn token, its state and its noise give the velocity back, before tokens are normalized."""
    config = RolloutConfig(images=2, steps=1, trained_steps=1, window=1, density="sde")
    prompts, found, sampler = draw(config, [0])
    a, b, _, d = step_table("sde", 1, 1.0, 0.8)[0]
    drawn = (found.tokens - a * found.states[:, :, 0] - d * found.noise[:, :, 0]) / b
    batch = rollouts.rollout_batch(tiny_config, prompts, rollouts.read_tokens(sampler, found.tokens))
    t = jnp.zeros(found.states.shape[:3])
    velocity = token_velocities(NextStep(tiny_config), {**tiny_params}, batch, prompts.lengths, found.states, t)
    np.testing.assert_allclose(velocity[:, :, 0], drawn, atol=2e-4)
    assert np.abs(np.asarray(drawn)).max() > 0.5
    read = rollouts.read_tokens(sampler, found.tokens)
    assert np.abs((read - a * found.states[:, :, 0] - d * found.noise[:, :, 0]) / b - velocity[:, :, 0]).max() > 0.1


def test_kept_noise_is_the_noise_of_the_step_and_other_steps_have_none(draw):
    """With the kept noise taken out, images that begin alike end alike."""
    shared = dataclasses.replace(GRPO, shared_noise=True)
    _, found, _ = draw(shared, [1])
    first = found.states[:, 0, 0].reshape(2, 3, -1)
    np.testing.assert_array_equal(first[:, 0], first[:, 1])  # the first token's state before its noisy step
    noise = np.asarray(found.noise).reshape(2, 3, -1)
    assert len({row.tobytes() for group in noise for row in group}) == 6
    tokens = np.asarray(found.tokens[:, 0]).reshape(2, 3, -1)
    assert np.abs(tokens[:, 0] - tokens[:, 1]).max() > 0.01
    _, other, _ = draw(GRPO, [1])
    apart = np.asarray(other.states[:, 0, 0]).reshape(2, 3, -1)
    assert np.abs(apart[:, 0] - apart[:, 1]).max() > 0.1


def test_an_image_depends_on_run_step_prompt_and_its_number_alone(draw):
    _, both, _ = draw(GRPO, [0])
    _, swapped, _ = draw(GRPO, [0], numbers=(1, 0))
    for one, other in zip(both, swapped, strict=True):
        np.testing.assert_allclose(one, np.roll(np.asarray(other), 3, axis=0), atol=1e-5)
    _, later, _ = draw(GRPO, [0], step=1)
    assert np.abs(np.asarray(later.noise - both.noise)).max() > 0.1
    _, again, _ = draw(GRPO, [0])
    np.testing.assert_array_equal(both.tokens, again.tokens)


def test_which_step_is_trained_needs_no_new_program(draw):
    draw(GRPO, [0])
    count = rollouts.jit_rollouts._cache_size()
    draw(GRPO, [2], step=5)
    assert rollouts.jit_rollouts._cache_size() == count


def test_only_trained_rows_of_the_table_are_noisy():
    config = RolloutConfig(steps=5, trained_steps=2, window=4)
    table = np.asarray(rollouts.rollout_table(config, 2.0, jnp.asarray([1, 3])))
    noisy, plain = step_table("cps", 5, 2.0, 0.8), step_table("ode", 5, 2.0)
    np.testing.assert_array_equal(table[[1, 3]], noisy[[1, 3]])
    np.testing.assert_array_equal(table[[0, 2, 4]], plain[[0, 2, 4]])


def test_trained_steps_are_different_ones_of_the_window():
    config = RolloutConfig(steps=8, trained_steps=2, window=3)
    chosen = [tuple(map(int, rollouts.choose_steps(config, jax.random.key(i)))) for i in range(40)]
    assert set(chosen) == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 4, "trained_steps": 1, "window": 4}, "step 3 of 'cps', which has no density"),
        ({"steps": 4, "trained_steps": 1, "density": "sde", "noise_level": 0.0}, "has no density"),
        ({"steps": 4, "trained_steps": 3}, "window must hold the 3 trained of 4 steps, found 2"),
        ({"steps": 4, "trained_steps": 1, "sampler": "heun"}, "sampler must be ode"),
        ({"sampler": "cps", "noise_level": 1.5}, r"noise level of sampler 'cps'"),
    ],
)
def test_settings_without_a_density_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        RolloutConfig(**fields)


def test_rows_hold_prompt_and_image_and_nothing_else(tiny_config, framed):
    prompts = jax.tree.map(jnp.asarray, rollouts.prompt_rows(framed, tiny_config.pad_id))
    tokens = np.random.default_rng(0).normal(size=(2, 4, tiny_config.token_channels)).astype(np.float32)
    batch = rollouts.rollout_batch(tiny_config, prompts, tokens)
    for row, segment in enumerate(framed):
        length = len(segment)
        np.testing.assert_array_equal(batch.text_ids[row, :length], segment.text_ids)
        np.testing.assert_array_equal(batch.image_tokens[row, length : length + 4], tokens[row])
        np.testing.assert_array_equal(np.flatnonzero(batch.is_image[row]), np.arange(length, length + 4))
        np.testing.assert_array_equal(batch.positions[row, : length + 4], np.arange(length + 4))
        assert not np.any(batch.segment_ids[row, length + 4 :]) and np.all(batch.segment_ids[row, : length + 4] == 1)
        assert not np.any(batch.image_tokens[row, :length])
