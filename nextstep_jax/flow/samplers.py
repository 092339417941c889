"""Samplers: from noise at t = 0 to data at t = 1 along a velocity field.

Every sampler here updates its state linearly in the state itself, the velocity just evaluated, the one before it, and
fresh noise, x <- a x + b v + c v_before + d noise, with numbers that depend on the times alone. A sampler therefore *is*
its table of (a, b, c, d), one row per evaluation (`step_table`, computed in float64 and rounded once), and `integrate` runs any
of them as one `lax.scan` with a float32 state. `sample` does both.

A step goes from t to s = t + dt. By release:
  "august2025"  Euler-Maruyama over linspace(0, 1 - last_step), then one plain Euler step of size last_step. Shifted times
                do not move that last step, so with a shift above 1 the integration ends before t = 1, as in that release.
  "1.1"         Euler-Maruyama to t = 1: dx = ((1 + t) v - x) dt + sqrt(2 (1 - t) dt) noise, also in the last step.
  "sde"         February 2026: with x0 = x - t v and x1 = x + (1 - t) v, the ends of the path seen from x, and
                var = level^2 (1 - t) / t, x = (1 - s) x0 + s x1 - var dt / (2 (1 - t)) x0 + sqrt(var dt) noise.
  "cps"         February 2026: x = (1 - s) cos(level pi / 2) x0 + s x1 + (1 - s) sin(level pi / 2) noise.
  "ode"         February 2026: plain Euler, x = x + dt v.
  "heun"        second order: the mean of v at t and at the Euler point at s. The last step is plain Euler, so the field
                is never asked at t = 1, which training never shows it; N steps take 2 N - 1 evaluations.
  "ab2"         second order at Euler's price, the two-step rule of Adams and Bashforth: x = x + dt ((1 + r) v - r v'), with v'
                the velocity before and r = dt / (2 dt'). The first step is plain Euler; N steps take N evaluations.
  "map"         x = x + dt u with the average velocity u of the step: what a head distilled for few steps gives
                (objectives/few_step.py). `sample` is handed u in place of v; `jumps` has the steps' ends. Its times are
                (k / N)^2: where guidance decides what the token becomes, near the noise, steps are short.

Letters: N steps, E evaluations, R rows, C channels of one image token.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import shift_times

Array = jax.Array
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Velocity = Callable[[Array, Array], Array]
Pieces = Sequence[tuple[int, Velocity]]

LAST_STEP = 0.04  # of "august2025", fixed in that release
MAX_STEPS = 10_000


def timesteps(sampler: str, steps: int, shift: float = 1.0, last_step: float = LAST_STEP) -> Float[np.ndarray, " E"]:
    """The times [E] float32 at which `sample` asks for the velocity, in order.

    Args:
      sampler: one of SAMPLERS.
      steps: N >= 1; "august2025" needs 2.
      shift: of the times, see `paths.shift_times`.
      last_step: size of the last step of "august2025"; the others do not use it.

    Raises:
      InputError: unknown sampler or a setting it cannot run with.
    """
    starts = _grid(sampler, steps, shift, last_step)[:-1]
    return (np.repeat(starts, 2)[1:] if sampler == "heun" else starts).astype(np.float32)


def jumps(steps: int, shift: float = 1.0) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Where each step of "map" begins and ends: times [N] and [N], float32."""
    grid = _grid("map", steps, shift, LAST_STEP).astype(np.float32)
    return grid[:-1], grid[1:]


def num_noise_draws(sampler: str, steps: int) -> int:
    """How many noise arrays [R, C] a run takes: the start, then one per noisy step."""
    _check(sampler, steps)
    return {"ode": 1, "heun": 1, "ab2": 1, "map": 1, "august2025": steps}.get(sampler, steps + 1)


