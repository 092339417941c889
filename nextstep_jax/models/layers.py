"""Norms, rotary embeddings and the einsum projection.

Letters: B batch, S sequence, D model width, N heads, H head dim. Statistics and angles are float32 whatever the compute dtype.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

Array = jax.Array
Vectors = Float[Array, "*n D"]
Heads = Float[Array, "B S N H"]


def rms_norm(x: Vectors, scale: Float[Array, " D"], eps: float) -> Vectors:
    """x / rms(x) * scale over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(
    x: Vectors, eps: float, scale: Float[Array, " D"] | None = None, bias: Float[Array, " D"] | None = None
) -> Vectors:
    """Layer normalization over the last axis with biased variance, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if scale is not None and bias is not None:
        y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def rope_table(positions: Int[Array, "*n"], head_dim: int, theta: float) -> tuple[Float[Array, "*n h"], Float[Array, "*n h"]]:
    """Cosines and sines [..., H / 2] of rotary angles at any positions.

    Frequencies never leave float32: rounded to bfloat16 they are 0.12 rad off at position 1000. They are computed on the host,
    the power and its inverse each rounded to float32 as in the releases: one bit more or less is 1e-4 rad at position 30,000.
    """
    frequencies = np.float32(1) / np.float32(float(theta) ** (np.arange(0, head_dim, 2) / head_dim))
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


@jax.named_scope("apply_rope")
def apply_rope(x: Heads, table: tuple[Float[Array, "B S h"], Float[Array, "B S h"]]) -> Heads:
    """Rotate [B, S, N, H] by a table [B, S, H / 2] (the two halves of H form the pairs)."""
    cos, sin = (t[:, :, None, :] for t in table)
    return jax.lax.platform_dependent(x, cos, sin, tpu=_rotate_by_product, default=_rotate_halves)


def _rotate_halves(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@jax.custom_vjp
def _rotate_by_product(x: Array, cos: Array, sin: Array) -> Array:
    """`_rotate_halves` for matrix units. Halves of a head fill half of a vector register, and a float32 copy of all queries
    would go through memory to be cut into them. A product with a matrix of 0 and +-1 swaps the halves, exactly.
    """
    half = x.shape[-1] // 2
    swap = np.zeros((2 * half, 2 * half), np.float32)
    swap[half:, :half], swap[:half, half:] = -np.eye(half), np.eye(half)
    swapped = jnp.einsum("BSNH,HG->BSNG", x, swap.astype(x.dtype), precision="highest", preferred_element_type=jnp.float32)
    cos, sin = (jnp.concatenate([t, t], axis=-1) for t in (cos, sin))
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def _rotate_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rotate_by_product(x, cos, sin), (cos, sin)


def _rotate_back(table: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    return _rotate_by_product(gradient, table[0], -table[1]), None, None


_rotate_by_product.defvjp(_rotate_forward, _rotate_back)


class Projection(nn.Module):
    """`einsum(equation, x, kernel) + bias`, in `dtype`; an int8 kernel has its `kernel_scale` beside it
    (models/param_layouts.py).

    Attributes:
      equation: e.g. "BSD,DNH->BSNH".
      shape: of the kernel; the bias has the kernel's axes that the output keeps.
      bias_axes: how many trailing kernel axes the bias has; 0 for none.
      stddev: of the kernel's normal initializer; 0: zeros; None: Xavier-uniform.
    """

    equation: str
    shape: Sequence[int]
    bias_axes: int = 0
    dtype: str = "float32"
    stddev: float | None = 0.02

    @nn.compact
    def __call__(self, x: Array, apart: bool = False) -> Array:
        """The product for x.

        Args:
          apart: XLA for GPUs makes one product of several that share x, for which it copies their kernels side by side, also
            inside of a loop at every turn. It leaves this one as it is.
        """
        if self.stddev is None:
            init = nn.initializers.xavier_uniform()
        else:
            init = nn.initializers.normal(self.stddev) if self.stddev else nn.initializers.zeros
        kernel = self.param("kernel", init, tuple(self.shape))
        x = x.astype(self.dtype)
        if kernel.dtype == jnp.int8 or apart:
            # It also keeps a widened int8 kernel from being computed once, before the loop of tokens, and then read in full.
            x, kernel = jax.lax.optimization_barrier((x, kernel))
        y = jnp.einsum(self.equation, x, kernel.astype(self.dtype))
        if self.has_variable("params", "kernel_scale"):
            # In float32: rounded to bfloat16 the scales would err as much as everything else in the product.
            y = (y.astype(jnp.float32) * self.get_variable("params", "kernel_scale")).astype(self.dtype)
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
