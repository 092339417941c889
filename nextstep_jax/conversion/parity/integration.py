"""Integrating the flow head from noise to image tokens, many trajectories at a time.

A sampler is its table of coefficients, so trajectories of different samplers, times and lengths share one compiled program:
they are padded with steps that change nothing and integrated side by side.

Letters: E evaluations, M guidance branches, C channels of an image token, D model width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.config import NextStepConfig
from nextstep_jax.conversion.parity.reference import padded
from nextstep_jax.errors import InputError
from nextstep_jax.flow.guidance import guide
from nextstep_jax.flow.samplers import LAST_STEP, integrate, num_noise_draws, step_table, timesteps
from nextstep_jax.models.nextstep import NextStep

_BATCH, _EVALUATIONS = 128, 32  # trajectories and evaluations are padded to multiples of these
_REST = np.asarray([1, 0, 0, 0], np.float32)  # a row of a step table that leaves the state as it is


class Trajectory(NamedTuple):
    """One token: times [E], step table [E, 4], noise [E + 1, C], condition [M, D], cfg and image_cfg [2], rescale []."""

    times: np.ndarray
    table: np.ndarray
    noise: np.ndarray
    condition: np.ndarray
    strengths: np.ndarray
    rescale: np.ndarray


def plan_steps(sampler: str, steps: int, shift: float, noise_level: float = 0.8, last_step: float = LAST_STEP):
    """(times, step table, how many noise arrays) of a sampler; see `flow.samplers`."""
    times, table = timesteps(sampler, steps, shift, last_step), step_table(sampler, steps, shift, noise_level, last_step)
    return times, table, num_noise_draws(sampler, steps)


def make_trajectories(
    planned: tuple, noise: np.ndarray, condition: np.ndarray, branches: int, strengths, rescale: bool, where: str
) -> list[Trajectory]:
    """Of R tokens, from conditions [M * R, D], branch after branch, and noise [arrays, r, C], token i taking i mod r.

    Raises:
      InputError: naming `where`, if these do not fit together.
    """
    times, table, arrays = planned
    if len(noise) != arrays or len(condition) % branches:
        raise InputError(f"{where}: {list(noise.shape)} noise and {list(condition.shape)} conditions do not fit its settings")
    each = condition.reshape(branches, -1, condition.shape[-1])
    noise = np.pad(noise, ((0, len(times) + 1 - arrays), (0, 0), (0, 0)))
    guidance = np.asarray(strengths, np.float32), np.asarray(rescale)
    return [Trajectory(times, table, noise[:, i % noise.shape[1]], each[:, i], *guidance) for i in range(each.shape[1])]


def integrate_tokens(
    config: NextStepConfig,
    params: dict,
    planned: tuple,
    noise: np.ndarray,
    conditions: np.ndarray,
    branches: int,
    guidance,
    where: str,
) -> np.ndarray:
    """Tokens [B, n, C] of B images, each from its own condition alone.

    Args:
      noise: [n, arrays, r, C].
      conditions: [M * B, n, W] as the flow head takes them.
      guidance: [n, 2] strengths.
    """
    count = conditions.shape[1]
    trajectories = [
        trajectory
        for k in range(count)
        for trajectory in make_trajectories(planned, noise[k], conditions[:, k], branches, guidance[k], False, where)
    ]
    return integrate_all(config, params, branches, trajectories).reshape(count, -1, noise.shape[-1]).swapaxes(0, 1)


def integrate_all(config: NextStepConfig, params: dict, branches: int, trajectories: list[Trajectory]) -> np.ndarray:
    """Where the trajectories end, [trajectories, C]."""
    longest = max(len(one.times) for one in trajectories)
    length = longest + -longest % _EVALUATIONS
    stacked = Trajectory(*map(np.stack, zip(*(_lengthened(one, length) for one in trajectories), strict=True)))
    stacked = Trajectory(*(padded(array, _BATCH) for array in stacked))
    ends = []
    for start in range(0, len(stacked.times), _BATCH):
        some = Trajectory(*(array[start : start + _BATCH] for array in stacked))
        ends.append(_integrate_batch(NextStep(config), branches, params, some))
    return np.concatenate(ends)[: len(trajectories)]


def _lengthened(one: Trajectory, length: int) -> Trajectory:
    missing = length - len(one.times)
    return one._replace(
        times=np.pad(one.times, (0, missing)),
        table=np.concatenate([one.table, np.tile(_REST, (missing, 1))]),
        noise=np.pad(one.noise, ((0, missing), (0, 0))),
    )


@functools.partial(jax.jit, static_argnames=("model", "branches"))
def _integrate_batch(model: NextStep, branches: int, params: dict, trajectories: Trajectory) -> jax.Array:
    def one(trajectory: Trajectory) -> jax.Array:
        times, table, noise, condition, strengths, rescale = trajectory
        call = functools.partial(model.apply, {"params": params})
        modulations = call(call(times, method="embed_times"), condition, method="modulations")

        def velocity(x, i):
            now = jax.tree.map(lambda of_times: of_times[i], modulations)
            v = call(jnp.tile(x, (branches, 1)), now, method="velocity_at")
            cfg, image_cfg = strengths
            return jnp.where(rescale, guide(v, cfg, image_cfg, branches, True), guide(v, cfg, image_cfg, branches))

        return integrate(velocity, jnp.asarray(noise)[:, None], jnp.asarray(table))[0]

    return jax.vmap(one)(trajectories)
