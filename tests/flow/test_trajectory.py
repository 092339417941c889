"""The way of every sampler ends where the sampler does, and passes through what its steps say."""

import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.flow import samplers

STEPS = 5


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_ends_where_the_sampler_ends(sampler):
    count = samplers.num_noise_draws(sampler, STEPS)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(count, 2, 3)), jnp.float32)
    how = dict(sampler=sampler, steps=STEPS, shift=1.5)
    times, states = samplers.trajectory(lambda x, i: 2.0 - x, noise, **how)
    assert states.shape == (STEPS + 1, 2, 3) and times.shape == (STEPS + 1,)
    np.testing.assert_array_equal(states[0], noise[0])
    np.testing.assert_allclose(states[-1], samplers.sample(lambda x, i: 2.0 - x, noise, **how), rtol=1e-6)


@pytest.mark.parametrize("sampler", ["ode", "heun"])
def test_a_constant_field_is_walked_at_constant_speed(sampler):
    noise = jnp.zeros((1, 1, 2))
    times, states = samplers.trajectory(lambda x, i: jnp.asarray([[1.0, -3.0]]), noise, sampler=sampler, steps=STEPS, shift=2.0)
    np.testing.assert_allclose(states[:, 0], times[:, None] * [1.0, -3.0], atol=1e-6)
