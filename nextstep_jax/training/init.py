"""Where a run's parameters come from, and where they go: checkpoint folders in canonical form, one leaf per layer."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from nextstep_jax import checkpoints
from nextstep_jax.errors import InputError
from nextstep_jax.models.param_layouts import stack_layers, unstack_layers
from nextstep_jax.sharding.params import path_string, state_shardings

Array = jax.Array
Params = dict[str, Any]


def is_stacked(params: Params) -> bool:
    """Whether a tree holds a model with scanned layers, the one form of training that is not the stored one."""
    return "model" in params and "layers" in params["model"]["decoder"]


def to_canonical(params: Params) -> Params:
    """The trained tree as it is stored."""
    return params | {"model": unstack_layers(params["model"])} if is_stacked(params) else params


def initial_params(checkpoint: str, reinit: Sequence[str], init: Callable[[Array], Params], key: Array, mesh: Mesh) -> Params:
    """The first parameters, float32, in their place on `mesh`.

    Args:
      checkpoint: a checkpoint folder (a NextStep model, a Qwen2.5 one, an image tokenizer), or "" to initialize everything
        randomly.
      reinit: regular expressions over canonical parameter paths that are randomly initialized when the checkpoint lacks them.
      init: key -> all parameters, randomly initialized, in the form they are trained in.

    Raises:
      InputError: naming the parameter that is missing, superfluous or of another shape.
      DamagedDataError: the checkpoint is not what was written.
    """
    shapes = jax.eval_shape(init, key)
    placement = state_shardings(shapes, mesh)
    if not checkpoint:
        return jax.jit(init, out_shardings=placement)(key)
    stored = {root: tree for root, tree in checkpoints.abstract_params(checkpoint).items() if root in shapes}
    wanted = _by_path(jax.eval_shape(to_canonical, shapes))
    _require_match(checkpoint, wanted, _by_path(stored), reinit)
    shardings = state_shardings(stored, mesh)
    loaded = {
        root: checkpoints.load_params(checkpoint, subtree=root, dtype="float32", shardings=shardings[root]) for root in stored
    }

    def combine(key: Array, loaded: Mapping[str, Array]) -> Params:
        drawn = to_canonical(init(key))  # what is not used is never computed
        chosen = jax.tree_util.tree_map_with_path(lambda path, leaf: loaded.get(path_string(path), leaf), drawn)
        return chosen | {"model": stack_layers(chosen["model"])} if is_stacked(shapes) else chosen

    return jax.jit(combine, out_shardings=placement)(key, _by_path(loaded))


def _by_path(tree: Params) -> dict[str, Any]:
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _require_match(checkpoint: str, wanted: Mapping[str, Any], stored: Mapping[str, Any], reinit: Sequence[str]) -> None:
    for path, leaf in stored.items():
        if path not in wanted:
            raise InputError(f"{checkpoint}: holds {path}, which the configured architecture does not have")
        if tuple(leaf.shape) != tuple(wanted[path].shape):
            raise InputError(f"{checkpoint}: {path} has shape {tuple(leaf.shape)}, expected {tuple(wanted[path].shape)}")
    for path in wanted.keys() - stored.keys():
        if not any(re.search(pattern, path) for pattern in reinit):
            raise InputError(f"{checkpoint}: has no {path}; name it in config.init.reinit to initialize it randomly")
