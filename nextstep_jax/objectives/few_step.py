"""Distilling a flow into few jumps (paper section 7.2 names few-step sampling as the way on).

A flow dx/dt = b(x, t) carries the point x from time s to X_{s,t}(x). The student gives the average velocity u on the way,

    X_{s,t}(x) = x + (t - s) u(x, s, t),   so that   u(x, t, t) = b(x, t)   and   dX/dt = u + (t - s) du/dt.

Three losses teach it (|.|^2 is the mean over channels):

    "lagrangian"   |u(x_t, t, t) - b(x_t, t)|^2 + |dX/dt - b(X, t)|^2 with X = X_{s,t}(x_s): where it arrives, the map moves
                   as the flow does (Lagrangian self-distillation, Boffi et al. 2025); dX/dt is one forward derivative in t.
    "shortcut"     the same first term, and |u(x_s, s, t) - (u(x_s, s, m) + u(X_{s,m}, m, t)) / 2|^2 with m = (s + t) / 2: one
                   jump does what its two halves do (Frans et al. 2024).
    "regression"   |X_{0,1}(noise) - x_1|^2 with x_1 where many steps along b carry the noise: one jump, and no others.

Teacher, arrival points and targets are constants: no gradient passes them. The second term of "lagrangian" is divided by
(its own mean over channels + 0.01)^p, a constant too, so that single points do not outweigh the rest.

Letters: P points, C channels of an image token.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

Array = jax.Array
Points = Float[Array, "P C"]
Times = Float[Array, " P"]
AverageVelocity = Callable[[Array, Array, Array], Array]  # (x, s, t) -> u
Velocity = Callable[[Array, Array], Array]  # (x, t) -> b

Method = Literal["lagrangian", "shortcut", "regression"]
SOLUTION_STEPS = 20  # second-order steps behind "regression"
_FLOOR = 0.01


class FewStepTerms(NamedTuple):
    """The parts of a loss, one number a point.

    Attributes:
      diagonal: |u(x_t, t, t) - b|^2; zeros for "regression".
      jump: the second term as it is, before any weight.
      loss: what is minimized.
    """

    diagonal: Array
    jump: Array
    loss: Array


def jump(average_velocity: AverageVelocity, x: Points, s: Times, t: Times) -> Points:
    """X_{s,t}(x) [P, C]."""
    return x + (t - s)[:, None] * average_velocity(x, s, t)


def jump_and_rate(average_velocity: AverageVelocity, x: Points, s: Times, t: Times) -> tuple[Points, Points]:
    """X_{s,t}(x) and its derivative in t, [P, C] each."""
    return jax.jvp(lambda t: jump(average_velocity, x, s, t), (t,), (jnp.ones_like(t),))


def lagrangian_terms(
    average_velocity: AverageVelocity,
    velocity: Velocity,
    x_s: Points,
    x_t: Points,
    s: Times,
    t: Times,
    normalize_power: float = 0.5,
) -> FewStepTerms:
    """The terms of "lagrangian" at points x_s of time s and x_t of time t."""
    diagonal = _square(average_velocity(x_t, t, t) - jax.lax.stop_gradient(velocity(x_t, t)))
    arrived, rate = jump_and_rate(average_velocity, x_s, s, t)
    error = _square(rate - jax.lax.stop_gradient(velocity(jax.lax.stop_gradient(arrived), t)))
    weight = jax.lax.stop_gradient(error + _FLOOR) ** -normalize_power
    return FewStepTerms(diagonal, error, diagonal + weight * error)


def shortcut_terms(
    average_velocity: AverageVelocity, velocity: Velocity, x_s: Points, x_t: Points, s: Times, t: Times
) -> FewStepTerms:
    """The terms of "shortcut" at points x_s of time s and x_t of time t."""
    diagonal = _square(average_velocity(x_t, t, t) - jax.lax.stop_gradient(velocity(x_t, t)))
    middle = (s + t) / 2
    first = average_velocity(x_s, s, middle)
    second = average_velocity(x_s + (middle - s)[:, None] * first, middle, t)
    error = _square(average_velocity(x_s, s, t) - jax.lax.stop_gradient((first + second) / 2))
    return FewStepTerms(diagonal, error, diagonal + error)


def regression_terms(average_velocity: AverageVelocity, velocity: Velocity, noise: Points) -> FewStepTerms:
    """The terms of "regression" from noise."""
    start = jnp.zeros(noise.shape[0])
    error = _square(jump(average_velocity, noise, start, start + 1) - jax.lax.stop_gradient(solve(velocity, noise)))
    return FewStepTerms(jnp.zeros_like(error), error, error)


def solve(velocity: Velocity, noise: Points, steps: int = SOLUTION_STEPS) -> Points:
    """Where the flow carries noise, by the two-step rule of Adams and Bashforth."""

    def step(state: tuple[Array, Array], k: Array):
        x, before = state
        now = velocity(x, jnp.full(noise.shape[:1], k / steps, noise.dtype))
        return (x + jnp.where(k == 0, now, 1.5 * now - 0.5 * before) / steps, now), None

    (x, _), _ = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), jnp.arange(steps))
    return x


def draw_times(key: Array, points: int, whole: float = 0.05, from_noise: float = 0.15) -> tuple[Times, Times]:
    """Pairs of times s <= t [P]: two draws of a logit-normal in order. A share `whole` of them is (0, 1), and a share
    `from_noise` begins at s = 0: those are the jumps that sampling takes.
    """
    draws, choice = jax.random.split(key)
    times = jax.nn.sigmoid(jax.random.normal(draws, (2, points)))
    s, t = jnp.min(times, axis=0), jnp.max(times, axis=0)
    u = jax.random.uniform(choice, (points,))
    return jnp.where(u < whole + from_noise, 0.0, s), jnp.where(u < whole, 1.0, t)


def _square(x: Array) -> Array:
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1)
