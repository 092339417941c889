"""The straight path from noise to data, and the timestep distributions of training (paper section 4.2).

t = 0 is noise, t = 1 is data: x_t = t x + (1 - t) noise, velocity = x - noise.
Letters: C channels of one image token.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextstep_jax.errors import InputError

Array = jax.Array
Tokens = Float[Array, "*#n C"]  # axes of length 1 are broadcast
PerToken = Float[Array, "*#n"]

MAX_SHIFT = 1e4  # far beyond use; larger ones lose the last times to rounding
ERROR_TARGETS = ("velocity", "data", "noise")


def interpolate(x: Tokens, noise: Tokens, t: PerToken) -> Tokens:
    """The point [..., C] at times t [...] on the path from noise [..., C] to data x [..., C]."""
    t = t[..., None]
    return t * x + (1 - t) * noise


def velocity_target(x: Tokens, noise: Tokens) -> Tokens:
    """The path's constant velocity, what the flow head learns to predict."""
    return x - noise


def error_weight(target: str, t: PerToken) -> PerToken:
    """What turns the squared error of a velocity at times t into that of the data or the noise which it implies.

    x = x_t + (1 - t) v and noise = x_t - t v, so their squared errors are (1 - t)^2 and t^2 times the velocity's.

    Args:
      target: one of ERROR_TARGETS.
    """
    return {"velocity": jnp.ones_like(t), "data": jnp.square(1 - t), "noise": jnp.square(t)}[target]


@dataclasses.dataclass(frozen=True)
class TimestepDistribution:
    """How training draws times. The defaults are both releases'.

    Attributes:
      distribution: "logit_normal": sigmoid(N(mean, std^2)); "uniform": U[0, 1).
      mean, std: of the logit-normal; a higher mean moves times towards data.
      shift: applied to what is drawn, see `shift_times`; more than 1 moves times towards noise.
      stratified: the draws along the last axis share the distribution out among them, one from each of equally likely parts.
    """

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.distribution not in ("logit_normal", "uniform"):
            raise InputError(f"distribution must be logit_normal or uniform, found {self.distribution!r}")
        if not np.isfinite(self.mean):
            raise InputError(f"mean must be a finite number, found {self.mean}")
        if not (np.isfinite(self.std) and self.std > 0):
            raise InputError(f"std must be a positive number, found {self.std}")
        if not 0 < self.shift <= MAX_SHIFT:
            raise InputError(f"shift must be a positive number of at most {MAX_SHIFT:g}, found {self.shift}")

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Times of a shape, float32 in [0, 1]."""
        normal = self.distribution == "logit_normal"
        if self.stratified:
            parts = (jnp.arange(shape[-1]) + jax.random.uniform(key, shape)) / shape[-1]
            drawn = jax.scipy.special.ndtri(parts) if normal else parts
        else:
            drawn = jax.random.normal(key, shape) if normal else jax.random.uniform(key, shape)
        t = jax.nn.sigmoid(self.mean + self.std * drawn) if normal else drawn
        return t if self.shift == 1 else jnp.asarray(shift_times(t, self.shift))


RELEASED_TIMESTEPS = TimestepDistribution()


def shift_times(t: Array | np.ndarray, shift: float) -> Array | np.ndarray:
    """t / (shift - (shift - 1) t): moves times towards noise for shift > 1 and keeps 0 and 1 where they are.

    Raises:
      InputError: the shift is not in (0, MAX_SHIFT].
    """
    if not 0 < shift <= MAX_SHIFT:
        raise InputError(f"timestep shift must be a positive number of at most {MAX_SHIFT:g}, found {shift}")
    return t / (shift - (shift - 1) * t)
