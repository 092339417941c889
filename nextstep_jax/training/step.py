"""One training step and one validation step, as pure functions of arrays."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nextstep_jax.training.optimizer import merge, split_frozen
from nextstep_jax.training.state import TrainState

Array = jax.Array


class WeightedMean(NamedTuple):
    """A weighted mean that can still be added to others: total / weight."""

    total: Array
    weight: Array | float


class Objective(NamedTuple):
    """What a step needs to know of an objective.

    Attributes:
      init: key -> randomly initialized parameters.
      normalizers: batch -> whatever the loss divides by, of the whole batch.
      loss: (params, part of the batch, key, normalizers) -> (loss, {name: WeightedMean}). The losses of a batch's parts
        add up to the batch's.
      counts: batch -> {name: count} for throughput; with "tokens", "images", "positions" and "flops".
      batch_axes: logical axes of the leading dimensions of every array in a batch.
    """

    init: Callable[[Array], Any]
    normalizers: Callable[[Any], Any]
    loss: Callable[[Any, Any, Array, Any], tuple[Array, dict[str, WeightedMean]]]
    counts: Callable[[Any], dict[str, Array]]
    batch_axes: tuple[str, ...]


class StepMetrics(NamedTuple):
    """What a step reports; left on the device until it is read."""

    means: dict[str, WeightedMean]
    counts: dict[str, Array]
    finite: Array


def current_decay(decay: float, ramp: float, updates: Array) -> Array:
    """After n updates min(decay, ramp * n), or without a ramp min(decay, (1 + n) / (10 + n)): a short run's average is not its
    first values.
    """
    return jnp.minimum(decay, ramp * updates if ramp else (1.0 + updates) / (10.0 + updates))


def split_batch(batch, parts: int):
    """[B, ...] -> [parts, B / parts, ...]; part i has rows i, i + parts, …, so that every device keeps its own rows."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def accumulate_gradients(value_and_grad: Callable, trainable, batch, key: Array, parts: int):
    """Value, auxiliary Means and gradients of `parts` parts of a batch, one after another, summed.

    The sums live only inside the step: unlike a multi-step optimizer there is no second copy of the gradients in the state.
    """
    if parts == 1:
        (loss, means), grads = value_and_grad(trainable, batch, key)
        return loss, means, grads

    def one(sums, part):
        index, rows = part
        (loss, means), grads = value_and_grad(trainable, rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, sums, (loss, means, grads)), None

    shapes = jax.eval_shape(value_and_grad, trainable, jax.tree.map(lambda x: x[: x.shape[0] // parts], batch), key)
    (loss, means), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, _ = jax.lax.scan(one, (loss, means, grads), (jnp.arange(parts), split_batch(batch, parts)))
    return sums


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    grad_accum_steps: int = 1,
    frozen: Sequence[str] = (),
    ema_decay: float = 0.0,
    ema_ramp: float = 0.0,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, StepMetrics]]:
    """The step (state, batch, key) -> (state, metrics), to be jitted once with the state donated.

    The key is the run's; the step's own is `fold_in(key, state.step)`. A step whose loss or gradient is not finite changes
    nothing but the counters.
    """

    def train_step(state: TrainState, batch, key: Array) -> tuple[TrainState, StepMetrics]:
        trainable, rest = split_frozen(state.params, frozen)
        normalizers = objective.normalizers(batch)

        def loss_of(trainable, part, key):
            return objective.loss(merge(trainable, rest), part, key, normalizers)

        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        key = jax.random.fold_in(key, state.step)
        with jax.named_scope("gradients"):
            loss, means, grads = accumulate_gradients(value_and_grad, trainable, batch, key, grad_accum_steps)
            gradient_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
            updated = optax.apply_updates(trainable, updates)
        average = state.ema
        if average is not None:
            with jax.named_scope("average"):
                decay = current_decay(ema_decay, ema_ramp, state.updates)
                average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, updated)
        new = TrainState(
            step=state.step + 1,
            params=merge(keep(updated, trainable), rest),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(average, state.ema),
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        means = means | {
            "loss": WeightedMean(loss, 1.0),
            "gradient_norm": WeightedMean(gradient_norm, 1.0),
            "update_norm": WeightedMean(optax.tree.norm(updates), 1.0),
            "learning_rate": WeightedMean(schedule(state.updates), 1.0),
        }
        means = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), means)
        return new, StepMetrics(means, objective.counts(batch), finite)

    return train_step


def make_validation_step(objective: Objective) -> Callable[[Any, Any, Array], dict[str, WeightedMean]]:
    """(params, batch, key) -> Means of a batch, without gradients."""

    def validation_step(params, batch, key: Array) -> dict[str, WeightedMean]:
        loss, means = objective.loss(params, batch, key, objective.normalizers(batch))
        return means | {"loss": WeightedMean(loss, 1.0)}

    return validation_step
