"""Digest of one leaf (array), the same however the array is sharded and wherever it lies.

The elements' bits, zero-extended to uint32 words w_i, are mixed with their position and summed:

    x_i = mix(w_i ^ k_i),    k_i = c * i        lanes = (sum x_i, sum x_i * (k_i | 1))    all modulo 2^32

`mix` (the finalizer of MurmurHash3) and the product with an odd number are bijections of 32-bit words, so a change confined
to one element always changes both lanes; any other change escapes with a chance of about 2^-64. Sums do not care in which
order or on which device their terms are added. Shape and dtype are hashed in afterwards.
"""

import hashlib
import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nextstep_jax.errors import InputError

# What a checkpoint can hold: JAX's types without 64-bit ones, which JAX would narrow on restoring.
DTYPES = ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32")

_POSITION, _MIX_1, _MIX_2, _LEADING = (np.uint32(c) for c in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F))
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_WIDE = 2**32  # from here on i wraps around, and the index on the leading axis joins the position
_BLOCK = 1 << 16  # elements mixed at a time on the host: stays in the cache


def leaf_digest(array: np.ndarray | jax.Array) -> str:
    """Digest (32 hex digits) of an array's bits, order, shape and dtype.

    A `jax.Array` is reduced on its devices by a compiled program, so every process that holds a part of it must call this at
    the same point; in return each gets the digest of the whole. Data in host memory is reduced by NumPy, with the same result.

    Raises:
      InputError: for a dtype outside `DTYPES`.
    """
    return defer_digest(array)()


def defer_digest(array: np.ndarray | jax.Array) -> Callable[[], str]:
    """`leaf_digest` in two steps: once this returns the array may change or be donated; any thread may ask for the digest."""
    shape, dtype = array.shape, check_dtype(array.dtype)
    if not isinstance(array, jax.Array):
        digest = host_digest(array)
        return lambda: digest
    if array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices()):
        values = np.asarray(array)  # shares memory with the array and keeps it alive
        return lambda: host_digest(values)
    lanes = device_lanes(array)
    return lambda: _seal(np.asarray(lanes.addressable_data(0)), shape, dtype)


def host_digest(array: np.ndarray) -> str:
    """`leaf_digest` of an array in host memory."""
    running = RunningDigest(array.shape, array.dtype)
    running.update(array)
    return running.hexdigest()


def check_dtype(dtype) -> np.dtype:
    """The dtype as NumPy's; InputError if a checkpoint cannot hold it."""
    if str(dtype) not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype}")
    return jnp.dtype(dtype)


class RunningDigest:
    """`leaf_digest` of an array that arrives in pieces, in C order."""

    def __init__(self, shape: tuple[int, ...], dtype):
        self._shape, self._dtype = tuple(shape), check_dtype(dtype)
        self._size = math.prod(self._shape)
        self._leading = self._size // self._shape[0] if self._size >= _WIDE else None
        self._seen = 0
        self._lanes = [0, 0]

    def update(self, piece: np.ndarray) -> None:
        """Take the next elements. Their shape is free, their dtype must be the leaf's."""
        if piece.dtype != self._dtype or self._seen + piece.size > self._size:
            raise ValueError(f"expected at most {self._size - self._seen} more {self._dtype}, found {piece.size} {piece.dtype}")
        words = np.ascontiguousarray(piece).reshape(-1).view(_WORDS[self._dtype.itemsize])
        steps = np.arange(min(_BLOCK, words.size), dtype=np.uint32) * _POSITION
        at = 0
        while at < words.size:
            block, offset = words[at : at + _BLOCK], self._seen * int(_POSITION)
            if self._leading is not None:
                row = self._seen // self._leading
                block = block[: (row + 1) * self._leading - self._seen]
                offset += row * int(_LEADING)
            self._mix(block, steps[: block.size] + np.uint32(offset % 2**32))
            at += block.size
            self._seen += block.size

    def _mix(self, words: np.ndarray, position: np.ndarray) -> None:
        x = words ^ position
        shifted = x >> 16
        x ^= shifted
        x *= _MIX_1
        np.right_shift(x, 13, out=shifted)
        x ^= shifted
        x *= _MIX_2
        np.right_shift(x, 16, out=shifted)
        x ^= shifted
        self._lanes[0] += int(np.add.reduce(x, dtype=np.uint32))
        position |= np.uint32(1)
        x *= position
        self._lanes[1] += int(np.add.reduce(x, dtype=np.uint32))

    def hexdigest(self) -> str:
        """The digest, once every element was given."""
        if self._seen != self._size:
            raise ValueError(f"expected {self._size} elements, found {self._seen}")
        return _seal(np.array(self._lanes, np.uint64) % 2**32, self._shape, self._dtype)


@jax.jit
def device_lanes(array: jax.Array) -> jax.Array:
    """The two sums, [2] uint32, by a program that runs where the array lies; the dispatch does not wait for it."""
    words = array if array.dtype == jnp.bool_ else lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize])
    position = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        index = lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        position += index * np.uint32(stride * int(_POSITION) % 2**32)
        stride *= array.shape[axis]
    if array.size >= _WIDE:
        position += lax.broadcasted_iota(jnp.uint32, array.shape, 0) * _LEADING
    x = words.astype(jnp.uint32) ^ position
    x = (x ^ (x >> 16)) * _MIX_1
    x = (x ^ (x >> 13)) * _MIX_2
    x = x ^ (x >> 16)
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32), jnp.sum(x * (position | 1), dtype=jnp.uint32)])


def _seal(lanes: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """The digest from the two sums over all elements."""
    text = json.dumps([dtype.name, list(shape), [int(lane) for lane in lanes]])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
