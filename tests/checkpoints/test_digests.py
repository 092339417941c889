"""The digest of a leaf: sensitive to every bit, its place, shape and dtype; the same on the host and on devices."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.checkpoints import digests
from nextstep_jax.errors import InputError


def _bits(array):
    return array.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def _random(seed, size, dtype):
    raw = np.random.default_rng(seed).bytes(size * np.dtype(jnp.dtype(dtype)).itemsize)
    return np.frombuffer(bytearray(raw), jnp.dtype(dtype))


arrays = st.builds(
    _random,
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.sampled_from(["int8", "uint16", "bfloat16", "float16", "float32"]),
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(arrays, st.data())
def test_one_flipped_bit_changes_the_digest(array, data):
    before = digests.leaf_digest(array)
    place = data.draw(st.integers(0, array.size - 1))
    bit = data.draw(st.integers(0, 8 * array.itemsize - 1))
    _bits(array)[place] ^= _bits(array).dtype.type(1 << bit)
    assert digests.leaf_digest(array) != before


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(arrays, st.data())
def test_two_swapped_elements_change_the_digest(array, data):
    first, second = (data.draw(st.integers(0, array.size - 1)) for _ in range(2))
    words = _bits(array)
    hypothesis.assume(words[first] != words[second])
    before = digests.leaf_digest(array)
    words[[first, second]] = words[[second, first]]
    assert digests.leaf_digest(array) != before


def test_elements_that_differ_only_in_sign_can_not_be_swapped():
    values = np.tile(np.float32([1.5, -1.5]), 500)
    assert digests.leaf_digest(values) != digests.leaf_digest(-values)


def test_shape_and_dtype_are_part_of_the_digest():
    zeros = np.zeros(12, np.float32)
    found = {digests.leaf_digest(zeros.reshape(shape)) for shape in [(12,), (3, 4), (4, 3), (12, 1)]}
    found |= {digests.leaf_digest(zeros.view(np.int32)), digests.leaf_digest(np.zeros(13, np.float32))}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float32", ()), ("float32", (0,)), ("float32", (7,)), *((dtype, (2, 3, 5)) for dtype in digests.DTYPES)],
)
def test_devices_and_host_agree(dtype, shape):
    size = int(np.prod(shape))
    array = np.asarray([True, False] * size, bool)[:size] if dtype == "bool" else _random(1, size, dtype)
    array = array.reshape(shape)
    lanes = np.asarray(digests.device_lanes(jnp.asarray(array)))
    assert digests._seal(lanes, shape, array.dtype) == digests.host_digest(array)


def test_the_digest_does_not_depend_on_the_sharding(run_program):
    assert run_program("sharded_digests.py", devices=8).split() == ["same"]


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(arrays, st.integers(1, 99))
def test_pieces_give_the_digest_of_the_whole(array, piece):
    running = digests.RunningDigest(array.shape, array.dtype)
    for start in range(0, array.size, piece):
        running.update(array[start : start + piece])
    assert running.hexdigest() == digests.leaf_digest(array)


def test_positions_stay_apart_beyond_32_bits(monkeypatch):
    # As if i wrapped around after 2^32 elements: with _WIDE at 0 the leading index alone must keep rows apart.
    monkeypatch.setattr(digests, "_WIDE", 0)
    monkeypatch.setattr(digests, "_BLOCK", 100)
    array = _random(2, 6 * 150, "uint16").reshape(6, 150)
    lanes = np.asarray(digests.device_lanes.__wrapped__(jnp.asarray(array)))
    wide = digests.host_digest(array)
    assert digests._seal(lanes, array.shape, array.dtype) == wide
    assert digests.host_digest(array[[1, 0, 2, 3, 4, 5]]) != wide
    monkeypatch.undo()
    assert digests.host_digest(array) != wide


@pytest.mark.parametrize("dtype", ["float64", "int64", "complex64"])
def test_types_that_jax_would_narrow_are_refused(dtype):
    with pytest.raises(InputError, match=dtype):
        digests.leaf_digest(np.zeros(3, dtype))


def test_random_keys_are_refused():
    with pytest.raises(InputError, match="key"):
        digests.leaf_digest(jax.random.key(0))


def test_a_piece_of_another_dtype_or_too_many_are_refused():
    running = digests.RunningDigest((4,), "float32")
    with pytest.raises(ValueError, match="expected"):
        running.update(np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="expected"):
        running.update(np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="expected 4"):
        running.hexdigest()