def sample(
    velocity: Velocity | Pieces,
    noise: Array,
    *,
    sampler: str,
    steps: int,
    shift: float = 1.0,
    noise_level: float = 0.8,
    last_step: float = LAST_STEP,
) -> Float[Array, "R C"]:
    """Integrate from noise to data.

    Args:
      velocity: maps (x [R, C] float32, i) to the guided velocity [R, C]; i is the traced index into `timesteps`, so
        that whatever depends on the time alone can be computed for all times beforehand. Or pieces (stop, velocity), each
        for the evaluations before `stop` that the ones before it leave: a program of its own for each.
      noise: [num_noise_draws(sampler, steps), R, C] standard normal; noise[0] is the start.
      sampler, steps, shift, noise_level, last_step: as in `step_table`.

    Returns:
      The state [R, C] float32 after the last step.

    Raises:
      InputError: a setting the sampler cannot run with, or too few or too many noise arrays.
    """
    table = step_table(sampler, steps, shift, noise_level, last_step)
    expected = num_noise_draws(sampler, steps)
    if noise.ndim != 3 or noise.shape[0] != expected:
        raise InputError(f"sampler {sampler!r} with {steps} steps takes noise [{expected}, R, C], found {list(noise.shape)}")
    return integrate(velocity, noise, jnp.asarray(table))


def trajectory(velocity: Velocity, noise: Array, *, sampler: str, steps: int, **kwargs: float) -> tuple[np.ndarray, Array]:
    """The points that `sample` passes through, given the same arguments; the last is what it returns.

    Returns:
      times [N + 1] float32, from 0 to where the integration ends, and states [N + 1, R, C] float32. The points at which "heun"
      only tries the velocity are left out.
    """
    grid = _grid(sampler, steps, kwargs.get("shift", 1.0), kwargs.get("last_step", LAST_STEP))
    step, start, inputs = _scan(velocity, noise, jnp.asarray(step_table(sampler, steps, **kwargs)))

    def keeping(state, inputs):
        state, _ = step(state, inputs)
        return state, state[0]

    _, states = jax.lax.scan(keeping, start, inputs)
    if sampler == "heun":
        states = jnp.concatenate([states[1:-1:2], states[-1:]])
    return grid.astype(np.float32), jnp.concatenate([start[0][None], states])


def integrate(velocity: Velocity | Pieces, noise: Float[Array, "draws R C"], table: Float[Array, "E 4"]) -> Float[Array, "R C"]:
    """Run a `step_table` [E, 4], one scan a piece; velocity, noise and result as in `sample`. Rows short of noise get none."""
    pieces = [(table.shape[0], velocity)] if callable(velocity) else velocity
    begin, state = 0, _scan(pieces[0][1], noise, table)[1]
    for stop, now in pieces:
        step, _, inputs = _scan(now, noise, table)
        state, _ = jax.lax.scan(step, state, jax.tree.map(lambda x, begin=begin, stop=stop: x[begin:stop], inputs))
        begin = stop
    return state[0]


def integrate_recording(
    velocity: Velocity,
    noise: Float[Array, "draws R C"],
    table: Float[Array, "E 4"],
    steps: Int[Array, " K"],
) -> tuple[Float[Array, "R C"], Float[Array, "K R C"]]:
    """`integrate`, and the states [K, R, C] that K of its steps began with; which ones may be traced."""
    step, start, inputs = _scan(velocity, noise, table)

    def recording(carry, inputs):
        state, recorded = carry
        recorded = jnp.where((inputs[0] == steps)[:, None, None], state[0], recorded)
        state, _ = step(state, inputs)
        return (state, recorded), None

    states = jnp.zeros((steps.shape[0], *start[0].shape))
    ((x, _), states), _ = jax.lax.scan(recording, (start, states), inputs)
    return x, states


def _scan(velocity: Velocity, noise: Array, table: Array):
    """What `jax.lax.scan` takes: the update of (x, velocity before), where it starts, and its inputs at each evaluation."""
    start, fresh = noise[0].astype(jnp.float32), noise[1:].astype(jnp.float32)
    quiet = jnp.zeros((table.shape[0] - fresh.shape[0], *start.shape))

    def step(state, inputs):
        x, before = state
        i, (a, b, c, d), draw = inputs
        with jax.named_scope("velocity"):
            v = velocity(x, i).astype(jnp.float32)
        with jax.named_scope("sampler_update"):
            return (a * x + b * v + c * before + d * draw, v), None

    inputs = (jnp.arange(table.shape[0]), tuple(table.T), jnp.concatenate([fresh, quiet]))
    return step, (start, jnp.zeros_like(start)), inputs


