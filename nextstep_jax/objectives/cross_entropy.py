"""Cross-entropy over a large vocabulary, a slice of the vocabulary at a time.

The logits [P, V] of 16K positions over 152K ids would take 10 GB in float32, and their gradient as much again. Here only
[P, V / n] exists at any time: the forward pass keeps a running log-sum-exp, the backward pass computes each slice again.

Slices of the vocabulary, not of the positions: each slice of the kernel is then read, and its gradient reduced over the
devices, exactly once. Slice j holds the ids j, j + n, j + 2 n, …, so that a kernel split over the vocabulary stays where it is.

Letters: P positions, D model width, V vocabulary, n slices.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from nextstep_jax.sharding.rules import constrain

Array = jax.Array

SLICE = 8192  # at most this many ids at a time
_LANES = 128  # of a TPU's vector registers


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    hidden: Float[Array, "P D"], kernel: Float[Array, "D V"], targets: Int[Array, " P"], slice_size: int = SLICE
) -> Float[Array, " P"]:
    """Negative log-likelihood [P] float32 of the ids targets [P] after hidden states [P, D].

    Products run in hidden's dtype with float32 sums; the kernel [D, V] may be in any.
    """
    return _forward(hidden, kernel, targets, slice_size)[0]


def _forward(hidden: Array, kernel: Array, targets: Array, slice_size: int):
    def add(state, inputs):
        highest, total, chosen = state
        columns, ids = inputs
        logits, ids = _logits(hidden, columns, ids, kernel.shape[1])
        higher = jnp.maximum(highest, logits.max(axis=-1))
        total = total * jnp.exp(highest - higher) + jnp.exp(logits - higher[:, None]).sum(axis=-1)
        chosen = chosen + jnp.where(ids == targets[:, None], logits, 0.0).sum(axis=-1)
        return (higher, total, chosen), None

    nothing = jnp.zeros(hidden.shape[:1], jnp.float32)
    slices = _slices(kernel.astype(hidden.dtype), slice_size)
    (highest, total, chosen), _ = jax.lax.scan(add, (nothing - jnp.inf, nothing, nothing), slices)
    normalizer = highest + jnp.log(total)
    return normalizer - chosen, (hidden, kernel, targets, normalizer)


def _backward(slice_size: int, saved, gradient: Array):
    hidden, kernel, targets, normalizer = saved

    def add(to_hidden, inputs):
        columns, ids = inputs
        logits, ids = _logits(hidden, columns, ids, kernel.shape[1])
        to_logits = jnp.exp(logits - normalizer[:, None]) - (ids == targets[:, None])
        to_logits = (to_logits * gradient[:, None]).astype(hidden.dtype)
        to_hidden += jnp.einsum("PV,DV->PD", to_logits, columns, preferred_element_type=jnp.float32)
        to_slice = jnp.einsum("PD,PV->DV", hidden, to_logits, preferred_element_type=jnp.float32)
        return to_hidden, constrain(to_slice, "embed", "vocab").astype(kernel.dtype)

    slices = _slices(kernel.astype(hidden.dtype), slice_size)
    to_hidden, to_slices = jax.lax.scan(add, jnp.zeros(hidden.shape, jnp.float32), slices)
    to_kernel = to_slices.transpose(1, 2, 0).reshape(kernel.shape[0], -1)[:, : kernel.shape[1]]
    return to_hidden.astype(hidden.dtype), to_kernel, None


cross_entropy.defvjp(_forward, _backward)


def _slices(kernel: Array, slice_size: int) -> tuple[Array, Array]:
    """The kernel in n slices [n, D, V / n] and the ids [n, 1, V / n] of their columns."""
    width, vocab = kernel.shape
    n = _slice_count(vocab, slice_size)
    columns = -(-vocab // n)
    padded = jnp.pad(kernel, ((0, 0), (0, columns * n - vocab)))
    ids = jnp.arange(n)[:, None, None] + n * jnp.arange(columns)
    return padded.reshape(width, columns, n).transpose(2, 0, 1), ids


def _slice_count(vocab: int, slice_size: int) -> int:
    """The fewest slices that are multiples of 128 wide, else a power of two. The TPU compiler lays out a gathered slice of
    another width anew for each product, which takes longer than the product (v6e).
    """
    fewest = -(-vocab // slice_size)
    power = 1 << (fewest - 1).bit_length()
    return next((n for n in range(fewest, power + 1) if vocab % (n * _LANES) == 0), power)


def _logits(hidden: Array, kernel: Array, ids: Array, vocab: int) -> tuple[Array, Array]:
    """Logits [P, V / n] float32 of one slice, -inf in its padding, and the ids [1, V / n]."""
    logits = jnp.einsum("PD,DV->PV", hidden, kernel, preferred_element_type=jnp.float32)
    return jnp.where(ids < vocab, constrain(logits, "positions", "vocab"), -jnp.inf), ids
