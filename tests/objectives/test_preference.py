"""Diffusion-DPO against a float64 rewrite, its value and gradient at the reference, and its symmetries."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.batch import Batch, PairedBatch
from nextstep_jax.models.nextstep import NextStep, empty_batch
from nextstep_jax.objectives.multitask import draw_noise, multitask_loss
from nextstep_jax.objectives.preference import PairErrors, pair_errors, pair_weights, preference_terms, segment_means


def errors(seed: int, pairs: int = 6) -> tuple[PairErrors, PairErrors]:
    numbers = np.random.default_rng(seed).uniform(0.5, 1.5, size=(2, 4, pairs)).astype(np.float32)
    return PairErrors(*numbers[0]), PairErrors(*numbers[1])


def swapped(errors: PairErrors) -> PairErrors:
    return PairErrors(errors.loser, errors.winner, errors.loser_text, errors.winner_text)


def oracle(
    own: PairErrors, reference: PairErrors, beta: float, beta_text: float, winner_weight: float, winner_text_weight: float
) -> list[float]:
    losses = []
    for pair, before in zip(np.float64(own).T, np.float64(reference).T, strict=True):
        image, other_image, text, other_text = pair - before
        margin = -beta / 2 * (image - other_image) - beta_text * (text - other_text)
        kept = winner_weight * pair[0] + winner_text_weight * pair[2]
        losses.append(-math.log(1 / (1 + math.exp(-margin))) + kept)
    return losses


@pytest.mark.parametrize("strengths", [(1.0, 0.0, 0.0, 0.0), (5.0, 0.7, 0.3, 0.0), (0.0, 2.0, 0.0, 0.4)])
def test_loss_is_the_oracles(strengths):
    own, reference = errors(0)
    names = ("beta", "beta_text", "winner_weight", "winner_text_weight")
    terms = preference_terms(own, reference, **dict(zip(names, strengths, strict=True)))
    np.testing.assert_allclose(terms.loss, oracle(own, reference, *strengths), rtol=1e-5)


def test_at_the_reference_the_loss_is_log_two_and_the_gradient_a_quarter_of_beta():
    own, _ = errors(1)
    beta, beta_text = 7.0, 0.6

    def loss(own, reference):
        return preference_terms(own, reference, beta=beta, beta_text=beta_text).loss

    grads = jax.grad(lambda own, reference: loss(own, reference).sum(), argnums=(0, 1))(own, own)
    np.testing.assert_allclose(loss(own, own), np.full(6, math.log(2)), rtol=1e-6)
    expected = PairErrors(beta / 4, -beta / 4, beta_text / 2, -beta_text / 2)
    for grad, value in zip(jax.tree.leaves(grads), (*expected, 0, 0, 0, 0), strict=True):
        np.testing.assert_allclose(grad, np.full(6, value), rtol=1e-6)


def test_swapping_winner_and_loser_negates_the_margin_and_the_drifts():
    own, reference = errors(2)
    one = preference_terms(own, reference, beta=3.0, beta_text=0.5)
    other = preference_terms(swapped(own), swapped(reference), beta=3.0, beta_text=0.5)
    np.testing.assert_allclose(one.margin, -other.margin, rtol=1e-5)
    np.testing.assert_allclose(one.text_margin, -other.text_margin, rtol=1e-5)
    np.testing.assert_allclose(one.correct, 1 - other.correct)
    np.testing.assert_allclose(one.winner_drift, other.loser_drift, rtol=1e-5)
    np.testing.assert_allclose(one.winner_text_drift, other.loser_text_drift, rtol=1e-5)


ROWS = (((2, 3, 0), (3, 1, 2), (2, 2, 2)), ((4, 0, 3),))  # of each pair: image tokens, ids of the winner's plan, the loser's
SHARED = 3  # ids of the prompt


def side(config, which: int) -> Batch:
    """Two rows of pairs, three segments and one, then padding: a prompt, a plan, an image of made-up tokens."""
    rng, length = np.random.default_rng(which), 32
    text_weight, image_weight = np.zeros((2, 2, length), np.float32)
    segments, positions = np.zeros((2, 2, length), np.int32)
    ids = np.zeros((2, length), np.int32)
    for row, pairs in enumerate(ROWS):
        start = 0
        for number, (tokens, *plans) in enumerate(pairs, 1):
            plan = start + SHARED
            image = plan + plans[which]
            stop = image + tokens
            ids[row, start:plan], ids[row, plan:image] = 5 + number, rng.integers(1, 12, image - plan)
            text_weight[row, plan:image], image_weight[row, image:stop] = 1, 1
            segments[row, start:stop], positions[row, start:stop] = number, np.arange(stop - start)
            start = stop
    is_image = image_weight > 0
    tokens = np.float32(rng.normal(size=(2, length, config.token_channels)) * is_image[..., None])
    batch = dataclasses.replace(
        empty_batch(config, 2, length),
        text_ids=ids,
        image_tokens=tokens,
        is_image=is_image,
        positions=positions,
        segment_ids=segments,
        text_weight=text_weight,
        image_weight=image_weight,
    )
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def rows(tiny_config):
    return PairedBatch(side(tiny_config, 0), side(tiny_config, 1))


def test_a_row_of_winners_comes_before_its_losers(rows):
    both = rows.interleaved()
    for name in vars(both):
        np.testing.assert_array_equal(getattr(both, name)[0::2], getattr(rows.winners, name))
        np.testing.assert_array_equal(getattr(both, name)[1::2], getattr(rows.losers, name))


def test_errors_are_those_of_each_side_alone(rows, tiny_config, tiny_params):
    """The errors of a side are the two multitask losses of a batch in which it alone counts, under the same draws."""
    model, slots, channels = NextStep(tiny_config), 8, tiny_config.token_channels
    limits = {"max_text_targets": 6, "max_image_targets": slots}
    noise, t = draw_noise(jax.random.key(1), 2, slots, 3, channels)
    found = jax.jit(functools.partial(pair_errors, model, **limits))(tiny_params, rows, noise, t)
    loss = jax.jit(functools.partial(multitask_loss, model, **limits))
    np.testing.assert_array_equal(pair_weights(rows, slots).sum(axis=1), [3, 1])
    for row, pairs in enumerate(ROWS):
        before = 0  # slots of the pairs before
        for pair, (tokens, *_) in enumerate(pairs):
            moved = [jnp.roll(array, -before, axis=1) for array in (noise, t)]
            before += tokens
            sides = (rows.winners, found.winner, found.winner_text), (rows.losers, found.loser, found.loser_text)
            for batch, images, texts in sides:
                here = (batch.segment_ids == pair + 1) & (jnp.arange(2)[:, None] == row)
                alone = dataclasses.replace(batch, image_weight=batch.image_weight * here, text_weight=batch.text_weight * here)
                _, metrics = loss(tiny_params, alone, *moved)
                np.testing.assert_allclose(images[row, pair], metrics.im_loss, rtol=1e-5)
                np.testing.assert_allclose(texts[row, pair], metrics.lm_loss, rtol=1e-5)
    assert found.loser_text[0, 0] == found.winner_text[1, 0] == 0 and np.count_nonzero(found.winner_text) == 3
    assert not np.any(found.winner[0, 3:]) and not np.any(found.loser[1, 1:])


def test_texts_are_left_out_where_none_is_preferred(rows, tiny_config, tiny_params):
    model, noise = NextStep(tiny_config), draw_noise(jax.random.key(1), 2, 8, 3, tiny_config.token_channels)
    every, images = (
        pair_errors(model, tiny_params, rows, *noise, max_text_targets=texts, max_image_targets=8) for texts in (6, 0)
    )
    np.testing.assert_allclose(images[:2], every[:2], rtol=1e-5)
    assert not np.any(images[2:])


def test_segment_means_are_weighted():
    rng = np.random.default_rng(4)
    losses, weights = rng.uniform(size=(2, 3, 12)).astype(np.float32)
    images = np.sort(rng.integers(0, 4, size=(3, 12)), axis=1)
    weights[0, images[0] == images[0, 0]] = 0  # an image without a target
    got = segment_means(losses, weights, images, 5)
    for row in range(3):
        for image in range(5):
            here = images[row] == image
            total = np.float64(weights[row, here]).sum()
            expected = (np.float64(losses[row, here]) * weights[row, here]).sum() / total if total else 0
            np.testing.assert_allclose(got[row, image], expected, rtol=1e-5)
