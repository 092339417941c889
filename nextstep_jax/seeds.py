"""Seeds: whole numbers from 0 to 2**63 - 1, every bit of which counts."""

import hashlib

import jax

from nextstep_jax.errors import InputError

MAX_SEED = 2**63 - 1


def require_seed(seed: int, name: str = "seed") -> int:
    """The seed as an int. InputError for anything but a whole number in [0, 2**63)."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed.__index__() <= MAX_SEED:
        raise InputError(f"{name} must be a whole number in [0, 2**63), found {seed!r}")
    return seed.__index__()


def seed_key(seed: int, name: str = "seed") -> jax.Array:
    """The random key of a seed. `jax.random.key` alone would drop the bits above the 32nd.

    Raises:
      InputError: as `require_seed`.
    """
    high, low = divmod(require_seed(seed, name), 2**32)
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key


def prompt_seed(seed: int, id: str) -> int:
    """The seed of a prompt's images under the seed of a whole evaluation, the same whichever other prompts are drawn.

    Prompts that shared their noise would not be independent, and an interval over prompts would be too narrow.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{id}".encode(), digest_size=8).digest()) >> 1
