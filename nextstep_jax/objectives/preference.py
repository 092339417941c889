"""Diffusion-DPO on the flow head (paper section 6.3.3; Wallace et al. 2023, in its form for velocities).

    e(x)  = mean over tokens, draws and channels of |v(x_t, t | hidden) - (x - noise)|^2, of one image x
    delta = [e(winner) - e_ref(winner)] - [e(loser) - e_ref(loser)]
    loss  = - mean over pairs of log sigmoid(-beta / 2 * delta)  (+ winner_weight * e(winner))

Winner and loser, model and reference share times and noise, and all draws of an image stand inside one sigmoid: the more
there are, the closer the argument comes to the logit of DPO.

Letters: B batch, P pairs, n slots of the image head in a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class PreferenceMetrics(NamedTuple):
    """What `dpo_loss` reports beside the loss, weighted means over pairs, [] float32 each.

    Attributes:
      accuracy: how often the model, measured from the reference, prefers the winner.
      margin: -beta / 2 * delta, the argument of the sigmoid.
      winner_drift, loser_drift: e - e_ref. A winner's drift above 0 means that the margin is won by unlearning the loser.
      winner_error: e of the winners.
    """

    accuracy: Array
    margin: Array
    winner_drift: Array
    loser_drift: Array
    winner_error: Array


def image_errors(losses: Array, weights: Array, images: Array, max_images: int) -> Array:
    """Each image's mean loss.

    Args:
      losses, weights: [B, n] of the image targets, see `multitask.Targets`.
      images: [B, n] int32, which image of its row a target belongs to, from 0.
      max_images: of a row.

    Returns:
      [B, max_images] float32; 0 for an image without a target.
    """

    def sums(values: Array) -> Array:
        return jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, max_images))(values, images)

    total, weight = sums(losses * weights), sums(weights)
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)


def dpo_loss(
    winner: Array,
    loser: Array,
    reference_winner: Array,
    reference_loser: Array,
    weights: Array,
    *,
    beta: float,
    winner_weight: float = 0.0,
) -> tuple[Array, PreferenceMetrics]:
    """The loss of P pairs from their images' errors.

    Args:
      winner, loser, reference_winner, reference_loser: [P] float32 errors e; no gradient reaches the reference's.
      weights: [P] float32; 0 for a pair that is padding.
      beta: how strongly the reference holds the model back; DiffusionDPO takes 5000 with one draw an image.
      winner_weight: of the winners' own error, against unlearning winner and loser alike.

    Returns:
      [] float32, log 2 where the model is the reference and winner_weight is 0, and metrics.
    """
    reference_winner, reference_loser = jax.lax.stop_gradient((reference_winner, reference_loser))
    winner_drift, loser_drift = winner - reference_winner, loser - reference_loser
    margin = -0.5 * beta * (winner_drift - loser_drift)

    def mean(values: Array) -> Array:
        return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1e-9)

    loss = mean(-jax.nn.log_sigmoid(margin)) + winner_weight * mean(winner)
    metrics = PreferenceMetrics(*map(mean, (margin > 0, margin, winner_drift, loser_drift, winner)))
    return loss, metrics
