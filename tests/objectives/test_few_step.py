"""Few-step distillation against a flow whose map is known: Gaussian data N(m, sigma^2), in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.objectives import few_step
from nextstep_jax.objectives.few_step import Velocities

MEAN, SIGMA, P, C = 0.7, 0.4, 64, 3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def deviation(t):
    return jnp.sqrt((t * SIGMA) ** 2 + (1 - t) ** 2)


def velocity(x, t):
    """E[data - noise | x_t = x], by the rule of jointly normal variables."""
    t = t[:, None]
    slope = (t * SIGMA**2 - (1 - t)) / deviation(t) ** 2
    guided = MEAN + slope * (x - t * MEAN)
    return Velocities(guided, guided)


def acceleration(x, velocities, s, t):
    """What carries x to X_{s,t}(x): the flow keeps a point's distance from the mean in deviations."""
    s, t = s[:, None], t[:, None]
    arrived = t * MEAN + deviation(t) / deviation(s) * (x - s * MEAN)
    return (arrived - x - (t - s) * velocities.guided) / (t - s) ** 2


def straight(x, velocities, s, t):
    return jnp.zeros_like(x)


@pytest.fixture(scope="module")
def points():
    random = np.random.default_rng(0)
    s = random.uniform(0, 0.9, P)
    t = s + (1 - s) * random.uniform(0.1, 1, P)
    s[:8], t[:8] = 0, 1
    x = s[:, None] * (MEAN + SIGMA * random.normal(size=(P, C))) + (1 - s[:, None]) * random.normal(size=(P, C))
    return x, s, t


LOSSES = [few_step.lagrangian_loss, few_step.shortcut_loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_true_map_has_no_error(loss, points):
    for value in loss(acceleration, velocity, *points):
        np.testing.assert_allclose(value, 0, atol=1e-20)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_straight_map_has_an_error(loss, points):
    assert np.mean(loss(straight, velocity, *points)[1]) > 1e-2


def test_a_jump_is_where_the_flow_arrives(points):
    """By 200 steps of the midpoint rule."""
    x, s, t = points
    found = few_step.jump(acceleration, velocity(x, s), x, s, t)
    h = (t - s) / 200

    def step(k, x):
        half = x + (h / 2)[:, None] * velocity(x, s + k * h).guided
        return x + h[:, None] * velocity(half, s + (k + 0.5) * h).guided

    np.testing.assert_allclose(found, jax.lax.fori_loop(0, 200, step, jnp.asarray(x)), atol=1e-3)


def test_the_rate_is_the_derivative_of_the_jump(points):
    x, s, t = points
    velocities, h = velocity(x, s), 1e-5
    _, rate = few_step.jump_and_rate(acceleration, velocities, x, s, t)
    before, after = (few_step.jump(acceleration, velocities, x, s, t + d) for d in (-h, h))
    np.testing.assert_allclose(rate, (after - before) / (2 * h), atol=1e-7)
    np.testing.assert_allclose(rate, velocity(few_step.jump(acceleration, velocities, x, s, t), t).guided, atol=1e-10)


@pytest.fixture(scope="module")
def trajectory():
    noise = np.random.default_rng(1).normal(size=(P, C))
    with jax.enable_x64():
        return noise, few_step.follow(velocity, jnp.asarray(noise), 120)


def test_a_trajectory_follows_the_flow(trajectory):
    noise, found = trajectory
    np.testing.assert_allclose(found.times, np.arange(121) / 120)
    expected = found.times[:, None, None] * MEAN + deviation(found.times)[:, None, None] * noise
    np.testing.assert_allclose(found.points, expected, atol=1e-3)
    for k in (0, 60, 119):
        expected = velocity(found.points[k], jnp.full(P, k / 120)).guided
        np.testing.assert_allclose(found.velocities.guided[k], expected, atol=1e-12)


def test_regression_knows_the_map_and_a_wrong_one(trajectory):
    begin, end = jnp.asarray([0, 0, 60, 30]), jnp.asarray([120, 60, 120, 31])
    loss, error = few_step.regression_loss(acceleration, trajectory[1], begin, end)
    assert error.shape == (4, P)
    np.testing.assert_allclose(error, 0, atol=1e-4)
    np.testing.assert_allclose(loss, error * np.array([1, 0.5, 0.5, 1 / 120])[:, None], rtol=1e-5)
    _, wrong = few_step.regression_loss(straight, trajectory[1], begin, end)
    x = trajectory[1].points
    expected = np.mean(np.square((x[60] - x[0]) * 2 - trajectory[1].velocities.guided[0]), axis=-1)
    np.testing.assert_allclose(wrong[1], expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["lagrangian", "shortcut", "regression"])
def test_gradients_lead_to_the_map(method, points, trajectory):
    """A scale on the true acceleration: the loss is least at 1, from both sides."""

    def loss(scale):
        def student(*arguments):
            return scale * acceleration(*arguments)

        if method == "regression":
            jumps = jnp.asarray([0, 0, 60]), jnp.asarray([120, 60, 120])
            return few_step.regression_loss(student, trajectory[1], *jumps)[0].mean()
        return getattr(few_step, f"{method}_loss")(student, velocity, *points)[0].mean()

    assert jax.grad(loss)(0.8) < 0 < jax.grad(loss)(1.2)
    assert abs(jax.grad(loss)(1.0)) < 2e-3


def test_no_gradient_reaches_the_flow(points):
    def scaled(scale):
        return lambda x, t: jax.tree.map(lambda v: scale * v, velocity(x, t))

    for loss in LOSSES:
        gradient = jax.grad(lambda scale, loss=loss: loss(straight, scaled(scale), *points)[0].sum())(0.9)
        assert gradient == 0
    jumps = jnp.asarray([0]), jnp.asarray([4])
    noise = jnp.asarray(points[0])
    gradient = jax.grad(
        lambda scale: few_step.regression_loss(straight, few_step.follow(scaled(scale), noise, 4), *jumps)[0].sum()
    )(0.9)
    assert gradient == 0


def test_jumps_are_those_of_sampling_and_one_more():
    for seed in range(5):
        begin, end = map(np.asarray, few_step.draw_jumps(jax.random.key(seed)))
        assert list(zip(begin, end, strict=True))[:-1] == [(0, 16), (0, 4), (4, 16), (0, 1), (1, 4), (4, 9), (9, 16)]
        assert 0 <= begin[-1] < end[-1] <= 16


def test_times_are_ordered_and_some_are_whole_jumps():
    s, t = few_step.draw_times(jax.random.key(0), 4000)
    assert bool(jnp.all((s >= 0) & (s <= t) & (t <= 1)))
    assert 0.03 < np.mean((s == 0) & (t == 1)) < 0.07
    assert 0.17 < np.mean(s == 0) < 0.23
