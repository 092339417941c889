"""The path between noise and data, and the laws of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    ("law", "to_standard", "expected"),
    [
        (paths.logit_normal_times, lambda t: np.log(t / (1 - t)), scipy.stats.norm(0, 1)),
        (lambda k, s: paths.logit_normal_times(k, s, 0.5, 2.0), lambda t: np.log(t / (1 - t)), scipy.stats.norm(0.5, 2)),
        (paths.uniform_times, lambda t: t, scipy.stats.uniform()),
    ],
)
def test_times_follow_their_law(law, to_standard, expected):
    t = law(jax.random.key(1), (4000,))
    assert t.dtype == jnp.float32
    assert float(t.min()) >= 0 and float(t.max()) <= 1
    assert scipy.stats.kstest(to_standard(np.asarray(t, np.float64)), expected.cdf).pvalue > 0.01
