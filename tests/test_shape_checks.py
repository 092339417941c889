"""A function given arrays of other shapes or dtypes than it says fails in tests."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError


def test_shapes_and_dtypes_are_checked():
    from nextstep_jax.flow.guidance import guide
    from nextstep_jax.flow.paths import interpolate
    from nextstep_jax.models.attention import masked_attention

    x, t = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3))
    assert interpolate(x, x, t).shape == x.shape and interpolate(np.asarray(x), x, t).shape == x.shape
    q, k, mask = jnp.zeros((2, 3, 4, 8)), jnp.zeros((2, 5, 2, 8)), jnp.ones((2, 3, 5), bool)
    assert masked_attention(q, k, k, mask).shape == q.shape
    for call in (
        lambda: interpolate(x, x[:, :2], t),
        lambda: interpolate(x, x[..., :3], t),
        lambda: interpolate(x, x, t.astype(int)),
        lambda: masked_attention(q, k, k[:, :4], mask),
        lambda: masked_attention(q, k, k, mask.astype(jnp.float32)),
        lambda: guide(x, 2.0, 1.0, 2),
    ):
        with pytest.raises(TypeCheckError):
            call()


def test_every_room_with_array_functions_is_checked():
    from nextstep_jax.evaluation.traces import token_statistics
    from nextstep_jax.generation.tokenizer import encode_means
    from nextstep_jax.objectives.cross_entropy import cross_entropy
    from nextstep_jax.objectives.multitask import gather_positions
    from nextstep_jax.objectives.policy_gradient import advantages, nft_loss
    from nextstep_jax.objectives.preference import segment_means
    from nextstep_jax.objectives.reconstruction import discriminator_loss
    from nextstep_jax.rewards.combine import normalize

    x, images = np.zeros((2, 3, 4), np.float32), np.zeros((2, 8, 8, 3), np.float32)
    hidden, kernel, ids = np.zeros((5, 4), np.float32), np.zeros((4, 7), np.float32), np.zeros(5, np.int32)
    weights, numbers = np.ones((2, 3), np.float32), np.zeros((2, 3), np.int32)
    assert cross_entropy(hidden, kernel, ids).shape == (5,) and token_statistics(x)[0].shape == (3,)
    assert segment_means(weights, weights, numbers, 2).shape == (2, 2)
    assert nft_loss(x, x, x, x, weights, weights).shape == (2, 3) and normalize(weights, "rank").shape == (2, 3)
    for call in (
        lambda: cross_entropy(hidden, kernel.T, ids),
        lambda: cross_entropy(hidden, kernel, ids[:4]),
        lambda: cross_entropy(hidden, kernel, ids.astype(np.float32)),
        lambda: gather_positions(weights[0], 2),
        lambda: advantages(weights[0], weights[0] > 0),
        lambda: nft_loss(x, x, x, x[..., :3], weights, weights),
        lambda: nft_loss(x, x, x, x, weights[:, :2], weights),
        lambda: segment_means(weights, weights, numbers[:1], 2),
        lambda: discriminator_loss(lambda x: x, images, images[:1]),
        lambda: token_statistics(x[0]),
        lambda: encode_means(None, {}, images[0]),
        lambda: normalize(weights[0], "rank"),
    ):
        with pytest.raises(TypeCheckError):
            call()