def step_table(
    sampler: str, steps: int, shift: float = 1.0, noise_level: float = 0.8, last_step: float = LAST_STEP
) -> Float[np.ndarray, "E 4"]:
    """The sampler's coefficients (a, b, c, d) at each evaluation, [E, 4] float32.

    Args:
      noise_level: strength of the noise of "sde" (>= 0) and "cps" (0 to 1); the others do not use it.
      sampler, steps, shift, last_step: as in `timesteps`.

    Raises:
      InputError: a setting the sampler cannot run with.
    """
    limit = 1 if sampler == "cps" else math.inf
    if not (math.isfinite(noise_level) and 0 <= noise_level <= limit):
        raise InputError(f"noise level of sampler {sampler!r} must be in [0, {limit}], found {noise_level}")
    grid = _grid(sampler, steps, shift, last_step)
    columns = SAMPLERS[sampler](grid[:-1], grid[1:], noise_level)
    return np.stack(columns, axis=1).astype(np.float32)


# --- the rows of each table -------------------------------------------------------------------------------------------


def _grid(sampler: str, steps: int, shift: float, last_step: float) -> np.ndarray:
    """The times [N + 1] float64 that the integration passes through."""
    _check(sampler, steps)
    if sampler == "august2025":
        if not 0 < last_step < 1:
            raise InputError(f"last step must be in (0, 1), found {last_step}")
        starts = shift_times(np.linspace(0, 1 - last_step, steps), shift)
        if shift < 1:
            raise InputError(f"sampler 'august2025' with a timestep shift below 1 would integrate past t = 1, found {shift}")
        return np.append(starts, starts[-1] + last_step)
    even = np.linspace(0, 1, steps + 1)
    return np.asarray(shift_times(even**2 if sampler == "map" else even, shift))


def _check(sampler: str, steps: Any) -> None:
    if sampler not in SAMPLERS:
        raise InputError(f"sampler must be one of {', '.join(SAMPLERS)}, found {sampler!r}")
    least = 2 if sampler == "august2025" else 1
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not least <= steps <= MAX_STEPS:
        raise InputError(
            f"sampler {sampler!r} takes a whole number of at least {least} steps, at most {MAX_STEPS}, found {steps!r}"
        )


def _euler_maruyama(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    dt = s - t
    return 1 - dt, (1 + t) * dt, 0 * t, np.sqrt(2 * (1 - t) * dt)


def _august2025(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    columns = _euler_maruyama(t, s, level)
    for column, last in zip(columns, (1, s[-1] - t[-1], 0, 0), strict=True):
        column[-1] = last
    return columns


def _from_ends(t: np.ndarray, s: np.ndarray, x0_factor: np.ndarray, noise_factor: np.ndarray) -> Columns:
    """x = x0_factor x0 + s x1 + noise_factor noise, in terms of x and v."""
    return x0_factor + s, s * (1 - t) - x0_factor * t, 0 * t, noise_factor


def _sde(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    dt = s - t
    # At t = 0 the variance is infinite; the release takes 1 - (time of the last step) in place of t there.
    var = level**2 * np.append(1 / (1 - t[-1]), (1 - t[1:]) / t[1:])
    return _from_ends(t, s, 1 - s - var * dt / (2 * (1 - t)), np.sqrt(var * dt))


def _cps(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    angle = level * np.pi / 2
    return _from_ends(t, s, (1 - s) * np.cos(angle), (1 - s) * np.sin(angle))


def _ode(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    return 1 + 0 * t, s - t, 0 * t, 0 * t


def _heun(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    """Rows alternate: to the Euler point x + dt v, then back by half of v and forth by half of the new one."""
    dt = s - t
    predictor = np.stack(_ode(t, s, level))
    corrector = np.stack([1 + 0 * t, dt / 2, -dt / 2, 0 * t])
    rows = np.stack([predictor, corrector], axis=-1).reshape(4, -1)
    return tuple(rows[:, :-1])


def _ab2(t: np.ndarray, s: np.ndarray, level: float) -> Columns:
    dt = s - t
    r = np.append(0, dt[1:] / dt[:-1]) / 2
    return 1 + 0 * t, dt * (1 + r), -dt * r, 0 * t


SAMPLERS = {
    "august2025": _august2025,
    "1.1": _euler_maruyama,
    "sde": _sde,
    "cps": _cps,
    "ode": _ode,
    "heun": _heun,
    "ab2": _ab2,
    "map": _ode,
}
