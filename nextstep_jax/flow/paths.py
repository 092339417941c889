"""The straight path from noise to data, and the laws that times are drawn from (paper section 4.2).

t = 0 is noise, t = 1 is data: x_t = t x + (1 - t) noise, velocity = x - noise.
Letters: C channels of one image token.
"""

import jax
import numpy as np

from nextstep_jax.errors import InputError

Array = jax.Array

MAX_SHIFT = 1e4  # far beyond use; larger ones lose the last times to rounding


def interpolate(x: Array, noise: Array, t: Array) -> Array:
    """The point [..., C] at times t [...] on the path from noise [..., C] to data x [..., C]."""
    t = t[..., None]
    return t * x + (1 - t) * noise


def velocity_target(x: Array, noise: Array) -> Array:
    """The path's constant velocity, what the flow head learns to predict."""
    return x - noise


def logit_normal_times(key: Array, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> Array:
    """Times sigmoid(N(mean, std^2)) in (0, 1), float32: both releases' training law at mean 0 and std 1."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, shape))


def uniform_times(key: Array, shape: tuple[int, ...]) -> Array:
    """Times U[0, 1), float32."""
    return jax.random.uniform(key, shape)


def shift_times(t: Array | np.ndarray, shift: float) -> Array | np.ndarray:
    """t / (shift - (shift - 1) t): moves times towards noise for shift > 1 and keeps 0 and 1 where they are.

    Raises:
      InputError: the shift is not in (0, MAX_SHIFT].
    """
    if not 0 < shift <= MAX_SHIFT:
        raise InputError(f"timestep shift must be a positive number of at most {MAX_SHIFT:g}, found {shift}")
    return t / (shift - (shift - 1) * t)
