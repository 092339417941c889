"""Diffusion-DPO on the flow head (paper section 6.3.3; Wallace et al. 2023, in its form for velocities).

    e(x)  = mean over tokens, draws and channels of |v(x_t, t | hidden) - (x - noise)|^2, of one image x
    delta = [e(winner) - e_ref(winner)] - [e(loser) - e_ref(loser)]
    loss  = - log sigmoid(-beta / 2 * delta)  (+ winner_weight * e(winner)), mean over pairs

Winner and loser, model and reference share times and noise, and all draws of an image stand inside one sigmoid: the more
there are, the closer the argument comes to the logit of DPO.

Letters: B rows, S positions, P pairs of a row, n slots of the image head in a row, M draws, C channels of one image token.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from nextstep_jax.batch import Batch
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.objectives.multitask import image_losses

Array = jax.Array


class PairErrors(NamedTuple):
    """Errors e [B, P] of the two images of each pair; 0 where a row has no such pair."""

    winner: Array
    loser: Array


class PairTerms(NamedTuple):
    """What is known of each pair, [B, P] each.

    Attributes:
      loss: of the pair; log 2 where the model is the reference and there is no weight on winners.
      correct: 1 where the model, measured from the reference, prefers the winner.
      margin: -beta / 2 * delta, the argument of the sigmoid.
      winner_drift, loser_drift: e - e_ref. A winner's drift above 0 means that the margin is won by unlearning the loser.
      winner_error: e of the winner.
    """

    loss: Array
    correct: Array
    margin: Array
    winner_drift: Array
    loser_drift: Array
    winner_error: Array


def split_pairs(batch: Batch) -> Batch:
    """Rows of pairs, whose image positions hold 2 C numbers (the winner's first), as two rows each of C numbers: 2 B rows, the
    winners' even ones.
    """
    doubled = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
    rows, positions, numbers = batch.image_tokens.shape
    tokens = jnp.moveaxis(batch.image_tokens.reshape(rows, positions, 2, numbers // 2), 2, 1)
    return dataclasses.replace(doubled, image_tokens=tokens.reshape(2 * rows, positions, numbers // 2))


def pair_errors(
    model: NextStep,
    params: dict,
    batch: Batch,
    noise: Float[Array, "B n M C"],
    t: Float[Array, "B n M"],
    max_image_targets: int,
) -> PairErrors:
    """The errors of both images of every pair; P = n, since a pair has at least one target.

    Args:
      batch: rows of pairs, each a segment with one image that counts as a target.
      noise, t: [B, n, M, C] and [B, n, M], see `multitask.draw_noise`.
    """
    draws = (jnp.repeat(array, 2, axis=0) for array in (noise, t))
    rows = split_pairs(batch)
    targets = image_losses(model, params, rows, *draws, max_image_targets=max_image_targets)
    pairs = jnp.take_along_axis(rows.segment_ids, targets.positions, axis=1, mode="clip") - 1
    errors = image_errors(targets.losses, targets.weights, pairs, targets.losses.shape[1])
    return PairErrors(errors[0::2], errors[1::2])


def image_errors(
    losses: Float[Array, "B n"], weights: Float[Array, "B n"], images: Int[Array, "B n"], max_images: int
) -> Float[Array, "B max_images"]:
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


def pair_weights(batch: Batch, pairs: int) -> Float[Array, "B P"]:
    """[B, P] float32: 1 for the pairs that a row has."""
    return (jnp.arange(pairs) < jnp.max(batch.segment_ids, axis=1, keepdims=True)).astype(jnp.float32)


def preference_terms(errors: PairErrors, reference: PairErrors, *, beta: float, winner_weight: float = 0.0) -> PairTerms:
    """The loss of each pair, and what it is made of.

    Args:
      errors, reference: of the model and of the reference, [B, P] or any one shape; no gradient reaches the reference's.
      beta: how strongly the reference holds the model back; DiffusionDPO takes 5000 with one draw an image.
      winner_weight: of the winners' own error, against unlearning winner and loser alike.
    """
    reference = jax.lax.stop_gradient(reference)
    winner_drift, loser_drift = errors.winner - reference.winner, errors.loser - reference.loser
    margin = -0.5 * beta * (winner_drift - loser_drift)
    loss = winner_weight * errors.winner - jax.nn.log_sigmoid(margin)
    return PairTerms(loss, (margin > 0).astype(jnp.float32), margin, winner_drift, loser_drift, errors.winner)
