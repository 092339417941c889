"""Learning from scored rollouts: group-relative advantages, GRPO on sampler steps, and forward-process RL (DiffusionNFT).

A group is G images of one prompt. GRPO (Flow-GRPO; NextStep-1.1's report) weighs the log-probability of sampler steps that
were stored with their noise; `flow.likelihood` gives the log ratios. NFT (NVIDIA 2025) needs the finished tokens alone, and
so works with every sampler: a signed, bounded form of the velocity loss.

Letters: P prompts, G images of a prompt, R = P * G rows, S positions, n tokens of an image, M points of a token, ... any
leading axes, C channels of one image token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from nextstep_jax.batch import Batch
from nextstep_jax.errors import InputError
from nextstep_jax.flow.likelihood import Transition
from nextstep_jax.flow.paths import interpolate
from nextstep_jax.models.nextstep import NextStep, gen_pos_embed

Array = jax.Array
Tokens = Float[Array, "*#n C"]  # axes of length 1 are broadcast
PerToken = Float[Array, "*#n"]

MAX_ADVANTAGE = 5.0
WEIGHTS = ("likelihood", "cps", "none")


def informative(
    rewards: Float[Array, "P G"], valid: Bool[Array, " P"], *, min_spread: float = 0.05, max_mean: float = 0.9
) -> Bool[Array, " P"]:
    """Which groups [P] bool have something to teach, of rewards [P, G].

    A group is left out where it is not valid, where its standard deviation is under `min_spread` of that of all valid rewards,
    or 0, or where its mean is above `max_mean`.
    """
    spread, every = jnp.std(rewards, axis=1), _deviation(rewards, valid)
    return valid & (spread > 0) & (spread >= min_spread * every) & (jnp.mean(rewards, axis=1) <= max_mean)


def advantages(rewards: Float[Array, "P G"], valid: Bool[Array, " P"], deviation: str = "group") -> Float[Array, "P G"]:
    """(reward - group mean) / deviation, in [-5, 5]: [P, G] float32.

    Args:
      rewards: [P, G].
      valid: [P], the groups whose rewards count.
      deviation: "group", each group's own standard deviation, or "global", that of all valid rewards around their mean.

    Raises:
      InputError: another deviation.
    """
    if deviation not in ("group", "global"):
        raise InputError(f"deviation must be group or global, found {deviation!r}")
    centered = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    spread = jnp.std(rewards, axis=1, keepdims=True) if deviation == "group" else _deviation(rewards, valid)
    return jnp.clip(centered / (spread + 1e-4), -MAX_ADVANTAGE, MAX_ADVANTAGE)


def _deviation(rewards: Array, valid: Array) -> Array:
    """The standard deviation of all rewards of valid groups; 0 without any."""
    weights = jnp.broadcast_to(valid[:, None], rewards.shape).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weights), 1)
    mean = jnp.sum(weights * rewards) / count
    return jnp.sqrt(jnp.sum(weights * jnp.square(rewards - mean)) / count)


def token_velocities(
    model: NextStep,
    params: dict,
    batch: Batch,
    lengths: Int[Array, " R"],
    points: Float[Array, "R n M C"],
    t: Float[Array, "R n M"],
) -> Float[Array, "R n M C"]:
    """The flow head's velocities at M points and times of each token of finished images, from one parallel pass.

    The condition of a token is what the token loop would have given it: the output projection always applies, and the
    generation-time table where the model has one.

    Args:
      batch: rows of a prompt and the n tokens of an image after it, see `generation.rollouts.rollout_batch`.
      lengths: of the prompts.
    """

    def call(method: str, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    hidden = call("__call__", batch)
    places = lengths[:, None] - 1 + jnp.arange(points.shape[1])
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    if model.config.use_gen_pos_embed:
        table = jnp.asarray(gen_pos_embed(model.config.base_grid, hidden.shape[-1]))
        hidden = (hidden + table[: points.shape[1]]).astype(hidden.dtype)
    conditions = call("project_out", hidden)
    flat = points.reshape(-1, points.shape[-1]), t.reshape(-1), conditions.reshape(-1, conditions.shape[-1])
    return call("velocity", *flat).reshape(points.shape)


def step_weight(weight: str, step: Transition) -> Array:
    """What a trained step's log ratio is multiplied by, so that late steps, with little noise, do not outweigh all others.

    The gradient at the policy that drew is noise . grad v times b / d for "likelihood" (the density itself), 2 b d for "cps"
    (the density's exponent without its variance, as Flow-GRPO has it for that sampler), and 1 for "none".

    Raises:
      InputError: another weight.
    """
    if weight not in WEIGHTS:
        raise InputError(f"weight must be one of {', '.join(WEIGHTS)}, found {weight!r}")
    one = jnp.ones_like(jnp.asarray(step.d))
    return {"likelihood": one, "cps": 2 * one * step.d * step.d, "none": step.d / step.b * one}[weight]


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
