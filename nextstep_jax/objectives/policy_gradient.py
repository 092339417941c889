"""Learning from scored rollouts: group-relative advantages, GRPO on sampler steps, and forward-process RL (DiffusionNFT).

A group is G images of one prompt. GRPO (Flow-GRPO; NextStep-1.1's report) weighs the log-probability of sampler steps that
were stored with their noise; `flow.likelihood` gives the log ratios. NFT (NVIDIA 2025) needs the finished tokens alone, and
so works with every sampler: a signed, bounded form of the velocity loss.

Letters: P prompts, G images of a prompt, ... any leading axes, C channels of one image token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import interpolate

Array = jax.Array
Tokens = Float[Array, "*n C"]
PerToken = Float[Array, "*n"]

MAX_ADVANTAGE = 5.0


def informative(
    rewards: Float[Array, "P G"], *, min_spread: float = 0.05, max_mean: float = 0.9, best: float = 1.0
) -> Bool[Array, " P"]:
    """Which groups [P] bool have something to teach, of rewards [P, G].

    A group is left out where its standard deviation is under `min_spread` of that of all rewards, or 0, or where its mean is
    above `max_mean` of the best possible reward.
    """
    spread = jnp.std(rewards, axis=1)
    return (spread > 0) & (spread >= min_spread * jnp.std(rewards)) & (jnp.mean(rewards, axis=1) <= max_mean * best)


def advantages(rewards: Float[Array, "P G"], deviation: str = "group") -> Float[Array, "P G"]:
    """(reward - group mean) / deviation, in [-5, 5]: [P, G] float32.

    Args:
      rewards: [P, G].
      deviation: "group", each group's own standard deviation, or "global", that of all rewards around all groups' mean.

    Raises:
      InputError: another deviation.
    """
    if deviation not in ("group", "global"):
        raise InputError(f"deviation must be group or global, found {deviation!r}")
    centered = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    spread = jnp.std(rewards, axis=1, keepdims=True) if deviation == "group" else jnp.std(rewards)
    return jnp.clip(centered / (spread + 1e-4), -MAX_ADVANTAGE, MAX_ADVANTAGE)


def clipped_surrogate(log_ratio: Float[Array, "*#n"], advantage: Float[Array, "*#n"], clip: float) -> Float[Array, "*#n"]:
    """PPO's loss -min(r A, clip(r, 1 - clip, 1 + clip) A) with r = exp(log_ratio), elementwise.

    With one update for each rollout r is 1, the clipping never acts, and the gradient is -A grad log_ratio.
    """
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def optimality(advantage: PerToken) -> PerToken:
    """NFT's probability in [0, 1] that an image is a good one, from its advantage."""
    return jnp.clip(0.5 + advantage / (2 * MAX_ADVANTAGE), 0, 1)


def nft_loss(
    velocity: Tokens, old_velocity: Tokens, x: Tokens, noise: Tokens, t: PerToken, good: PerToken, beta: float = 1.0
) -> PerToken:
    """Forward-process loss of each token and draw, [...] float32.

    Two mixtures of the new and the old field, v+ = beta v + (1 - beta) v_old and v- = (1 + beta) v_old - beta v, are asked to
    end at x, the one with weight `good`, the other with 1 - good. Errors are those of the ends x_t + (1 - t) v, squared, and
    divided by their own mean absolute value, so that no time dominates. Where new and old field are one, the gradient is
    (2 good - 1) times that of the velocity loss (so weighted), whatever beta is.

    Args:
      velocity, old_velocity: [..., C] at the point of x, noise and t; no gradient reaches the old one.
      x, noise: [..., C]; t: [...].
      good: [...] in [0, 1], see `optimality`.
    """
    old_velocity = jax.lax.stop_gradient(old_velocity)
    start, rest = interpolate(x, noise, t), (1 - t)[..., None]

    def error(field: Array) -> Array:
        residual = start + rest * field - x
        scale = jax.lax.stop_gradient(jnp.maximum(jnp.mean(jnp.abs(residual), axis=-1), 1e-5))
        return jnp.mean(jnp.square(residual), axis=-1) / scale

    positive = beta * velocity + (1 - beta) * old_velocity
    negative = (1 + beta) * old_velocity - beta * velocity
    return MAX_ADVANTAGE / beta * (good * error(positive) + (1 - good) * error(negative))
