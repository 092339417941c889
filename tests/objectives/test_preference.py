"""Diffusion-DPO against a float64 rewrite, its value and gradient at the reference, and its symmetries."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.models.nextstep import NextStep, empty_batch
from nextstep_jax.objectives.multitask import draw_noise, multitask_loss
from nextstep_jax.objectives.preference import (
    PairErrors,
    image_errors,
    pair_errors,
    pair_weights,
    preference_terms,
    split_pairs,
)


def errors(seed: int, pairs: int = 6) -> tuple[PairErrors, PairErrors]:
    numbers = np.random.default_rng(seed).uniform(0.5, 1.5, size=(4, pairs)).astype(np.float32)
    return PairErrors(*numbers[:2]), PairErrors(*numbers[2:])


def oracle(own: PairErrors, reference: PairErrors, beta: float, winner_weight: float) -> list[float]:
    losses = []
    for won, lost, ref_won, ref_lost in zip(*own, *reference, strict=True):
        delta = (float(won) - float(ref_won)) - (float(lost) - float(ref_lost))
        losses.append(-math.log(1 / (1 + math.exp(beta / 2 * delta))) + winner_weight * float(won))
    return losses


@pytest.mark.parametrize("beta, winner_weight", [(1.0, 0.0), (5.0, 0.3)])
def test_loss_is_the_oracles(beta, winner_weight):
    own, reference = errors(0)
    terms = preference_terms(own, reference, beta=beta, winner_weight=winner_weight)
    np.testing.assert_allclose(terms.loss, oracle(own, reference, beta, winner_weight), rtol=1e-5)


def test_at_the_reference_the_loss_is_log_two_and_the_gradient_a_quarter_of_beta():
    own, _ = errors(1)
    beta = 7.0
    grads = jax.grad(lambda own, ref: preference_terms(own, ref, beta=beta).loss.sum(), argnums=(0, 1))(own, own)
    np.testing.assert_allclose(preference_terms(own, own, beta=beta).loss, np.full(6, math.log(2)), rtol=1e-6)
    for grad, expected in zip(jax.tree.leaves(grads), (beta / 4, -beta / 4, 0, 0), strict=True):
        np.testing.assert_allclose(grad, np.full(6, expected), rtol=1e-6)


def test_swapping_winner_and_loser_negates_the_margin_and_the_drifts():
    own, reference = errors(2)
    one = preference_terms(own, reference, beta=3.0)
    other = preference_terms(PairErrors(own.loser, own.winner), PairErrors(reference.loser, reference.winner), beta=3.0)
    np.testing.assert_allclose(one.margin, -other.margin, rtol=1e-5)
    np.testing.assert_allclose(one.correct, 1 - other.correct)
    np.testing.assert_allclose(one.winner_drift, other.loser_drift, rtol=1e-5)


@pytest.fixture(scope="module")
def rows(tiny_config):
    """Two rows of pairs: three segments (grids of 2, 3 and 2 tokens) and one, then padding."""
    channels = tiny_config.token_channels
    batch = empty_batch(tiny_config, 2, 24)
    ids, is_image = np.zeros((2, 24), np.int32), np.zeros((2, 24), bool)
    weight, segments, positions = np.zeros((2, 24), np.float32), np.zeros((2, 24), np.int32), np.zeros((2, 24), np.int32)
    for row, images in enumerate([(2, 3, 2), (4,)]):
        start = 0
        for number, count in enumerate(images, 1):
            stop = start + 3 + count
            ids[row, start : start + 3] = 5 + number
            is_image[row, start + 3 : stop], weight[row, start + 3 : stop] = True, 1
            segments[row, start:stop], positions[row, start:stop] = number, np.arange(3 + count)
            start = stop
    tokens = np.random.default_rng(0).normal(size=(2, 24, 2 * channels)) * is_image[..., None]
    return dataclasses.replace(
        batch,
        text_ids=jnp.asarray(ids),
        image_tokens=jnp.asarray(tokens, jnp.float32),
        is_image=jnp.asarray(is_image),
        positions=jnp.asarray(positions),
        segment_ids=jnp.asarray(segments),
        text_weight=jnp.zeros((2, 24)),
        image_weight=jnp.asarray(weight),
    )


def test_rows_of_pairs_become_rows_of_winners_and_losers(rows, tiny_config):
    split, channels = split_pairs(rows), tiny_config.token_channels
    np.testing.assert_array_equal(split.image_tokens[0::2], rows.image_tokens[..., :channels])
    np.testing.assert_array_equal(split.image_tokens[1::2], rows.image_tokens[..., channels:])
    for name in ("text_ids", "is_image", "positions", "segment_ids", "image_weight"):
        np.testing.assert_array_equal(getattr(split, name)[0::2], getattr(rows, name))
        np.testing.assert_array_equal(getattr(split, name)[1::2], getattr(rows, name))


def test_errors_are_those_of_each_image_alone(rows, tiny_config, tiny_params):
    """The error of an image is the multitask loss of a batch that holds it alone, under the same draws."""
    model, slots, channels = NextStep(tiny_config), 8, tiny_config.token_channels
    noise, t = draw_noise(jax.random.key(1), 2, slots, 3, channels)
    found = jax.jit(functools.partial(pair_errors, model, max_image_targets=slots))(tiny_params, rows, noise, t)
    loss = jax.jit(functools.partial(multitask_loss, model, max_text_targets=4, max_image_targets=slots))
    np.testing.assert_array_equal(pair_weights(rows, slots).sum(axis=1), [3, 1])
    for row, pair in ((0, 0), (0, 1), (0, 2), (1, 0)):
        weight = rows.image_weight * (rows.segment_ids == pair + 1) * (jnp.arange(2)[:, None] == row)
        before = int((rows.image_weight[row] * (rows.segment_ids[row] <= pair)).sum())  # slots of the pairs before
        moved = [jnp.roll(array, -before, axis=1) for array in (noise, t)]
        for error, half in zip(found, (slice(0, channels), slice(channels, None)), strict=True):
            alone = dataclasses.replace(rows, image_tokens=rows.image_tokens[..., half], image_weight=weight)
            _, metrics = loss(tiny_params, alone, *moved)
            np.testing.assert_allclose(error[row, pair], metrics.im_loss, rtol=1e-5)
    assert not np.any(found.winner[0, 3:]) and not np.any(found.loser[1, 1:])


def test_image_errors_are_the_weighted_means_of_each_image():
    rng = np.random.default_rng(4)
    losses, weights = rng.uniform(size=(2, 3, 12)).astype(np.float32)
    images = np.sort(rng.integers(0, 4, size=(3, 12)), axis=1)
    weights[0, images[0] == images[0, 0]] = 0  # an image without a target
    got = image_errors(losses, weights, images, 5)
    for row in range(3):
        for image in range(5):
            here = images[row] == image
            total = np.float64(weights[row, here]).sum()
            expected = (np.float64(losses[row, here]) * weights[row, here]).sum() / total if total else 0
            np.testing.assert_allclose(got[row, image], expected, rtol=1e-5)
