"""Norms, rotary embeddings and the einsum projection.

Letters: B batch, S sequence, D model width, N heads, H head dim. Statistics and angles are float32 whatever the compute dtype.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from nextstep_jax.sharding.mesh import target_platform
from nextstep_jax.sharding.rules import whole

Array = jax.Array
Vectors = Float[Array, "*n D"]
Heads = Float[Array, "B S N H"]

# The name of a norm's statistics, one or two float32 numbers a vector: kept, they save the backward pass sums over vectors.
NORM_STATISTICS = "norm_statistics"

_SUBLANES = 8  # of a TPU's vector register


def rms_norm(x: Vectors, scale: Float[Array, " D"], eps: float) -> Vectors:
    """x / rms(x) * scale over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(_statistic(jnp.square(y)) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(
    x: Vectors, eps: float, scale: Float[Array, " D"] | None = None, bias: Float[Array, " D"] | None = None
) -> Vectors:
    """Layer normalization over the last axis with biased variance, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y - _statistic(y)
    y = y * jax.lax.rsqrt(_statistic(jnp.square(y)) + eps)
    if scale is not None and bias is not None:
        y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def _statistic(y: Array) -> Array:
    return checkpoint_name(jnp.mean(y, axis=-1, keepdims=True), NORM_STATISTICS)


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
        kernel = kernel.astype(self.dtype)
        bias = None
        if self.bias_axes:
            bias = self.param("bias", nn.initializers.zeros, tuple(self.shape[-self.bias_axes :])).astype(self.dtype)
        scaled = self.has_variable("params", "kernel_scale")
        if bias is not None and bias.ndim == kernel.ndim - 1 and not scaled and target_platform() == "tpu":
            return _product_and_bias(self.equation, x, kernel, bias)
        y = jnp.einsum(self.equation, x, kernel)
        if scaled:
            # In float32: rounded to bfloat16 the scales would err as much as everything else in the product.
            y = (y.astype(jnp.float32) * self.get_variable("params", "kernel_scale")).astype(self.dtype)
        return y if bias is None else y + bias


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product_and_bias(equation: str, x: Array, kernel: Array, bias: Array) -> Array:
    """`einsum(equation, x, kernel) + bias` of x [..., I], kernel [I, ...] and bias [...], with a derivative for matrix units.

    The bias's gradient is a sum over all positions, for which vector units take up to twice as long as matrix units for the
    kernel's whole gradient. With ones beside x, and the bias below the kernel, both come out of one product.
    """
    return jnp.einsum(equation, x, kernel) + bias


@_product_and_bias.defjvp
def _product_and_bias_jvp(equation: str, primals, tangents):
    (x, kernel, bias), (of_x, of_kernel, of_bias) = primals, tangents
    ones = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, _SUBLANES)], constant_values=1)
    below = jnp.pad(of_bias[None], [(0, _SUBLANES - 1)] + [(0, 0)] * bias.ndim)
    # Their gradient has rows that no mesh divides: whole on every device, it is cut without exchanging edges.
    both = whole(jnp.concatenate([whole(of_kernel, axis=0), below]), axis=0)
    of_both = jnp.einsum(equation, ones, both)
    return _product_and_bias(equation, x, kernel, bias), jnp.einsum(equation, of_x, kernel) + of_both


class RMSNorm(nn.Module):
    """`rms_norm` with its gain."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.param("scale", nn.initializers.ones, (x.shape[-1],)), self.eps)
