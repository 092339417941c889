"""What the multitask stage does with its settings: the numbers that a step draws, and the loss they go to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from nextstep_jax.batch import Batch
from nextstep_jax.config import preset
from nextstep_jax.flow.paths import TimestepDistribution
from nextstep_jax.models.nextstep import init_params
from nextstep_jax.training import multitask
from nextstep_jax.training.settings import MultitaskLossConfig

ROWS, LENGTH, DRAWS = 4, 64, 6
DEFAULT = MultitaskLossConfig()
MODEL = preset("tiny").with_transformer(layers=1)
MODEL = dataclasses.replace(MODEL, flow_head=dataclasses.replace(MODEL.flow_head, layers=1, batch_mul=DRAWS))


def batch():
    """Rows of one image each, every token a target."""
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    image = np.broadcast_to(np.arange(LENGTH) > 3, shape)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    tokens = rng.normal(size=(*shape, MODEL.token_channels)).astype(np.float32)
    weights = image.astype(np.float32)
    return Batch(np.ones(shape, np.int32), tokens, image, positions, np.ones(shape, np.int32), 1 - weights, weights)


@pytest.fixture
def used(monkeypatch):
    """settings -> what a step's loss was given."""

    def call(settings=DEFAULT, model=MODEL, seed=0):
        found = {}

        def spy(network, params, batch, noise, t, **options):
            found.update(noise=np.asarray(noise), t=np.asarray(t), **options)
            return loss(network, params, batch, noise, t, **options)

        loss = multitask.multitask_loss
        monkeypatch.setattr(multitask, "multitask_loss", spy)
        objective = multitask.make_objective(model, LENGTH, LENGTH, settings)
        params = {"model": jax.jit(lambda key: init_params(model, key))(jax.random.key(0))}
        arrays = (batch(), np.zeros((ROWS, LENGTH), np.int8))
        value, _ = objective.loss(params, arrays, jax.random.key(seed), objective.normalizers(arrays))
        monkeypatch.undo()
        return found | {"loss": float(value)}

    return call


@pytest.mark.parametrize(
    ("timesteps", "to_standard", "expected"),
    [
        (TimestepDistribution(), scipy.special.logit, scipy.stats.norm()),
        (TimestepDistribution(mean=-1.0, std=0.5), scipy.special.logit, scipy.stats.norm(-1.0, 0.5)),
        (TimestepDistribution("uniform"), lambda t: t, scipy.stats.uniform()),
    ],
)
def test_a_step_draws_its_times_from_the_configured_distribution(used, timesteps, to_standard, expected):
    t = used(MultitaskLossConfig(timesteps))["t"].astype(np.float64)
    assert t.shape == (ROWS, LENGTH, DRAWS)
    assert scipy.stats.kstest(to_standard(t).ravel(), expected.cdf).pvalue > 0.01


def test_every_draw_of_every_token_has_noise_and_a_time_of_its_own(used):
    found = used()
    noise = found["noise"].reshape(-1, MODEL.token_channels)
    assert found["noise"].shape == (ROWS, LENGTH, DRAWS, MODEL.token_channels)
    assert len(np.unique(noise, axis=0)) == len(noise) and len(np.unique(found["t"])) > 0.99 * found["t"].size
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.norm.cdf).pvalue > 0.01
    correlations = np.corrcoef(found["noise"].transpose(2, 0, 1, 3).reshape(DRAWS, -1)) - np.eye(DRAWS)
    assert np.abs(correlations).max() < 0.05
    other = used(seed=1)
    for name in ("noise", "t"):
        assert abs(np.corrcoef(other[name].ravel(), found[name].ravel())[0, 1]) < 0.1


def test_the_other_settings_reach_the_loss(used):
    assert (used()["error_target"], used()["token_length_weight"]) == ("velocity", False)
    assert used(MultitaskLossConfig(error_target="data"))["loss"] < used()["loss"]
    assert used(MultitaskLossConfig(token_length_weight=True))["token_length_weight"]


def test_input_noise_is_on_what_the_transformer_sees_and_apart_from_the_targets_noise(used):
    assert used()["input_tokens"] is None
    found = used(model=dataclasses.replace(MODEL, input_noise=0.5))
    added = np.asarray(found["input_tokens"]) - batch().image_tokens
    ramp = np.clip((np.arange(LENGTH) - 4) / (LENGTH - 5), 0, None)
    np.testing.assert_allclose(added.std((0, 2)), 0.5 * ramp, atol=0.1)
    plain = jnp.asarray(added[:, 5:] / (0.5 * ramp[5:, None]))
    for draw in range(DRAWS):
        assert abs(np.corrcoef(plain.ravel(), found["noise"][:, 5:, draw].ravel())[0, 1]) < 0.05
