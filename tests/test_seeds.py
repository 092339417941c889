"""Every bit of a seed counts."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep_jax.errors import InputError
from nextstep_jax.seeds import MAX_SEED, require_seed, seed_key

SEEDS = st.integers(0, MAX_SEED)


@given(SEEDS, st.integers(0, 62))
def test_seeds_that_differ_in_one_bit_give_other_keys(seed, bit):
    one, other = (jax.random.key_data(seed_key(s)) for s in (seed, seed ^ (1 << bit)))
    assert (one != other).any()


@given(st.integers(0, 2**32 - 1))
def test_small_seeds_are_those_of_jax(seed):
    np.testing.assert_array_equal(jax.random.key_data(seed_key(seed)), jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.5, 1.0, True, None, "1", float("nan"), np.float32(2)])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(InputError, match=r"seed must be a whole number in \[0, 2\*\*63\), found"):
        seed_key(seed)


@pytest.mark.parametrize("seed", [0, MAX_SEED, np.int32(7), np.uint64(2**40), np.int64(3)])
def test_numpy_seeds_are_taken(seed):
    assert type(require_seed(seed)) is int and require_seed(seed) == int(seed)
