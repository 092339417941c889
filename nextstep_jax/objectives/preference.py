"""Diffusion-DPO on the flow head (paper section 6.3.3; Wallace et al. 2023, in its form for velocities), and on plans.

    e(x)   = mean over tokens, draws and channels of |v(x_t, t | hidden) - (x - noise)|^2, of one image x
    c(y)   = mean over tokens of - log p(token | what precedes it), of the text y that the model wrote before x
    d      = [e(winner) - e_ref(winner)] - [e(loser) - e_ref(loser)], and d_text so of c
    loss   = - log sigmoid(-beta / 2 * d - beta_text * d_text), mean over pairs
             (+ winner_weight * e(winner) + winner_text_weight * c(winner))

Winner and loser, model and reference share times and noise, and all draws of an image stand inside one sigmoid: the more
there are, the closer the argument comes to the logit of DPO. Where both images were drawn after one text, the text term is 0.

Letters: B rows, S positions, P pairs of a row, n slots of the image head in a row, M draws, C channels of one image token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from nextstep_jax.batch import PairedBatch
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.objectives.multitask import Targets, target_losses

Array = jax.Array


class PairErrors(NamedTuple):
    """Of each pair, [B, P] each; 0 where a row has no such pair.

    Attributes:
      winner, loser: e of the two images.
      winner_text, loser_text: c of the texts before them; 0 where there is none, or where texts are left out.
    """

    winner: Array
    loser: Array
    winner_text: Array
    loser_text: Array


class PairTerms(NamedTuple):
    """What is known of each pair, [B, P] each.

    Attributes:
      loss: of the pair; log 2 where the model is the reference and there is no weight on winners.
      correct: 1 where the model, measured from the reference, prefers the winner.
      margin: the argument of the sigmoid.
      text_margin: -beta_text * d_text, the texts' part of it.
      winner_drift, loser_drift: e - e_ref. A winner's drift above 0 means that the margin is won by unlearning the loser.
      winner_text_drift, loser_text_drift: the same of c.
      winner_error: e of the winner.
    """

    loss: Array
    correct: Array
    margin: Array
    text_margin: Array
    winner_drift: Array
    loser_drift: Array
    winner_text_drift: Array
    loser_text_drift: Array
    winner_error: Array


def pair_errors(
    model: NextStep,
    params: dict,
    batch: PairedBatch,
    noise: Float[Array, "B n M C"],
    t: Float[Array, "B n M"],
    *,
    max_text_targets: int | None,
    max_image_targets: int | None,
) -> PairErrors:
    """The errors of both sides of every pair; P = n, since a pair has at least one image target.

    Args:
      batch: a pair is a segment with one image that counts as a target, and text that does where it is the model's own.
      noise, t: [B, n, M, C] and [B, n, M], see `multitask.draw_noise`; the two images of a pair, as long as each other, find
        the same slots.
      max_text_targets: 0 leaves texts out.
    """
    noise, t = (jnp.repeat(array, 2, axis=0) for array in (noise, t))
    rows = batch.interleaved()
    limits = {"max_text_targets": max_text_targets, "max_image_targets": max_image_targets}
    text, image = target_losses(model, params, rows, noise, t, **limits)
    pairs = image.losses.shape[1]

    def errors(targets: Targets) -> Array:
        owners = jnp.take_along_axis(rows.segment_ids, targets.positions, axis=1, mode="clip") - 1
        return segment_means(targets.losses, targets.weights, owners, pairs)

    images = errors(image)
    texts = jnp.zeros_like(images) if text is None else errors(text)
    return PairErrors(images[0::2], images[1::2], texts[0::2], texts[1::2])


def segment_means(
    losses: Float[Array, "B n"], weights: Float[Array, "B n"], segments: Int[Array, "B n"], count: int
) -> Float[Array, "B count"]:
    """The mean loss of each segment of a row.

    Args:
      losses, weights: [B, n] of one head's targets, see `multitask.Targets`.
      segments: [B, n] int32, which segment of its row a target belongs to, from 0.
      count: the most segments of a row.

    Returns:
      [B, count] float32; 0 for a segment without a target.
    """

    def sums(values: Array) -> Array:
        return jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, count))(values, segments)

    total, weight = sums(losses * weights), sums(weights)
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)


def pair_weights(batch: PairedBatch, pairs: int) -> Float[Array, "B P"]:
    """[B, P] float32: 1 for the pairs that a row has."""
    return (jnp.arange(pairs) < jnp.max(batch.winners.segment_ids, axis=1, keepdims=True)).astype(jnp.float32)


def preference_terms(
    errors: PairErrors,
    reference: PairErrors,
    *,
    beta: float,
    beta_text: float = 0.0,
    winner_weight: float = 0.0,
    winner_text_weight: float = 0.0,
) -> PairTerms:
    """The loss of each pair, and what it is made of.

    Args:
      errors, reference: of the model and of the reference, [B, P] or any one shape; no gradient reaches the reference's.
      beta: how strongly the reference holds the flow head back; DiffusionDPO takes 5000 with one draw an image.
      beta_text: the same of the language head, on the mean of a text's tokens.
      winner_weight, winner_text_weight: of the winners' own e and c, against unlearning winner and loser alike.
    """
    reference = jax.lax.stop_gradient(reference)
    winner_drift, loser_drift = errors.winner - reference.winner, errors.loser - reference.loser
    winner_text, loser_text = errors.winner_text - reference.winner_text, errors.loser_text - reference.loser_text
    text_margin = -beta_text * (winner_text - loser_text)
    margin = -0.5 * beta * (winner_drift - loser_drift) + text_margin
    kept = winner_weight * errors.winner + winner_text_weight * errors.winner_text
    return PairTerms(
        loss=kept - jax.nn.log_sigmoid(margin),
        correct=(margin > 0).astype(jnp.float32),
        margin=margin,
        text_margin=text_margin,
        winner_drift=winner_drift,
        loser_drift=loser_drift,
        winner_text_drift=winner_text,
        loser_text_drift=loser_text,
        winner_error=errors.winner,
    )
