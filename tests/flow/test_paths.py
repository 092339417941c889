"""The path between noise and data, and the timestep distributions of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nextstep_jax.errors import InputError
from nextstep_jax.flow import paths
from tests.conftest import GOLDENS

times = st.floats(0, 1)
shifts = st.floats(0.05, 20)


@given(st.integers(0, 2**31 - 1))
def test_path_starts_at_noise_and_ends_at_data(seed):
    x, noise = np.random.default_rng(seed).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(paths.interpolate(x, noise, np.zeros(3, np.float32)), noise)
    np.testing.assert_array_equal(paths.interpolate(x, noise, np.ones(3, np.float32)), x)


@given(st.integers(0, 2**31 - 1), times)
def test_velocity_carries_any_point_to_the_data(seed, t):
    x, noise = np.random.default_rng(seed).normal(size=(2, 3, 5)).astype(np.float32)
    t = np.full(3, t, np.float32)
    point = paths.interpolate(x, noise, t)
    np.testing.assert_allclose(point + (1 - t[:, None]) * paths.velocity_target(x, noise), x, atol=1e-5)


@given(shifts)
def test_shift_fixes_both_ends(shift):
    np.testing.assert_array_equal(paths.shift_times(np.array([0.0, 1.0]), shift), [0, 1])


@given(times, times, shifts)
def test_shift_keeps_the_order(a, b, shift):
    low, high = paths.shift_times(np.array(sorted((a, b))), shift)
    assert low <= high
    if high > low:
        assert sorted((a, b))[1] > sorted((a, b))[0]


@given(times, shifts)
def test_shift_and_its_inverse_cancel(t, shift):
    assert paths.shift_times(paths.shift_times(np.float64(t), shift), 1 / shift) == pytest.approx(t, abs=1e-9)


def test_shift_above_one_moves_towards_noise():
    assert paths.shift_times(np.float64(0.96), 3.2) == pytest.approx(0.882, abs=5e-4)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_shift_must_be_positive(shift):
    with pytest.raises(InputError, match="shift"):
        paths.shift_times(np.float64(0.5), shift)


def test_releases_draw_times_as_sigmoid_of_a_normal():
    golden = load_file(GOLDENS / "train.safetensors")
    np.testing.assert_allclose(jax.nn.sigmoid(golden["u"]), golden["t"], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "to_standard", "expected"),
    [
        ({}, scipy.special.logit, scipy.stats.norm(0, 1)),
        ({"mean": 0.5, "std": 2.0}, scipy.special.logit, scipy.stats.norm(0.5, 2)),
        ({"distribution": "uniform"}, lambda t: t, scipy.stats.uniform()),
        ({"distribution": "uniform", "shift": 3.0}, lambda t: 3 * t / (1 + 2 * t), scipy.stats.uniform()),
        ({"shift": 0.5}, lambda t: scipy.special.logit(t) + np.log(0.5), scipy.stats.norm(0, 1)),
    ],
)
@pytest.mark.parametrize("stratified", [False, True])
def test_times_follow_their_distribution(settings, to_standard, expected, stratified):
    """A shift s adds -log s to the logit of a time."""
    t = paths.TimestepDistribution(**settings, stratified=stratified).sample(jax.random.key(1), (1000, 4))
    assert t.dtype == jnp.float32
    assert float(t.min()) >= 0 and float(t.max()) <= 1
    uniform = expected.cdf(to_standard(np.asarray(t, np.float64)))
    assert scipy.stats.kstest(uniform.ravel(), "uniform").pvalue > 0.01
    in_order = np.array_equal(np.floor(4 * uniform), np.broadcast_to(np.arange(4), t.shape))
    assert in_order == stratified


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distribution": "beta"}, "distribution must be"),
        ({"mean": float("inf")}, "mean must be"),
        ({"std": 0.0}, "std must be a positive number"),
        ({"shift": -1.0}, "shift must be a positive number"),
    ],
)
def test_what_is_no_distribution_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        paths.TimestepDistribution(**settings)


@pytest.mark.parametrize("target", paths.ERROR_TARGETS)
def test_error_weights_are_those_of_what_a_velocity_implies(target):
    rng = np.random.default_rng(0)
    x, noise, velocity, t = *rng.normal(size=(3, 50, 4)), rng.uniform(size=50)
    point = t[:, None] * x + (1 - t[:, None]) * noise
    implied = {"velocity": velocity, "data": point + (1 - t[:, None]) * velocity, "noise": point - t[:, None] * velocity}
    true = {"velocity": x - noise, "data": x, "noise": noise}
    error = np.square(implied[target] - true[target]).sum(1)
    weighted = paths.error_weight(target, jnp.asarray(t)) * np.square(velocity - (x - noise)).sum(1)
    np.testing.assert_allclose(weighted, error, rtol=1e-5)
