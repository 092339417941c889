"""Norms, rotary embeddings and the einsum projection.

Letters: B batch, S sequence, D model width, N heads, H head dim. Statistics and angles are float32 whatever the compute dtype.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x / rms(x) * scale over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, eps: float, scale: Array | None = None, bias: Array | None = None) -> Array:
    """Layer normalization over the last axis with biased variance, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if scale is not None:
        y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def rope_table(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines [..., H / 2] of rotary angles at any positions.

    Frequencies never leave float32: rounded to bfloat16 they are 0.12 rad off at position 1000. They are computed on the host,
    the power and its inverse each rounded to float32 as in the releases: one bit more or less is 1e-4 rad at position 30,000.
    """
    frequencies = np.float32(1) / np.float32(float(theta) ** (np.arange(0, head_dim, 2) / head_dim))
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: Array, table: tuple[Array, Array]) -> Array:
    """Rotate [B, S, N, H] by a table [B, S, H / 2] (the two halves of H form the pairs)."""
    cos, sin = (t[:, :, None, :] for t in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Projection(nn.Module):
    """`einsum(equation, x, kernel) + bias`, in `dtype`.

    Attributes:
      equation: e.g. "BSD,DNH->BSNH".
      shape: of the kernel; the bias has the kernel's axes that the output keeps.
      bias_axes: how many trailing kernel axes the bias has; 0 for none.
      stddev: of the kernel's normal initializer.
    """

    equation: str
    shape: Sequence[int]
    bias_axes: int = 0
    dtype: str = "float32"
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(self.stddev) if self.stddev else nn.initializers.zeros
        kernel = self.param("kernel", init, tuple(self.shape))
        y = jnp.einsum(self.equation, x.astype(self.dtype), kernel.astype(self.dtype))
        if self.bias_axes:
            bias = self.param("bias", nn.initializers.zeros, tuple(self.shape[-self.bias_axes :]))
            y = y + bias.astype(self.dtype)
        return y


class RMSNorm(nn.Module):
    """`rms_norm` with its gain."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.param("scale", nn.initializers.ones, (x.shape[-1],)), self.eps)
