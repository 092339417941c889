"""Inception-v3 as FID uses it: the network of December 2015 that images are compared with (Szegedy et al., 2015).

It differs from later editions: 1,008 classes; average pools leave their padding out of the mean; the last block pools the
maximum. Parameters carry the names of the file pt_inception-2015-12-05, in the layouts of Flax.

Letters: B images, 299 pixels a side, 2048 features, 1008 classes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

Array = jax.Array

SIDE, FEATURES, CLASSES = 299, 2048, 1008
EPSILON = 1e-3  # of the batch normalizations


class InceptionOutput(NamedTuple):
    """What the network says of images.

    Attributes:
      features: after the last pool; FID and KID compare these.
      logits: of the classes, without the classifier's bias, as the Inception score takes them.
    """

    features: Float[Array, "B 2048"]
    logits: Float[Array, "B 1008"]


class ConvNorm(nn.Module):
    """Convolution, batch normalization by stored moments, ReLU. `padding` (down, across) on both sides."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = (self.features,)
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.kernel, x.shape[-1], self.features))
        scale, mean, variance = (
            self.param(name, init, width)
            for name, init in (("scale", nn.initializers.ones), ("mean", nn.initializers.zeros), ("var", nn.initializers.ones))
        )
        bias = self.param("bias", nn.initializers.zeros, width)
        padding = [(side, side) for side in self.padding]
        strides = (self.stride, self.stride)
        x = jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + bias)


class Block(nn.Module):
    """Branches side by side, their results one after the other along the channels.

    Attributes:
      branches: each a pool or None, and convolutions (name, features, kernel, stride) one after the other; in the place of one,
        a tuple of several stands for these side by side.
    """

    branches: tuple[tuple[Callable | None, tuple], ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        results = []
        for pool, convolutions in self.branches:
            y = x if pool is None else pool(x)
            for entry in convolutions:
                if isinstance(entry[0], str):
                    y = _convolution(*entry)(y)
                else:
                    y = jnp.concatenate([_convolution(*one)(y) for one in entry], axis=-1)
            results.append(y)
        return jnp.concatenate(results, axis=-1)


class Inception(nn.Module):
    """Pixels [B, 299, 299, 3], scaled to about [-1, 1], to features and logits; `params` is the only collection."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"]) -> InceptionOutput:
        x = ConvNorm(32, (3, 3), 2, name="Conv2d_1a_3x3")(pixels)
        x = ConvNorm(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x)
        x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(max_pool(x))
        x = max_pool(ConvNorm(192, (3, 3), name="Conv2d_4a_3x3")(x))
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
        features = x.mean((1, 2))
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (FEATURES, CLASSES))
        return InceptionOutput(features, jnp.dot(features, kernel, precision="highest"))


def max_pool(x: Array, stride: int = 2, padding: int = 0) -> Array:
    """The maximum of windows of 3 x 3."""
    return nn.max_pool(x, (3, 3), (stride, stride), [(padding, padding)] * 2)


def _mean_pool(x: Array) -> Array:
    """The mean of the windows of 3 x 3 around each place, as far as they lie inside."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _convolution(name: str, features: int, kernel: tuple[int, int], stride: int = 1) -> ConvNorm:
    """One that keeps the size, or has stride 2 and no padding."""
    padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
    return ConvNorm(features, kernel, stride, padding, name=name)


_ONE, _THREE, _FIVE, _ROW, _COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _block_a(pooled: int) -> tuple:
    return (
        (None, (("branch1x1", 64, _ONE),)),
        (None, (("branch5x5_1", 48, _ONE), ("branch5x5_2", 64, _FIVE))),
        (None, (("branch3x3dbl_1", 64, _ONE), ("branch3x3dbl_2", 96, _THREE), ("branch3x3dbl_3", 96, _THREE))),
        (_mean_pool, (("branch_pool", pooled, _ONE),)),
    )


def _block_c(width: int) -> tuple:
    double = (("branch7x7dbl_1", width, _ONE), ("branch7x7dbl_2", width, _COLUMN), ("branch7x7dbl_3", width, _ROW))
    return (
        (None, (("branch1x1", 192, _ONE),)),
        (None, (("branch7x7_1", width, _ONE), ("branch7x7_2", width, _ROW), ("branch7x7_3", 192, _COLUMN))),
        (None, (*double, ("branch7x7dbl_4", width, _COLUMN), ("branch7x7dbl_5", 192, _ROW))),
        (_mean_pool, (("branch_pool", 192, _ONE),)),
    )


def _block_e(pool: Callable) -> tuple:
    double = (("branch3x3dbl_1", 448, _ONE), ("branch3x3dbl_2", 384, _THREE))
    return (
        (None, (("branch1x1", 320, _ONE),)),
        (None, (("branch3x3_1", 384, _ONE), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))))),
        (None, (*double, (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))))),
        (pool, (("branch_pool", 192, _ONE),)),
    )


BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (None, (("branch3x3", 384, _THREE, 2),)),
        (None, (("branch3x3dbl_1", 64, _ONE), ("branch3x3dbl_2", 96, _THREE), ("branch3x3dbl_3", 96, _THREE, 2))),
        (max_pool, ()),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (None, (("branch3x3_1", 192, _ONE), ("branch3x3_2", 320, _THREE, 2))),
        (
            None,
            (
                ("branch7x7x3_1", 192, _ONE),
                ("branch7x7x3_2", 192, _ROW),
                ("branch7x7x3_3", 192, _COLUMN),
                ("branch7x7x3_4", 192, _THREE, 2),
            ),
        ),
        (max_pool, ()),
    ),
    "Mixed_7b": _block_e(_mean_pool),
    "Mixed_7c": _block_e(functools.partial(max_pool, stride=1, padding=1)),
}
