"""Samplers against the releases' numbers, against float64 programs written out step by step, and on fields with known ends."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nextstep_jax.errors import InputError
from nextstep_jax.flow import guidance, samplers
from nextstep_jax.models.nextstep import NextStep
from tests.conftest import GOLDENS
from tests.released import tiny_model

FILES = {name: load_file(GOLDENS / f"{name}.safetensors") for name in ("sampler", "sampler_hf11", "sampler_feb")}
AUGUST = json.loads((GOLDENS / "cases.json").read_text())["sampler"]
LATER = json.loads((GOLDENS / "cases_later.json").read_text())


def _cases():
    """(file, case name, sampler, settings) of every stored run."""
    for name, case in AUGUST.items():
        yield "sampler", name, "august2025", case | {"cfg_img": case["cfg2"]}
    for name, case in LATER["sampler_hf11"].items():
        yield "sampler_hf11", name, "1.1", case
    for name, case in LATER["sampler_feb"].items():
        if "sde_type" in case:
            yield "sampler_feb", name, case["sde_type"], case


CASES = list(_cases())


@functools.partial(jax.jit, static_argnames=("branches", "rescale"))
def _walk(params, noise, table, times, condition, cfg, image_cfg, branches, rescale):
    """`samplers.integrate` over the golden flow head, compiled once for each number of evaluations and branches."""
    model = NextStep(tiny_model()[0])

    def velocity(x, i):
        t = jnp.full(condition.shape[0], times[i])
        v = model.apply({"params": params}, jnp.tile(x, (branches, 1)), t, condition, method="velocity")
        return guidance.guide(v, cfg, image_cfg, branches, rescale)

    return samplers.integrate(velocity, noise, table)


@pytest.mark.parametrize(("file", "name", "sampler", "case"), CASES, ids=[f"{c[0]}:{c[1]}" for c in CASES])
def test_matches_the_release(file, name, sampler, case):
    golden, steps = FILES[file], case["num_sampling_steps"]
    settings = (sampler, steps, case["timesteps_shift"])
    last_step = case.get("last_step_size", samplers.LAST_STEP)
    times = samplers.timesteps(*settings, last_step)
    table = samplers.step_table(*settings, case.get("noise_level", 0.8), last_step)
    if f"{name}.t" in golden:  # two integrations' times were not stored
        np.testing.assert_allclose(times, golden[f"{name}.t"], atol=1e-6)

    condition, out, stored = golden[case["c"]], golden[f"{name}.out"], golden[f"{name}.noise"]
    assert stored.shape[0] == samplers.num_noise_draws(sampler, steps)
    rows = np.arange(out.shape[0]) % stored.shape[1]  # the releases tile their noise over the batch
    noise = np.zeros((steps + 1, *out.shape), np.float32)  # one shape for all samplers: fewer compilations
    noise[: stored.shape[0]] = stored[:, rows]
    guided = (condition, case["cfg"], case["cfg_img"], case["cfg_mult"], case.get("rescale", False))
    found = _walk(tiny_model()[1], noise, table, times, *guided)
    np.testing.assert_allclose(found, out, atol=2e-5, rtol=0)


def test_every_stored_walk_is_a_case():
    stored = {(file, key.removesuffix(".out")) for file, arrays in FILES.items() for key in arrays if key.endswith(".out")}
    assert stored == {(file, name) for file, name, _, _ in CASES}


def test_forward_head_matches_the_release():
    """The hook meant for reinforcement learning: projector, head and guidance at given points and times."""
    config, params = tiny_model()
    model, golden = NextStep(config), FILES["sampler_feb"]
    for branches in (1, 2, 3):
        case = {k: golden[f"forward_head.mult{branches}.{k}"] for k in ("x", "t", "c", "velocity", "velocity_rescaled")}
        settings = LATER["sampler_feb"][f"forward_head.mult{branches}"]
        condition = model.apply({"params": params}, case["c"][:, 0], method="project_out")
        v = model.apply({"params": params}, case["x"], case["t"], condition, method="velocity")
        for rescale, expected in ((False, case["velocity"]), (True, case["velocity_rescaled"])):
            found = guidance.guide(v, settings["cfg"], settings["cfg_img"], branches, rescale)
            np.testing.assert_allclose(found, expected, atol=2e-5)


# --- float64 programs, one step at a time -----------------------------------------------------------------------------


def _oracle(velocity, noise, sampler, steps, shift, level):
    """Each sampler as its formula reads, in float64."""
    x, fresh = noise[0].astype(np.float64), iter(noise[1:].astype(np.float64))
    uniform = np.linspace(0, 1 - 0.04, steps) if sampler == "august2025" else np.arange(steps + 1) / steps
    uniform = uniform**2 if sampler == "map" else uniform
    grid = uniform / (shift - (shift - 1) * uniform)
    if sampler == "august2025":
        grid = [*grid, grid[-1] + 0.04]
    before = None
    for n, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        dt, v, last = s - t, velocity(x, t), n == steps - 1
        start, end = x - t * v, x + (1 - t) * v
        score = (t * v - x) / ((1 - t) ** 2 + t * (1 - t))
        if sampler in ("ode", "map") or (last and sampler in ("heun", "august2025")):
            x = x + dt * v
        elif sampler == "heun":
            x = x + dt * (v + velocity(x + dt * v, s)) / 2
        elif sampler == "ab2":
            slope = 0 if n == 0 else (v - before) / (t - grid[n - 1])
            x, before = x + dt * v + dt**2 / 2 * slope, v
        elif sampler in ("august2025", "1.1"):
            x = x + (v + (1 - t) * score) * dt + np.sqrt(2 * (1 - t)) * np.sqrt(dt) * next(fresh)
        elif sampler == "sde":
            var = level**2 * ((1 - t) / t if n else 1 / (1 - grid[-2]))
            mean = (1 - s) * start + s * end - var * dt / (2 * (1 - t)) * start
            x = mean + np.sqrt(var * dt) * next(fresh)
        elif sampler == "cps":
            std = (1 - s) * np.sin(level * np.pi / 2)
            x = np.sqrt((1 - s) ** 2 - std**2) * start + s * end + std * next(fresh)
    assert next(fresh, None) is None
    return x


def _curved(x, t):
    """A field whose paths bend: a rotation that quickens, and a pull that grows with time."""
    flipped = x[..., ::-1] * np.array([1.0, -1.0])
    return 2 * t * flipped + (t**2 - 0.5) * x + 0.3


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize(("steps", "shift", "level"), [(2, 1.0, 0.8), (1, 3.2, 0.3), (6, 2.0, 1.0)])
def test_matches_the_formula_in_float64(sampler, steps, shift, level):
    steps = max(steps, 2) if sampler == "august2025" else steps
    count = samplers.num_noise_draws(sampler, steps)
    noise = np.random.default_rng(steps).normal(size=(count, 3, 2)).astype(np.float32)
    times = jnp.asarray(samplers.timesteps(sampler, steps, shift))
    found = samplers.sample(
        lambda x, i: _curved(x, times[i]), noise, sampler=sampler, steps=steps, shift=shift, noise_level=level
    )
    assert found.dtype == jnp.float32
    expected = _oracle(_curved, noise, sampler, steps, shift, level)
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("sampler", "order"), [("ode", 1), ("heun", 2), ("ab2", 2)])
def test_order_of_convergence(sampler, order):
    """Halving the step divides the error by 2^order (dx/dt = cos(2 t) x, solved exactly by exp(sin(2 t) / 2))."""
    exact = np.exp(np.sin(2.0) / 2)
    errors = []
    for steps in (8, 16, 32):
        times = jnp.asarray(samplers.timesteps(sampler, steps))
        end = samplers.sample(lambda x, i, t=times: jnp.cos(2 * t[i]) * x, np.ones((1, 1, 1)), sampler=sampler, steps=steps)
        errors.append(abs(float(end[0, 0]) - exact))
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(rates, order, atol=0.25)


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ode", "heun", "ab2"])
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.floats(0.2, 5), st.integers(0, 1000))
def test_constant_velocity_is_followed_exactly(sampler, steps, shift, seed):
    start, v = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    end = samplers.sample(lambda x, i: jnp.asarray(v), start[None], sampler=sampler, steps=steps, shift=shift)
    np.testing.assert_allclose(end, start + v, atol=1e-5)


@pytest.mark.parametrize("sampler", ["sde", "cps"])
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 8), st.floats(1, 5))
def test_noise_level_zero_is_the_ode(sampler, steps, shift):
    noise = np.random.default_rng(steps).normal(size=(steps + 1, 3, 2)).astype(np.float32)
    times = jnp.asarray(samplers.timesteps("ode", steps, shift))

    def run(name, noise):
        return samplers.sample(
            lambda x, i: _curved(x, times[i]), noise, sampler=name, steps=steps, shift=shift, noise_level=0.0
        )

    np.testing.assert_allclose(run(sampler, noise), run("ode", noise[:1]), atol=1e-5)


@pytest.mark.parametrize("sampler", ["ode", "heun", "cps"])
def test_the_true_field_of_one_point_leads_to_it(sampler):
    """With one data point the velocity is (data - x) / (1 - t): every noiseless end lands on it."""
    data, steps = jnp.array([[1.5, -0.5]]), 7
    times = jnp.asarray(samplers.timesteps(sampler, steps))
    noise = np.random.default_rng(0).normal(size=(samplers.num_noise_draws(sampler, steps), 1, 2))
    end = samplers.sample(lambda x, i: (data - x) / (1 - times[i]), noise, sampler=sampler, steps=steps)
    np.testing.assert_allclose(end, data, atol=1e-5)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_rows_do_not_meet(sampler):
    noise = np.random.default_rng(1).normal(size=(samplers.num_noise_draws(sampler, 4), 3, 2)).astype(np.float32)
    times = jnp.asarray(samplers.timesteps(sampler, 4))

    def run(noise):
        return samplers.sample(lambda x, i: _curved(x, times[i]), noise, sampler=sampler, steps=4)

    np.testing.assert_allclose(run(noise)[1:2], run(noise[:, 1:2]), atol=1e-6)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_the_field_is_asked_at_the_evaluation_times_in_order(sampler):
    asked = []

    def velocity(x, i):
        jax.debug.callback(lambda i: asked.append(int(i)), i, ordered=True)
        return x

    count = samplers.num_noise_draws(sampler, 3)
    jax.block_until_ready(samplers.sample(velocity, np.zeros((count, 1, 2)), sampler=sampler, steps=3))
    jax.effects_barrier()
    times = samplers.timesteps(sampler, 3)
    assert asked == list(range(len(times)))
    assert np.all(np.diff(times) >= 0) and times[0] == 0 and times[-1] < 1


def test_state_is_float32_whatever_the_velocity():
    end = samplers.sample(lambda x, i: x.astype(jnp.bfloat16), np.ones((1, 1, 2), np.float16), sampler="ode", steps=3)
    assert end.dtype == jnp.float32


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "changes", "message"),
    [
        ("euler", {}, "sampler must be one of"),
        ("ode", {"steps": 0}, "at least 1 step"),
        ("ode", {"steps": 2.5}, "whole number"),
        ("ode", {"steps": True}, "whole number"),
        ("august2025", {"steps": 1}, "at least 2 steps"),
        ("august2025", {"last_step": 0.0}, "last step"),
        ("august2025", {"shift": 0.5}, "past t = 1"),
        ("ode", {"shift": 0.0}, "shift"),
        ("cps", {"noise_level": 1.5}, "noise level"),
        ("sde", {"noise_level": -0.1}, "noise level"),
        ("sde", {"noise_level": float("nan")}, "noise level"),
    ],
)
def test_settings_a_sampler_cannot_run_with_are_refused(sampler, changes, message):
    noise = np.zeros(({"ode": 1, "august2025": 3}.get(sampler, 4), 1, 2))
    with pytest.raises(InputError, match=message):
        samplers.sample(lambda x, i: x, noise, **({"sampler": sampler, "steps": 3} | changes))


def test_noise_must_have_the_right_count():
    with pytest.raises(InputError, match=r"\[4, R, C\], found \[3, 1, 2\]"):
        samplers.sample(lambda x, i: x, np.zeros((3, 1, 2)), sampler="sde", steps=3)
