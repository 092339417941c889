"""The tokenizer stage's optional networks: named in the config, trained beside the tokenizer, kept apart from it."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data.images import to_float
from nextstep_jax.errors import InputError
from nextstep_jax.objectives.reconstruction import Weights, discriminator_loss, draw_noise, reconstruction_loss
from nextstep_jax.training import reconstruction
from nextstep_jax.training.reconstruction import import_network, make_objective

CONFIG = ImageTokenizerConfig(channels=8, channel_multipliers=(1,), blocks_per_level=1, stem_patch=8, norm_groups=4)


class Judge(nn.Module):
    """One logit an image."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(images.reshape(len(images), -1))))


def distance(images, made):
    return jnp.abs(images - made).max((1, 2, 3))


@pytest.fixture
def networks(monkeypatch):
    """A module of the user's."""
    module = types.ModuleType("my_networks")
    module.judge, module.distance = Judge, lambda: distance
    monkeypatch.setitem(sys.modules, "my_networks", module)


def test_networks_are_found_by_name(networks):
    assert import_network("", "config.loss.discriminator") is None
    assert import_network("my_networks:distance", "config.loss.perceptual_network") is distance


@pytest.mark.parametrize("name", ["my_networks:nothing", "no_such_module:judge", "my_networks"])
def test_a_network_that_is_not_there_is_an_error(networks, name):
    with pytest.raises(InputError, match=f"config.loss.discriminator: '{name}'"):
        import_network(name, "config.loss.discriminator")


def test_each_network_learns_from_its_own_loss_alone():
    """The joint gradient is the tokenizer's on its loss with the judge held, and the judge's on its loss with pictures held."""
    weights = Weights(l1=1.0, l2=0.5, perceptual=0.2, adversarial=0.3)
    judge = Judge()
    objective = make_objective(CONFIG, 16, 16, weights, distance, judge)
    params = jax.jit(objective.init)(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    key = jax.random.key(1)

    def joint(params):
        return objective.loss(params, pixels, key, objective.normalizers(pixels))

    def tokenizer_alone(tokenizer, judged):
        draws = draw_noise(key, CONFIG, 2, 16, 16)
        networks = {"perceptual": distance, "discriminator": lambda images: judge.apply({"params": judged}, images)}
        model = reconstruction.ImageTokenizer(CONFIG)
        loss, parts = reconstruction_loss(model, tokenizer, to_float(pixels), *draws, weights=weights, **networks)
        return loss, parts.images

    def judge_alone(judged, images):
        return discriminator_loss(lambda x: judge.apply({"params": judged}, x), to_float(pixels), images)

    (value, means), grads = jax.jit(jax.value_and_grad(joint, has_aux=True))(params)
    (first, images), expected = jax.jit(jax.value_and_grad(tokenizer_alone, has_aux=True))(
        params["image_tokenizer"], params["discriminator"]
    )
    second, judging = jax.jit(jax.value_and_grad(judge_alone))(params["discriminator"], images)
    np.testing.assert_allclose(value, first + second, rtol=1e-5)
    assert set(means) == {"l1", "l2", "perceptual", "adversarial", "psnr", "discriminator"}
    for found, alone in ((grads["image_tokenizer"], expected), (grads["discriminator"], judging)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1e-3, float(np.abs(b).max())))
