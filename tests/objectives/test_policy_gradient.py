"""Advantages, the clipped surrogate and the forward-process loss against their definitions and a toy with a known gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.errors import InputError
from nextstep_jax.flow import likelihood
from nextstep_jax.flow.samplers import step_table
from nextstep_jax.objectives.policy_gradient import (
    advantages,
    clipped_surrogate,
    informative,
    nft_loss,
    optimality,
    step_weight,
)

ALL = np.ones(5, bool)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["group", "global"]))
def test_advantages_of_a_group_sum_to_zero_and_stay_in_bounds(seed, deviation):
    rewards = np.random.default_rng(seed).uniform(size=(5, 8)).astype(np.float32)
    found = advantages(rewards, ALL, deviation)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-4)
    assert np.abs(found).max() <= 5


def test_advantages_have_the_deviation_asked_for():
    rewards = np.random.default_rng(0).uniform(size=(5, 8)) * np.arange(1, 6)[:, None]
    np.testing.assert_allclose(np.std(advantages(rewards, ALL), axis=1), 1, rtol=2e-3)
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(advantages(rewards, ALL, "global"), centered / rewards.std(), rtol=1e-3)
    with pytest.raises(InputError, match="group or global"):
        advantages(rewards, ALL, "batch")


def test_unanimous_groups_and_solved_ones_are_not_informative():
    rewards = jnp.asarray([[1, 1, 1, 1.0], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0.99], [0.98, 0.9, 0.96, 0.8]])
    assert informative(rewards, ALL).tolist() == [False, False, True, False, False]
    assert informative(rewards, ALL, max_mean=2.0).tolist() == [False, False, True, False, True]
    assert not informative(jnp.full((2, 3), 0.3), ALL[:2]).any()


def test_what_was_not_scored_counts_for_nothing():
    rewards = np.random.default_rng(1).uniform(size=(5, 8)).astype(np.float32)
    valid = np.array([True, True, False, True, True])
    wild = np.where(valid[:, None], rewards, 1e4 * rewards)
    np.testing.assert_allclose(
        advantages(wild, valid, "global")[valid], advantages(rewards[valid], ALL[:4], "global"), rtol=1e-5, atol=1e-6
    )
    kept = informative(wild, valid, max_mean=2.0)
    assert kept.tolist() == valid.tolist()
    assert not informative(wild, ~valid & False).any()


@pytest.mark.parametrize("weight, power", [("likelihood", (1, -1)), ("cps", (1, 1)), ("none", (0, 0))])
def test_weights_of_steps_are_those_of_their_gradients(weight, power):
    step = likelihood.transition(step_table("cps", 8), 2)
    rng = np.random.default_rng(5)
    velocity, noise = rng.normal(size=(2, 4)).astype(np.float32)
    gradient = jax.grad(lambda v: (step_weight(weight, step) * likelihood.log_ratio(step, v, velocity, noise)).sum())(velocity)
    factor = step.b ** power[0] * step.d ** power[1] * (2 if weight == "cps" else 1)
    np.testing.assert_allclose(gradient, factor * noise, rtol=1e-5)
    with pytest.raises(InputError, match="likelihood, cps, none"):
        step_weight("late", step)


@pytest.mark.parametrize("log_ratio, advantage, expected", [(0.0, 2.0, -2.0), (0.5, 2.0, -2.2), (0.5, -2.0, 2 * np.exp(0.5))])
def test_clipping_bounds_what_a_good_image_can_gain_and_not_what_a_bad_one_can_lose(log_ratio, advantage, expected):
    np.testing.assert_allclose(clipped_surrogate(log_ratio, advantage, 0.1), expected, rtol=1e-6)


def test_optimality_maps_advantages_to_probabilities():
    np.testing.assert_allclose(optimality(jnp.asarray([-9.0, -5, 0, 2.5, 5])), [0, 0, 0.5, 0.75, 1])


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_nft_at_the_old_field_is_the_signed_velocity_loss(beta):
    rng = np.random.default_rng(1)
    velocity, x, noise = rng.normal(size=(3, 6, 4))
    t, good = rng.uniform(0.1, 0.9, size=(2, 6))
    gradient = jax.grad(lambda v: nft_loss(v, velocity, x, noise, t, good, beta).sum())(jnp.asarray(velocity))
    residual = (1 - t)[:, None] * (velocity - (x - noise))
    scale = np.abs(residual).mean(axis=-1, keepdims=True)
    expected = 5 * (2 * good - 1)[:, None] * 2 * (1 - t)[:, None] * residual / scale / 4
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_nft_sends_no_gradient_to_the_old_field():
    rng = np.random.default_rng(2)
    velocity, old, x, noise = rng.normal(size=(4, 6, 4))
    t, good = rng.uniform(0.1, 0.9, size=(2, 6))
    assert not np.any(jax.grad(lambda old: nft_loss(velocity, old, x, noise, t, good, 0.5).sum())(jnp.asarray(old)))


def test_the_surrogates_gradient_is_that_of_the_expected_reward():
    """One token, one stochastic step, a linear field and the reward -|x - target|^2: the gradient is known in closed form."""
    step = likelihood.transition(step_table("cps", 8), 3)
    x, target, theta = jnp.asarray([0.3, -0.5]), jnp.asarray([0.4, 0.1]), jnp.asarray([0.7, -0.2])
    noise = jnp.asarray(np.random.default_rng(3).normal(size=(500, 200, 2)), jnp.float32)
    rewards = -jnp.sum(jnp.square(step.a * x + step.b * theta + step.d * noise - target), axis=-1)
    centered = rewards - rewards.mean(axis=1, keepdims=True)

    def surrogate(velocity):
        ratio = likelihood.log_ratio(step, jnp.broadcast_to(velocity, noise.shape), theta, noise)
        return clipped_surrogate(ratio, centered, 0.2).mean()

    expected = 2 * step.b * (step.a * x + step.b * theta - target)  # of minus the expected reward
    found = jax.grad(surrogate)(theta)
    np.testing.assert_allclose(found, expected * (1 - 1 / 200), rtol=0.05, atol=0.01)
