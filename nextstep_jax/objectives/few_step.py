"""Distilling a guided flow into few jumps (paper section 7.2 names few-step sampling as the way on).

A flow dx/dt = b(x, t) carries the point x from time s to X_{s,t}(x). What is learned is how it bends on the way, a,

    X_{s,t}(x) = x + (t - s) u(x, s, t),   u = b(x, s) + (t - s) a(x, s, t),   so that   u(x, t, t) = b(x, t).

Three losses teach it (|.|^2 is the mean over channels):

    "regression"   |X_{s,t}(x_s) - x_t|^2 / (t - s) at points x_s and x_t of one trajectory, on which `follow` carries noise:
                   no guess of its own is among what it learns from, and the points are those that sampling meets.
    "lagrangian"   |dX/dt - b(X, t)|^2 with X = X_{s,t}(x_s): where it arrives, the map moves as the flow does (Lagrangian
                   self-distillation, Boffi et al. 2025); dX/dt is one forward derivative in t.
    "shortcut"     |u(x_s, s, t) - (u(x_s, s, m) + u(X_{s,m}, m, t)) / 2|^2 with m = (s + t) / 2: one jump does what its two
                   halves do (Frans et al. 2024).

The last two begin at points between data and noise. b, arrival points and targets are constants: no gradient passes them.
"lagrangian" is divided by (its own mean over channels + 0.01)^p, a constant too, so that single points do not outweigh the
rest. Both have in the literature a second term, |u(x, t, t) - b(x, t)|^2, which is 0 here whatever a is.

Letters: P points, C channels of an image token, N steps, J jumps, R conditions.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nextstep_jax.flow import samplers

Array = jax.Array
Points = Float[Array, "P C"]
Times = Float[Array, " P"]

Method = Literal["regression", "lagrangian", "shortcut"]
FEWEST = (1, 2, 4)  # steps an image token will be sampled with
SOLUTION_STEPS = 16  # second-order steps of a trajectory, among whose times are those of sampling in each of FEWEST
_FLOOR = 0.01


class Velocities(NamedTuple):
    """b at some points, and the velocity of the conditional branch alone; [P, C] each."""

    guided: Array
    conditional: Array


Velocity = Callable[[Array, Array], Velocities]  # (x, t)
Acceleration = Callable[[Array, Velocities, Array, Array], Array]  # (x, b at x, s, t) -> a


def jump(acceleration: Acceleration, velocities: Velocities, x: Points, s: Times, t: Times) -> Points:
    """X_{s,t}(x) [P, C], with the flow's velocities at x and s."""
    duration = (t - s)[:, None]
    return x + duration * (velocities.guided + duration * acceleration(x, velocities, s, t))


def jump_and_rate(acceleration: Acceleration, velocities: Velocities, x: Points, s: Times, t: Times) -> tuple[Points, Points]:
    """X_{s,t}(x) and its derivative in t, [P, C] each."""
    return jax.jvp(lambda t: jump(acceleration, velocities, x, s, t), (t,), (jnp.ones_like(t),))


def lagrangian_loss(
    acceleration: Acceleration, velocity: Velocity, x: Points, s: Times, t: Times, normalize_power: float = 0.5
) -> tuple[Times, Times]:
    """(loss, error before its weight) of "lagrangian" of jumps from points x of time s to time t."""
    arrived, rate = jump_and_rate(acceleration, _constant(velocity(x, s)), x, s, t)
    error = _square(rate - _constant(velocity(jax.lax.stop_gradient(arrived), t)).guided)
    return jax.lax.stop_gradient(error + _FLOOR) ** -normalize_power * error, error


