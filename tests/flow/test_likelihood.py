"""Densities of sampler steps against scipy, finite differences, and the sampler itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nextstep_jax.errors import InputError
from nextstep_jax.flow import likelihood
from nextstep_jax.flow.samplers import step_table

STEPS = [("sde", 10, 9), ("sde", 10, 0), ("1.1", 6, 5), ("cps", 8, 3), ("cps", 8, 6), ("august2025", 8, 4)]


def draws(seed: int, *shape: int, count: int = 4) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32))


@pytest.mark.parametrize("sampler, steps, index", STEPS)
def test_log_prob_is_the_normal_density_of_scipy(sampler, steps, index):
    step = likelihood.transition(step_table(sampler, steps), index)
    x, velocity, noise, _ = draws(0, 5, 7)
    following = step.a * x + step.b * velocity + step.d * noise
    expected = scipy.stats.norm.logpdf(np.float64(following), np.float64(step.a * x + step.b * velocity), step.d).sum(-1)
    np.testing.assert_allclose(likelihood.log_prob(step, x, velocity, following), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sampler, steps, index", STEPS)
def test_log_ratio_is_a_difference_of_log_densities(sampler, steps, index):
    step = likelihood.transition(step_table(sampler, steps), index)
    x, old, change, noise = (np.float64(array) for array in draws(1, 5, 7))
    new = old + 0.1 * change
    following = step.a * x + step.b * old + step.d * noise
    exact = [scipy.stats.norm.logpdf(following, step.a * x + step.b * v, step.d).sum(-1) for v in (new, old)]
    np.testing.assert_allclose(likelihood.log_ratio(step, new, old, noise), exact[0] - exact[1], rtol=1e-5, atol=1e-5)


def test_log_ratio_keeps_its_digits_where_a_difference_of_densities_loses_them():
    step = likelihood.transition(step_table("sde", 10), 9)
    x, old, change, noise = draws(2, 64)
    x, new = 1000 * x, old + np.float32(1e-4) * change
    weight = np.float64(step.b) / step.d * (np.float64(new) - old)
    expected = np.sum(noise * weight) - 0.5 * np.sum(weight**2)
    np.testing.assert_allclose(likelihood.log_ratio(step, new, old, noise), expected, rtol=1e-4)


@pytest.mark.parametrize("sampler, steps, index", STEPS)
def test_on_policy_the_ratio_is_one_and_the_divergence_zero_with_the_score_as_gradient(sampler, steps, index):
    step = likelihood.transition(step_table(sampler, steps), index)
    velocity, noise, *_ = draws(3, 2, 5)
    assert not np.any(likelihood.log_ratio(step, velocity, velocity, noise))
    assert not np.any(likelihood.kl(step, velocity, velocity))
    score = jax.grad(lambda v: jnp.sum(likelihood.log_ratio(step, v, velocity, noise)))(jnp.asarray(velocity))
    np.testing.assert_allclose(score, step.b / step.d * noise, rtol=1e-5)


def test_divergence_is_the_mean_log_ratio_under_the_first_field():
    """KL(p || q) = E_p[log p - log q], estimated with 200,000 draws."""
    step = likelihood.transition(step_table("cps", 8), 3)
    velocity, reference, *_ = draws(4, 3)
    noise = np.random.default_rng(5).normal(size=(200_000, 3)).astype(np.float32)
    estimate = -np.mean(likelihood.log_ratio(step, reference, velocity, noise))
    np.testing.assert_allclose(likelihood.kl(step, velocity, reference), estimate, rtol=0.02)


def test_which_steps_have_a_density():
    expected = {"sde": [1] * 6, "1.1": [1] * 6, "cps": [1] * 5 + [0], "august2025": [1] * 5 + [0]}
    for sampler, wanted in (expected | dict.fromkeys(("ode", "ab2"), [0] * 6) | {"heun": [0] * 11}).items():
        assert likelihood.has_density(step_table(sampler, 6)).astype(int).tolist() == wanted, sampler


@pytest.mark.parametrize("sampler, index, message", [("cps", 5, "no density"), ("ab2", 2, "none"), ("sde", 6, r"\[0, 6\)")])
def test_a_step_without_a_density_is_refused(sampler, index, message):
    with pytest.raises(InputError, match=message):
        likelihood.transition(step_table(sampler, 6), index)
