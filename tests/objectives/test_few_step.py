"""Few-step distillation against a flow whose map is known: Gaussian data N(m, sigma^2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.objectives import few_step

MEAN, SIGMA, P, C = 0.7, 0.4, 64, 3


def deviation(t):
    return jnp.sqrt((t * SIGMA) ** 2 + (1 - t) ** 2)


def velocity(x, t):
    """E[data - noise | x_t = x], by the rule of jointly normal variables."""
    t = t[:, None]
    slope = (t * SIGMA**2 - (1 - t)) / deviation(t) ** 2
    return MEAN + slope * (x - t * MEAN)


def average_velocity(x, s, t):
    """(X_{s,t}(x) - x) / (t - s): the flow keeps a point's distance from the mean in deviations. At t = s its limit."""
    s, t = s[:, None], t[:, None]
    gap = jnp.where(t - s < 1e-6, 1.0, t - s)
    jumped = t * MEAN + deviation(t) / deviation(s) * (x - s * MEAN)
    return jnp.where(t - s < 1e-6, velocity(x, s[:, 0]), (jumped - x) / gap)


@pytest.fixture(scope="module")
def points():
    random = np.random.default_rng(0)
    s, t = np.sort(random.uniform(0, 1, (2, P)), axis=0).astype(np.float32)
    s[:8], t[:8] = 0, 1
    x_s = s[:, None] * (MEAN + SIGMA * random.normal(size=(P, C))) + (1 - s[:, None]) * random.normal(size=(P, C))
    return x_s.astype(np.float32), random.normal(size=(P, C)).astype(np.float32), s, t


@pytest.mark.parametrize("terms", [few_step.lagrangian_terms, few_step.shortcut_terms])
def test_the_true_map_has_no_error(terms, points):
    found = terms(average_velocity, velocity, *points)
    for value in found:
        np.testing.assert_allclose(value, 0, atol=1e-8)


def test_the_true_map_is_where_the_flow_arrives(points):
    noise = points[1]
    np.testing.assert_allclose(few_step.solve(velocity, noise, 400), MEAN + SIGMA * noise, atol=1e-3)
    found = few_step.regression_terms(average_velocity, velocity, noise)
    np.testing.assert_allclose(found.jump, 0, atol=1e-4)
    assert found.diagonal.max() == 0


@pytest.mark.parametrize("terms", [few_step.lagrangian_terms, few_step.shortcut_terms])
def test_a_wrong_map_has_an_error(terms, points):
    """The teacher's own velocity is a map that is right on the diagonal and wrong beyond."""
    found = terms(lambda x, s, t: velocity(x, s), velocity, *points)
    np.testing.assert_allclose(found.diagonal, 0, atol=1e-10)
    assert np.mean(found.jump) > 1e-2


def test_the_rate_is_the_derivative_of_the_jump(points):
    x, _, s, t = points
    t = t * 0.9 + 0.05
    s = np.minimum(s, t - 0.02)
    _, rate = few_step.jump_and_rate(average_velocity, x, s, t)
    h = 1e-2
    ends = [np.asarray(few_step.jump(average_velocity, x, s, jnp.asarray(t + d)), np.float64) for d in (-h, h)]
    np.testing.assert_allclose(rate, (ends[1] - ends[0]) / (2 * h), atol=2e-2)


@pytest.mark.parametrize("method", ["lagrangian", "shortcut", "regression"])
def test_gradients_lead_to_the_map(method, points):
    """A scale a on the true average velocity: the loss is least at a = 1, from both sides, and its gradient is its own."""
    x_s, x_t, s, t = points

    def loss(a):
        def student(x, s, t):
            return a * average_velocity(x, s, t)

        if method == "regression":
            return few_step.regression_terms(student, velocity, x_t).loss.mean()
        terms = few_step.lagrangian_terms if method == "lagrangian" else few_step.shortcut_terms
        return terms(student, velocity, x_s, x_t, s, t).loss.mean()

    assert jax.grad(loss)(0.8) < 0 < jax.grad(loss)(1.2)
    assert abs(jax.grad(loss)(1.0)) < 5e-3


def test_no_gradient_reaches_the_teacher(points):
    x_s, x_t, s, t = points
    for terms in (few_step.lagrangian_terms, few_step.shortcut_terms):
        gradient = jax.grad(
            lambda a, terms=terms: terms(average_velocity, lambda x, t: a * velocity(x, t), *points).loss.sum()
        )(0.9)
        assert gradient == 0


def test_times_are_ordered_and_some_are_whole_jumps():
    s, t = few_step.draw_times(jax.random.key(0), 4000)
    assert bool(jnp.all((s >= 0) & (s <= t) & (t <= 1)))
    assert 0.03 < np.mean((s == 0) & (t == 1)) < 0.07
    assert 0.17 < np.mean(s == 0) < 0.23