def shortcut_loss(acceleration: Acceleration, velocity: Velocity, x: Points, s: Times, t: Times) -> tuple[Times, Times]:
    """(loss, error) of "shortcut", as of `lagrangian_loss`; here they are one."""
    begin, middle, half = _constant(velocity(x, s)), (s + t) / 2, ((t - s) / 2)[:, None]

    def average_velocity(velocities: Velocities, x: Array, s: Array, t: Array) -> Array:
        return velocities.guided + (t - s)[:, None] * acceleration(x, velocities, s, t)

    first = average_velocity(begin, x, s, middle)
    halfway = x + half * first
    second = average_velocity(_constant(velocity(halfway, middle)), halfway, middle, t)
    error = _square(average_velocity(begin, x, s, t) - jax.lax.stop_gradient((first + second) / 2))
    return error, error


class Trajectory(NamedTuple):
    """Where a flow carries P points of noise in N steps: times [N + 1], points [N + 1, P, C], velocities [N, P, C] at the
    beginning of each step.
    """

    times: Array
    points: Array
    velocities: Velocities


def follow(velocity: Velocity, noise: Points, steps: int = SOLUTION_STEPS) -> Trajectory:
    """The trajectory of noise, by the two-step rule of Adams and Bashforth; a constant."""

    def step(state: tuple[Array, Array], k: Array):
        x, before = state
        now = velocity(x, jnp.full(noise.shape[:1], k / steps, noise.dtype))
        after = x + jnp.where(k == 0, now.guided, 1.5 * now.guided - 0.5 * before) / steps
        return (after, now.guided), (after, now)

    _, (points, velocities) = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), jnp.arange(steps))
    return _constant(Trajectory(jnp.arange(steps + 1) / steps, jnp.concatenate([noise[None], points]), velocities))


def regression_loss(
    acceleration: Acceleration, trajectory: Trajectory, begin: Int[Array, " J"], end: Int[Array, " J"]
) -> tuple[Float[Array, " J P"], Float[Array, " J P"]]:
    """(loss, error) of "regression", [J, P] each, of jumps from times number `begin` to times number `end` of a trajectory. The
    error is |X - x_t|^2 / (t - s)^2.

    Args:
      acceleration: as of the others, of the J * P points of the first jump, then of the second, and so on.
    """

    def flat(values: Array) -> Array:
        return values.reshape(-1, values.shape[-1])

    points = trajectory.points.shape[1]
    velocities = Velocities(*(flat(values[begin]) for values in trajectory.velocities))
    s, t = (jnp.repeat(trajectory.times[index], points) for index in (begin, end))
    x = flat(trajectory.points[begin])
    true = (flat(trajectory.points[end]) - x) / (t - s)[:, None]
    error = _square(velocities.guided + (t - s)[:, None] * acceleration(x, velocities, s, t) - true)
    return ((t - s) * error).reshape(-1, points), error.reshape(-1, points)


def draw_jumps(key: Array, steps: int = SOLUTION_STEPS) -> tuple[Int[Array, " J"], Int[Array, " J"]]:
    """The jumps that sampling in each of FEWEST steps takes, and one at random, as numbers of times of a trajectory."""
    grids = zip(*map(samplers.jumps, FEWEST), strict=True)
    begin, end = (np.rint(np.concatenate(times) * steps).astype(int) for times in grids)
    first, last = jnp.sort(jax.random.choice(key, steps + 1, (2,), replace=False))
    return jnp.append(begin, first), jnp.append(end, last)


def draw_times(key: Array, points: int, whole: float = 0.05, from_noise: float = 0.15) -> tuple[Times, Times]:
    """Pairs of times s <= t [P]: two draws of a logit-normal in order. A share `whole` of them is (0, 1), and a share
    `from_noise` begins at s = 0: those are the jumps that sampling takes.
    """
    draws, choice = jax.random.split(key)
    times = jax.nn.sigmoid(jax.random.normal(draws, (2, points)))
    s, t = jnp.min(times, axis=0), jnp.max(times, axis=0)
    u = jax.random.uniform(choice, (points,))
    return jnp.where(u < whole + from_noise, 0.0, s), jnp.where(u < whole, 1.0, t)


def _constant(tree):
    return jax.tree.map(jax.lax.stop_gradient, tree)


def _square(x: Array) -> Array:
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1)
