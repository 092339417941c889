"""Diffusion-DPO against a float64 rewrite, its value and gradient at the reference, and its symmetries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.objectives.preference import dpo_loss, image_errors


def errors(seed: int, pairs: int = 6) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).uniform(0.5, 1.5, size=(4, pairs)).astype(np.float32))


def oracle(winner, loser, reference_winner, reference_loser, weights, beta, winner_weight=0.0):
    total = 0.0
    for won, lost, ref_won, ref_lost, weight in zip(winner, loser, reference_winner, reference_loser, weights, strict=True):
        delta = (float(won) - float(ref_won)) - (float(lost) - float(ref_lost))
        total += weight * (-math.log(1 / (1 + math.exp(beta / 2 * delta))) + winner_weight * float(won))
    return total / sum(weights)


@pytest.mark.parametrize("beta, winner_weight", [(1.0, 0.0), (5.0, 0.3)])
def test_loss_is_the_oracles(beta, winner_weight):
    values, weights = errors(0), [1, 1, 0, 2, 1, 0]
    loss, _ = dpo_loss(*values, jnp.asarray(weights, jnp.float32), beta=beta, winner_weight=winner_weight)
    np.testing.assert_allclose(loss, oracle(*values, weights, beta, winner_weight), rtol=1e-5)


def test_at_the_reference_the_loss_is_log_two_and_the_gradient_a_quarter_of_beta():
    winner, loser, *_ = errors(1)
    ones, beta = jnp.ones(len(winner)), 7.0

    def loss(winner, loser, reference_winner, reference_loser):
        return dpo_loss(winner, loser, reference_winner, reference_loser, ones, beta=beta)[0]

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(winner, loser, winner, loser)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    share = beta / 4 / len(winner)
    for grad, expected in zip(grads, (share, -share, 0, 0), strict=True):
        np.testing.assert_allclose(grad, np.full(len(winner), expected), rtol=1e-6)


def test_swapping_winner_and_loser_negates_the_margin_and_the_drifts():
    winner, loser, reference_winner, reference_loser = errors(2)
    ones = jnp.ones(len(winner))
    _, one = dpo_loss(winner, loser, reference_winner, reference_loser, ones, beta=3.0)
    _, other = dpo_loss(loser, winner, reference_loser, reference_winner, ones, beta=3.0)
    np.testing.assert_allclose(one.margin, -other.margin, rtol=1e-5)
    np.testing.assert_allclose(one.accuracy, 1 - other.accuracy, rtol=1e-6)
    np.testing.assert_allclose(one.winner_drift, other.loser_drift, rtol=1e-5)


def test_a_padding_pair_changes_nothing_and_no_pair_gives_zero():
    values = errors(3)
    weights = jnp.asarray([1, 1, 1, 1, 1, 0], jnp.float32)
    whole, _ = dpo_loss(*values, weights, beta=2.0)
    short, _ = dpo_loss(*(value[:5] for value in values), jnp.ones(5), beta=2.0)
    np.testing.assert_allclose(whole, short, rtol=1e-6)
    assert float(dpo_loss(*values, jnp.zeros(6), beta=2.0)[0]) == 0


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
