"""Checkpoints: save, restore, verify.

Parameter checkpoints (`save_params`, `load_params`, ...) serve conversion and generation; a run's state is saved and restored
by `nextstep_jax.checkpoints.training`, which is imported on its own because it brings Orbax along.
"""

from nextstep_jax.checkpoints.digests import leaf_digest
from nextstep_jax.checkpoints.params import (
    MANIFEST,
    abstract_params,
    digest_of,
    iterate_params,
    load_config,
    load_file,
    load_params,
    save_params,
    writing,
)

__all__ = [
    "MANIFEST",
    "abstract_params",
    "digest_of",
    "iterate_params",
    "leaf_digest",
    "load_config",
    "load_file",
    "load_params",
    "save_params",
    "writing",
]
