"""How much of an online step's gradient is signal? Gradients of independent rollouts at one model, and how far they agree.

    python -m benchmarks.gradient_signal shapes_nft [--batches 4] [--config.rollouts.images=8]
    python -m benchmarks.gradient_signal shapes_grpo --config.rollouts.trained_steps=4

The model is the one that the config's training starts from; every batch has its own prompts and noise, and nothing is updated
between them. The cosine of two gradients estimates |mean gradient|^2 / mean |gradient|^2: at 1 every step goes the same way; at
0.01 a hundred steps have to be added up before what their gradients have in common is as large as what they have not.
"""

import argparse
import itertools
import json
import sys
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nextstep_jax.errors import InputError
from nextstep_jax.launch.config_files import load_config, split_overrides
from nextstep_jax.seeds import seed_key
from nextstep_jax.sharding.mesh import global_batch, make_mesh
from nextstep_jax.training.config import override, resolve
from nextstep_jax.training.init import initial_params
from nextstep_jax.training.online import make_stage
from nextstep_jax.training.post_training_settings import OnlineConfig


def cosines(gradients: Sequence[np.ndarray]) -> list[float]:
    """Of each pair of gradients."""
    pairs = itertools.combinations([gradient.astype(np.float64) for gradient in gradients], 2)
    return [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs]


def measure(config: ConfigDict, batches: int) -> dict[str, Any]:
    """The cosines, and means of what the rollouts scored and of the fraction of prompts that were learned from.

    Raises:
      InputError: a config of another kind of training, or one that cannot be used.
    """
    run = resolve(config)
    if not isinstance(run, OnlineConfig):
        raise InputError(f"expected a config of online training, found the objective {run.objective!r}")
    mesh, key = make_mesh({}, jax.devices()[:1]), seed_key(run.seed)
    with jax.set_mesh(mesh):
        stage = make_stage(run)
        objective = stage.objective
        params = initial_params(run.init, objective.init, key, mesh)
        assert stage.collector is not None
        collect = stage.collector(key)

        @jax.jit
        def gradient(params, batch):
            return jax.grad(lambda params: objective.loss(params, batch, key, objective.normalizers(batch))[0])(params)

        gradients, statistics = [], []
        for step, host_batch in zip(range(batches), stage.training_data(), strict=False):
            state: Any = types.SimpleNamespace(step=jnp.int32(step), params=params, averaged_params=params)
            batch = collect(state, global_batch(host_batch.arrays, mesh, objective.batch_axes), key)
            leaves = jax.tree.leaves(jax.device_get(gradient(params, batch)))
            gradients.append(np.concatenate([leaf.ravel() for leaf in leaves]))
            statistics.append([float(batch.statistics[name][0]) for name in ("reward/total", "groups/kept")])
    reward, kept = np.mean(statistics, axis=0)
    found = cosines(gradients)
    return {"cosine": float(np.mean(found)), "cosines": found, "reward": float(reward), "kept": float(kept)}


def main(arguments: list[str]) -> int:
    rest, overrides = split_overrides(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="of online training, as `nextstep-jax train --config` takes it")
    parser.add_argument("--batches", type=int, default=4)
    args = parser.parse_args(rest)
    if args.batches < 2:
        parser.error("there must be at least two batches to compare")
    try:
        config = load_config(args.config)
        for path, text in overrides:
            override(config, path, text)
        print(json.dumps(measure(config, args.batches), indent=1))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
