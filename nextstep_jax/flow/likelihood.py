"""Densities of sampler steps, for objectives that compare how likely two velocity fields make the same step.

A row (a, b, c, d) of `samplers.step_table` with c = 0 and d > 0 draws the next state from the normal distribution
N(a x + b v, d^2 I). Differences of its log-densities are computed from the noise that was drawn and the difference of the
velocities, never as differences of two large numbers. "sde" and "1.1" have a density at every step, "cps" and "august2025" at
all but the last; the steps of "ode", "heun" and "ab2" are deterministic.

The states are the sampler's own: tokens that were normalized after the last step (`normalize_tokens`) have no density.

Letters: E evaluations, C channels of one image token.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.errors import InputError

Array = jax.Array
Tokens = Float[Array, "*#n C"]  # axes of length 1 are broadcast
PerToken = Float[Array, "*#n"]


class Transition(NamedTuple):
    """A step x -> a x + b v + d noise, with d > 0. `log_ratio` and `kl` also take arrays that broadcast against tokens."""

    a: float | Array
    b: float | Array
    d: float | Array


def has_density(table: np.ndarray) -> np.ndarray:
    """Which rows of a step table [E, 4] are normal distributions: [E] bool."""
    return (table[:, 2] == 0) & (table[:, 3] > 0)


def transition(table: np.ndarray, index: int) -> Transition:
    """Row `index` of a step table [E, 4].

    Raises:
      InputError: there is no such row, or it is a deterministic step or one that needs the velocity before.
    """
    if not 0 <= index < len(table):
        raise InputError(f"step must be in [0, {len(table)}), found {index}")
    if not has_density(table)[index]:
        steps = np.flatnonzero(has_density(table)).tolist()
        raise InputError(f"step {index} of this sampler has no density, steps that have one: {steps or 'none'}")
    a, b, _, d = (float(value) for value in table[index])
    return Transition(a, b, d)


def log_prob(step: Transition, x: Tokens, velocity: Tokens, following: Tokens) -> PerToken:
    """log N(following; a x + b velocity, d^2 I) in nats, summed over channels: [..., C] each -> [...]."""
    residual = (following - step.a * x - step.b * velocity) / step.d
    return -0.5 * jnp.sum(jnp.square(residual), axis=-1) - x.shape[-1] * (jnp.log(step.d) + 0.5 * math.log(2 * math.pi))


def log_ratio(step: Transition, velocity: Tokens, old_velocity: Tokens, noise: Tokens) -> PerToken:
    """log p(step | velocity) - log p(step | old_velocity) in nats, summed over channels: [..., C] each -> [...].

    Args:
      noise: what the step was drawn with under `old_velocity`. It has to be the stored one.
    """
    change = step.b / step.d * (velocity - old_velocity)
    return jnp.sum(noise * change, axis=-1) - 0.5 * jnp.sum(jnp.square(change), axis=-1)


def kl(step: Transition, velocity: Tokens, reference_velocity: Tokens) -> PerToken:
    """KL(step under velocity || step under reference_velocity) in nats, summed over channels: [..., C] each -> [...]."""
    return 0.5 * jnp.sum(jnp.square(step.b / step.d * (velocity - reference_velocity)), axis=-1)
