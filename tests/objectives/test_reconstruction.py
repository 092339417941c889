"""The image tokenizer's loss against the same formula written in numpy, term by term."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.errors import InputError
from nextstep_jax.models.image_tokenizer import ImageTokenizer, Posterior
from nextstep_jax.objectives.reconstruction import (
    Weights,
    discriminator_loss,
    draw_noise,
    kl_divergence,
    reconstruction_loss,
)

CONFIG = ImageTokenizerConfig(
    channels=8,
    channel_multipliers=(1,),
    blocks_per_level=1,
    stem_patch=8,
    norm_groups=4,
    normalize=True,
    normalize_patch=2,
    perturbation=0.5,
)
TOKENIZER = ImageTokenizer(CONFIG)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (4, 16, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params(images):
    shapes = jax.eval_shape(TOKENIZER.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: rng.normal(len(s.shape) == 1, max(1, np.prod(s.shape[:-1])) ** -0.5, s.shape).astype(np.float32) * 0.5, shapes
    )


@pytest.fixture(scope="module")
def draws():
    return draw_noise(jax.random.key(1), CONFIG, 4, 16, 32)


@pytest.fixture(scope="module")
def value_and_grad():
    """(params, (images, *draws) of two images, total) -> loss and gradients, compiled once."""
    return jax.jit(jax.value_and_grad(lambda p, part, total: reconstruction_loss(TOKENIZER, p, *part, total=total)[0]))


@pytest.fixture(scope="module")
def expected(params, images, draws):
    """Posterior and reconstruction, put together by hand."""
    posterior = TOKENIZER.apply({"params": params}, images, method="encode")
    latents = posterior.mean + np.exp(0.5 * posterior.logvar) * draws.posterior_noise
    latents += draws.alpha[:, None, None, None] * draws.noise
    made = TOKENIZER.apply({"params": params}, latents, method="decode")
    return posterior, np.asarray(made, np.float64)


def perceptual(x, y):
    return jnp.square(x.mean((1, 2)) - y.mean((1, 2))).sum(-1)


def discriminator(x):
    return 10 * x.mean(-1)  # [B, height, width] logits


def test_every_term_is_its_formula(params, images, draws, expected):
    weights = Weights(l1=0.5, l2=2.0, kl=1e-3, perceptual=3.0, adversarial=0.1)
    loss, metrics = reconstruction_loss(
        TOKENIZER, params, images, *draws, weights=weights, perceptual=perceptual, discriminator=discriminator
    )
    posterior, made = expected
    mean, logvar = np.asarray(posterior.mean, np.float64), np.asarray(posterior.logvar, np.float64)
    square = (images - made) ** 2
    terms = {
        "l1": np.abs(images - made).mean(),
        "l2": square.mean(),
        "kl": (0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).mean(),
        "perceptual": ((images.mean((1, 2)) - made.mean((1, 2))) ** 2).sum(-1).mean(),
        "adversarial": -10 * made.mean(),
    }
    assert set(metrics.terms) == set(terms)
    for name, value in terms.items():
        np.testing.assert_allclose(metrics.terms[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, sum(getattr(weights, name) * value for name, value in terms.items()), rtol=1e-4)
    np.testing.assert_allclose(metrics.psnr, (10 * np.log10(4 / square.mean((1, 2, 3)))).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics.images, made, atol=1e-5)


def test_what_is_only_reported_has_no_gradient(params, images, draws):
    def reported(params):
        metrics = reconstruction_loss(TOKENIZER, params, images, *draws)[1]
        return metrics.images.sum() + metrics.psnr

    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(jax.grad(reported)(params)))


def test_terms_without_weight_are_left_out(params, images, draws):
    loss, metrics = reconstruction_loss(TOKENIZER, params, images, *draws, weights=Weights(l1=1.0, l2=0.0))
    assert set(metrics.terms) == {"l1", "l2"}
    np.testing.assert_allclose(loss, metrics.terms["l1"])


def test_losses_of_parts_add_up_to_the_whole(params, images, draws, value_and_grad):
    whole, _ = reconstruction_loss(TOKENIZER, params, images, *draws)
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (images, *draws))
    parts = [jax.tree.map(operator.itemgetter(half), halves) for half in (0, 1)]
    np.testing.assert_allclose(whole, sum(value_and_grad(params, part, 4)[0] for part in parts), rtol=1e-5)


def test_perturbation_is_between_zero_and_gamma():
    draws = draw_noise(jax.random.key(0), CONFIG, 500, 16, 32)
    assert draws.noise.shape == draws.posterior_noise.shape == (500, 2, 4, 16)
    assert 0 <= draws.alpha.min() < 0.02
    assert 0.48 < draws.alpha.max() <= 0.5
    assert abs(np.corrcoef(draws.noise.ravel(), draws.posterior_noise.ravel())[0, 1]) < 0.02
    for noise in (draws.noise, draws.posterior_noise):  # of each image its own
        assert len(np.unique(noise)) > 0.99 * noise.size
        assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.02
    still = draw_noise(jax.random.key(0), dataclasses.replace(CONFIG, perturbation=0.0), 500, 16, 32)
    np.testing.assert_array_equal(still.alpha, 0)


def test_kl_divergence_is_the_gaussian_one():
    noise = np.random.default_rng(0).normal(size=400_000)
    mean, logvar = 0.7, -0.4
    z = mean + np.exp(logvar / 2) * noise  # E[log q(z) - log p(z)] by sampling
    sampled = (-0.5 * logvar - 0.5 * noise**2 + 0.5 * z**2).mean()
    found = kl_divergence(Posterior(jnp.full((1, 1, 1, 1), mean), jnp.full((1, 1, 1, 1), logvar)))
    np.testing.assert_allclose(found[0, 0, 0, 0], sampled, atol=5e-3)
    np.testing.assert_array_equal(kl_divergence(Posterior(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))), 0)


def test_the_hinge_pushes_only_what_is_not_beyond_it():
    logits = {1.0: jnp.array([2.0, 0.5]), -1.0: jnp.array([-3.0, 0.25])}
    images = jnp.ones((2, 1, 1, 3))
    loss = discriminator_loss(lambda x: logits[float(x[0, 0, 0, 0])], images, -images)
    np.testing.assert_allclose(loss, (0 + 0.5) / 2 + (0 + 1.25) / 2)


@pytest.mark.parametrize("name", ["perceptual", "adversarial"])
def test_a_term_without_its_network_is_refused(params, images, draws, name):
    with pytest.raises(InputError, match=f"{name} term has weight 2.0"):
        reconstruction_loss(TOKENIZER, params, images, *draws, weights=Weights(**{name: 2.0}))


def test_training_on_it_overfits_a_small_batch(params, images, value_and_grad):
    smooth = np.repeat(np.repeat(images[:2, ::8, ::8], 8, axis=1), 8, axis=2)
    optimizer = optax.adam(3e-3)
    update, noises = jax.jit(optimizer.update), jax.jit(lambda key: draw_noise(key, CONFIG, 2, 16, 32))
    state, losses = optimizer.init(params), []
    for i in range(150):
        value, grads = value_and_grad(params, (smooth, *noises(jax.random.key(i))), 2)
        updates, state = update(grads, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
