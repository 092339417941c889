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
