"""The step's arithmetic, on a linear model small enough to check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nextstep_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer, split_frozen
from nextstep_jax.training.state import create_state
from nextstep_jax.training.step import Objective, WeightedMean, current_decay, make_train_step

ROWS, WIDTH = 8, 4


def toy_task() -> Objective:
    """Least squares on (x [B, 4], y [B]); the value 1000 in y stands for a batch with something wrong."""

    def init(key):
        return {"model": {"linear": {"kernel": jax.random.normal(key, (WIDTH,)), "bias": jnp.zeros(())}}}

    def loss(params, batch, key, total):
        x, y = batch
        linear = params["model"]["linear"]
        error = jnp.square(x @ linear["kernel"] + linear["bias"] - jnp.where(y == 1000, jnp.nan, y)).sum()
        return error / total, {"error": WeightedMean(error, 1.0 * len(y)), "draw": WeightedMean(jax.random.uniform(key), 1.0)}

    def counts(batch):
        return {"flops": jnp.float32(len(batch[1]))}

    return Objective(init, lambda batch: len(batch[1]), loss, counts, batch_axes=("batch",))


@pytest.fixture
def batch():
    """Small whole numbers: every sum of them is exact in float32, in any order."""
    rng = np.random.default_rng(0)
    return rng.integers(-4, 5, (ROWS, WIDTH)).astype(np.float32), rng.integers(-4, 5, ROWS).astype(np.float32)


def setup(schedule=None, weight_decay=0.0, grad_clip_norm=0.0, frozen=(), **options):
    """(step, state) with a kernel of whole numbers."""
    objective = toy_task()
    schedule = schedule or optax.constant_schedule(0.5)
    params = {"model": {"linear": {"kernel": jnp.array([1.0, -2.0, 3.0, 0.0]), "bias": jnp.zeros(())}}}
    settings = OptimizerConfig(weight_decay=weight_decay, grad_clip_norm=grad_clip_norm)
    optimizer = make_optimizer(split_frozen(params, frozen)[0], schedule, settings)
    state = create_state(params, optimizer, frozen, ema=options.get("ema_decay", 0.0) > 0)
    return jax.jit(make_train_step(objective, optimizer, schedule, frozen=frozen, **options)), state


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_are_exactly_the_whole_batch_s(batch, parts):
    key = jax.random.key(0)
    step, state = setup()
    whole, metrics = step(state, batch, key)
    step, state = setup(grad_accum_steps=parts)
    accumulated, metrics_of_parts = step(state, batch, key)
    assert leaves_equal(whole.params, accumulated.params)
    assert leaves_equal(whole.opt_state, accumulated.opt_state)
    assert metrics.means["error"] == metrics_of_parts.means["error"]
    assert metrics.means["loss"] == metrics_of_parts.means["loss"]


def test_parts_of_a_batch_draw_different_numbers(batch):
    step, state = setup(grad_accum_steps=2)
    _, metrics = step(state, batch, jax.random.key(0))
    step, _ = setup()
    _, whole = step(state, batch, jax.random.key(0))
    assert metrics.means["draw"].weight == 2
    assert metrics.means["draw"].total != 2 * whole.means["draw"].total


def test_average_follows_its_formula(batch):
    step, state = setup(ema_decay=0.5)
    average = np.asarray(state.params["model"]["linear"]["kernel"])
    for n in range(4):
        state, _ = step(state, batch, jax.random.key(0))
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * np.asarray(state.params["model"]["linear"]["kernel"])
        np.testing.assert_allclose(state.ema["model"]["linear"]["kernel"], average, rtol=1e-6)
    np.testing.assert_allclose(current_decay(0.999, 0.0, 10_000), 0.999)
    np.testing.assert_allclose([current_decay(0.5, 0.001, n) for n in (0, 100, 9_000)], [0, 0.1, 0.5])


def test_frozen_parameters_stay_bit_for_bit_and_have_no_moments(batch):
    step, state = setup(frozen=("bias",), weight_decay=0.1, ema_decay=0.9)
    new, _ = step(state, batch, jax.random.key(0))
    old_linear, linear = state.params["model"]["linear"], new.params["model"]["linear"]
    assert np.array_equal(linear["bias"], old_linear["bias"])
    assert not np.array_equal(linear["kernel"], old_linear["kernel"])
    adam = next(part for part in new.opt_state if hasattr(part, "mu"))
    assert adam.mu["model"]["linear"]["bias"] is None
    assert new.ema["model"]["linear"]["bias"] is None
    assert np.array_equal(new.averaged_params["model"]["linear"]["bias"], old_linear["bias"])


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(batch):
    step, state = setup(ema_decay=0.9)
    bad = (batch[0], np.full_like(batch[1], 1000))
    state, _ = step(state, batch, jax.random.key(0))
    skipped, metrics = step(state, bad, jax.random.key(0))
    skipped, metrics = step(skipped, bad, jax.random.key(0))
    assert not metrics.finite
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics.means))
    assert metrics.means["loss"].weight == 0
    for part in ("params", "opt_state", "ema"):
        assert leaves_equal(getattr(skipped, part), getattr(state, part))
    assert (skipped.step, skipped.skipped, skipped.skipped_in_a_row, skipped.updates) == (3, 2, 2, 1)
    after, metrics = step(skipped, batch, jax.random.key(0))
    assert metrics.finite
    assert (after.skipped, after.skipped_in_a_row) == (2, 0)
    assert not leaves_equal(after.params, skipped.params)


def test_the_schedule_counts_updates_and_never_compiles_again(batch):
    schedule = learning_rate_schedule("cosine", 1e-2, 0.0, 2, 10)
    step, state = setup(schedule=schedule)
    rates = []
    for target in (batch[1], np.full_like(batch[1], 1000), batch[1], batch[1]):
        state, metrics = step(state, (batch[0], target), jax.random.key(0))
        if metrics.finite:
            rates.append(float(metrics.means["learning_rate"].total))
    np.testing.assert_allclose(rates, [schedule(0), schedule(1), schedule(2)], rtol=1e-6)
    assert step._cache_size() == 1


def test_randomness_is_a_function_of_the_run_s_key_and_the_step(batch):
    step, state = setup()
    second, first_metrics = step(state, batch, jax.random.key(7))
    _, again = step(state, batch, jax.random.key(7))
    _, other_step = step(second, batch, jax.random.key(7))
    _, other_key = step(state, batch, jax.random.key(8))
    draw = first_metrics.means["draw"].total
    assert again.means["draw"].total == draw
    assert other_step.means["draw"].total != draw
    assert other_key.means["draw"].total != draw


def test_a_profile_names_the_parts_of_a_step(batch):
    step, state = setup(ema_decay=0.9)
    names = step.lower(state, batch, jax.random.key(0)).as_text(debug_info=True)
    assert all(f"{part}/" in names for part in ("gradients", "optimizer", "average"))


def test_norms_are_reported(batch):
    step, state = setup()
    new, metrics = step(state, batch, jax.random.key(0))
    moved = jax.tree.map(lambda a, b: a - b, new.params, state.params)
    np.testing.assert_allclose(metrics.means["update_norm"].total, optax.tree.norm(moved), rtol=1e-6)
    x, y = batch
    error = x @ np.array([1.0, -2.0, 3.0, 0.0]) - y
    gradient = np.append(2 * x.T @ error, 2 * error.sum()) / ROWS
    np.testing.assert_allclose(metrics.means["gradient_norm"].total, np.linalg.norm(gradient), rtol=1e-6)
