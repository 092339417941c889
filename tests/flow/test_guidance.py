"""Guidance over one, two and three branches, and its schedules."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nextstep_jax.errors import InputError
from nextstep_jax.flow import guidance
from tests.conftest import GOLDENS

LATER = json.loads((GOLDENS / "cases_later.json").read_text())
strengths = st.floats(0, 20)


@pytest.mark.parametrize(
    ("cfg", "image_cfg", "expected"), [(1, 1, 1), (3, 1, 2), (7.5, 2, 3), (1, 2, 3), (1.0001, 1, 2), (1, 1.0001, 3)]
)
def test_number_of_branches(cfg, image_cfg, expected):
    assert guidance.num_branches(cfg, image_cfg) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5,), "at least 1 and at most 1000, found 0.5"),
        ((-3.0,), "at least 1"),
        ((float("nan"),), "at least 1"),
        ((float("inf"),), "at least 1"),
        ((2.0, 0.5), "image_cfg"),
        ((2.0, 2.0, False), "needs an input image"),
    ],
)
def test_strengths_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        guidance.num_branches(*arguments)


def test_no_image_is_fine_without_image_guidance():
    assert guidance.num_branches(3.0, 1.0, has_image=False) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 3), strengths, strengths, st.booleans())
def test_equal_branches_are_left_alone(seed, branches, cfg, image_cfg, rescale):
    v = np.random.default_rng(seed).normal(size=(2, 5)).astype(np.float32)
    guided = guidance.guide(np.tile(v, (branches, 1)), cfg, image_cfg, branches, rescale)
    # Rescaling divides by the norm plus 1e-6, as the release does: no number moves by more than that.
    np.testing.assert_allclose(guided, v, rtol=1e-6, atol=1e-6 if rescale else 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 3))
def test_strength_one_is_the_conditional_velocity(seed, branches):
    v = np.random.default_rng(seed).normal(size=(2 * branches, 5)).astype(np.float32)
    np.testing.assert_allclose(guidance.guide(v, 1.0, 1.0, branches), v[:2], atol=1e-5)


@pytest.mark.parametrize("branches", [2, 3])
def test_rescale_matches_the_release(branches):
    golden, case = load_file(GOLDENS / "sampler_feb.safetensors"), LATER["sampler_feb"][f"rescale.mult{branches}"]
    name = f"rescale.mult{branches}"
    plain = guidance.guide(golden[f"{name}.v"], case["cfg"], case["cfg_img"], branches)
    rescaled = guidance.guide(golden[f"{name}.v"], case["cfg"], case["cfg_img"], branches, rescale=True)
    np.testing.assert_allclose(plain, golden[f"{name}.plain"], atol=2e-5)
    np.testing.assert_allclose(rescaled, golden[f"{name}.rescaled"], atol=2e-5)
    factors = np.linalg.norm(rescaled, axis=-1) / np.linalg.norm(plain, axis=-1)
    np.testing.assert_allclose(factors, case["factor"], atol=1e-5)


def test_rescale_needs_every_strength_above_one():
    golden, case = load_file(GOLDENS / "sampler_feb.safetensors"), LATER["sampler_feb"]["rescale.mult3"]
    rescaled = guidance.guide(golden["rescale.mult3.v"], case["cfg"], 1.0, 3, rescale=True)
    np.testing.assert_allclose(rescaled, golden["rescale.mult3.img1"], atol=2e-5)


@pytest.mark.parametrize("branches", [2, 3])
def test_strengths_may_be_traced(branches):
    v = jax.random.normal(jax.random.key(0), (2 * branches, 4))
    traced = jax.jit(lambda c, i: guidance.guide(v, c, i, branches, rescale=True))(3.0, 2.0)
    np.testing.assert_allclose(traced, guidance.guide(v, 3.0, 2.0, branches, rescale=True), rtol=1e-6)


@pytest.mark.parametrize("branches", [0, 2, 4])
def test_rows_must_fit_the_branches(branches):
    with pytest.raises(InputError, match="branches"):
        guidance.guide(jnp.zeros((3, 4)), 2.0, 1.0, branches)


@pytest.mark.parametrize("name", LATER["cfg_per_token_feb_linear"])
def test_rising_schedule_matches_the_release(name):
    cfg, n = float(name.split("_")[0].removeprefix("cfg")), int(name.split("_n")[1])
    found = [guidance.schedule("rising", cfg, k, n) for k in range(n)]
    np.testing.assert_array_equal(found, LATER["cfg_per_token_feb_linear"][name])


@pytest.mark.parametrize(("name", "cfg"), [("linear", 3.0), ("linear", 7.5), ("constant", 7.5)])
def test_august_schedules(name, cfg):
    n = 16
    found = [guidance.schedule(name, cfg, k, n) for k in range(n)]
    expected = [cfg] * n if name == "constant" else [1 + (cfg - 1) * (n - k) / n for k in range(n)]
    np.testing.assert_array_equal(found, expected)
    assert found[0] == cfg and found[-1] > 1


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(guidance.SCHEDULES), st.floats(1, 20), st.integers(1, 64))
def test_schedules_trace_and_stay_between_one_and_the_strength(name, cfg, n):
    k = np.arange(n, dtype=np.float32)
    values = np.asarray(guidance.schedule(name, jnp.float32(cfg), jnp.asarray(k), n))
    assert values.min() >= 1 - 1e-5 and values.max() <= cfg * (1 + 1e-5)


def test_unknown_schedule():
    with pytest.raises(InputError, match="schedule"):
        guidance.schedule("cosine", 2.0, 0, 4)
