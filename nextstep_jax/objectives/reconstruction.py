"""The image tokenizer's training objective: reconstruct images from normalized, perturbed latents (paper section 4.2).

    loss = w1 |x - y| + w2 (x - y)^2 + w_kl KL + w_p perceptual(x, y) - w_a discriminator(y)
    y = decode(z + alpha eps),  z ~ posterior(x),  alpha ~ U[0, gamma],  eps ~ N(0, I)

The posterior's mean is normalized already if the config says so; z is unscaled: scaling lies between the tokenizer and the
transformer. More perturbation makes reconstructions worse and generation better. The networks behind the last two terms are
the caller's.

Letters: B images, h x w latent grid, c latent channels.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.errors import InputError
from nextstep_jax.models.image_tokenizer import ImageTokenizer, Posterior, perturb, sample_posterior

Array = jax.Array
Images = Float[Array, "B height width 3"]
Latents = Float[Array, "B h w c"]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the terms. One that needs a network takes part only if a network is given."""

    l1: float = 1.0
    l2: float = 1.0
    kl: float = 0.0
    perceptual: float = 0.0
    adversarial: float = 0.0


class Draws(NamedTuple):
    """The random numbers of a step.

    Attributes:
      alpha: [B] strength of each image's perturbation.
      noise: [B, h, w, c] standard normal, the perturbation itself.
      posterior_noise: [B, h, w, c] standard normal, where in the posterior the latents lie; unused if it is deterministic.
    """

    alpha: Array
    noise: Array
    posterior_noise: Array


class Metrics(NamedTuple):
    """What `reconstruction_loss` reports beside the loss.

    Attributes:
      terms: {name of a term: its unweighted mean}, of the terms that take part; always l1 and l2.
      psnr: [] float32 mean over images, dB, for a range of 2.
      images: [B, height, width, 3] float32, the reconstructions, without a gradient.
    """

    terms: dict[str, Array]
    psnr: Array
    images: Array


def reconstruction_loss(
    tokenizer: ImageTokenizer,
    params: dict,
    images: Images,
    alpha: Float[Array, " B"],
    noise: Latents,
    posterior_noise: Latents,
    *,
    weights: Weights = Weights(),
    perceptual: Callable[[Array, Array], Array] | None = None,
    discriminator: Callable[[Array], Array] | None = None,
    total: Array | int | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch of images, and what it is made of.

    Args:
      images: [B, height, width, 3] float32 in [-1, 1].
      alpha, noise, posterior_noise: see `Draws`.
      perceptual: (images, reconstructions) -> [B] distances.
      discriminator: images -> logits, positive for real ones, the first axis B; its own loss is `discriminator_loss`.
      total: images in the batch that this one is a part of; None: B.

    Returns:
      [] float32 loss and Metrics. Every term is a mean over images, a pixel's channels and pixels (over latent numbers for
      the KL divergence).

    Raises:
      InputError: a perceptual or adversarial weight without its network.
    """
    for name, network in (("perceptual", perceptual), ("adversarial", discriminator)):
        if getattr(weights, name) and network is None:
            raise InputError(f"the {name} term has weight {getattr(weights, name)}, but no network was given for it")
    posterior = tokenizer.apply({"params": params}, images, method="encode")
    latents = perturb(sample_posterior(posterior, posterior_noise, tokenizer.config), alpha, noise)
    made = tokenizer.apply({"params": params}, latents, method="decode")

    per_image = {"l1": _mean(jnp.abs(images - made)), "l2": _mean(jnp.square(images - made))}
    if weights.kl:
        per_image["kl"] = _mean(kl_divergence(posterior))
    if weights.perceptual and perceptual is not None:
        per_image["perceptual"] = perceptual(images, made)
    if weights.adversarial and discriminator is not None:
        per_image["adversarial"] = -_mean(discriminator(made))
    count = len(images) if total is None else total
    terms = {name: jnp.sum(values) / count for name, values in per_image.items()}
    loss = sum(getattr(weights, name) * value for name, value in terms.items())
    psnr = jnp.sum(10.0 * jnp.log10(4.0 / per_image["l2"])) / count
    return loss, Metrics(terms, jax.lax.stop_gradient(psnr), jax.lax.stop_gradient(made))


def draw_noise(key: Array, config: ImageTokenizerConfig, count: int, height: int, width: int) -> Draws:
    """The random numbers for `count` images of height x width pixels."""
    alpha_key, noise_key, posterior_key = jax.random.split(key, 3)
    shape = (count, height // config.downsample, width // config.downsample, config.latent_channels)
    alpha = jax.random.uniform(alpha_key, (count,), maxval=config.perturbation)
    return Draws(alpha, jax.random.normal(noise_key, shape), jax.random.normal(posterior_key, shape))


def kl_divergence(posterior: Posterior) -> Latents:
    """KL(posterior || N(0, I)) of every latent number, [B, h, w, c] nats."""
    return 0.5 * (jnp.square(posterior.mean) + jnp.exp(posterior.logvar) - 1.0 - posterior.logvar)


def discriminator_loss(discriminator: Callable[[Array], Array], images: Images, reconstructions: Images) -> Float[Array, ""]:
    """The hinge loss [] of a discriminator that should give images logits above 1 and reconstructions logits below -1."""
    real, fake = discriminator(images), discriminator(reconstructions)
    return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))


def _mean(values: Array) -> Array:
    """[B, ...] -> [B]."""
    return jnp.mean(values.reshape(len(values), -1), axis=1)
