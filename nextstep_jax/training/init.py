"""Where a run's parameters come from, and where they go: checkpoint folders in canonical form, one leaf per layer."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from nextstep_jax import checkpoints
from nextstep_jax.errors import InputError
from nextstep_jax.models.param_layouts import stack_layers, unstack_layers
from nextstep_jax.sharding.params import path_string, state_shardings
from nextstep_jax.training.settings import InitConfig

# What a model may be trained without: a map head fits the flow head that it was distilled from, and no other.
_LEFT_BEHIND = "model/map_head/"

Array = jax.Array
Params = dict[str, Any]


def is_stacked(params: Params) -> bool:
    """Whether a tree holds a model with scanned layers, the one form of training that is not the stored one."""
    return "model" in params and "layers" in params["model"]["decoder"]


def to_canonical(params: Params) -> Params:
    """The trained tree as it is stored."""
    return params | {"model": unstack_layers(params["model"])} if is_stacked(params) else params


def initial_params(settings: InitConfig, init: Callable[[Array], Params], key: Array, mesh: Mesh) -> Params:
    """The first parameters, float32, in their place on `mesh`.

    Args:
      init: key -> all parameters, randomly initialized, in the form they are trained in.

    Raises:
      InputError: naming the parameter that is missing, superfluous or of another shape, or an expression that matches none.
      DamagedDataError: the checkpoint is not what was written.
    """
    shapes = jax.eval_shape(init, key)
    shardings = state_shardings(shapes, mesh)
    if not settings.checkpoint:
        return jax.jit(init, out_shardings=shardings)(key)
    wanted = _by_path(jax.eval_shape(to_canonical, shapes))
    abstract = {root: tree for root, tree in checkpoints.abstract_params(settings.checkpoint).items() if root in shapes}
    held = _by_path(abstract)
    copies = _copies(settings, wanted, held)
    kept = _kept(settings, wanted, held | {path: held[source] for path, source in copies.items()})
    stored: dict[str, Array] = {}
    for root, tree in abstract.items():
        load = {"subtree": root, "dtype": "float32", "shardings": state_shardings({root: tree}, mesh)[root]}
        stored |= _by_path({root: checkpoints.load_params(settings.checkpoint, **load)})

    def combine(key: Array, loaded: Mapping[str, Array]) -> Params:
        fresh = to_canonical(init(key))  # what is not used is never computed
        chosen = jax.tree_util.tree_map_with_path(lambda path, leaf: loaded.get(path_string(path), leaf), fresh)
        return chosen | {"model": stack_layers(chosen["model"])} if is_stacked(shapes) else chosen

    return jax.jit(combine, out_shardings=shardings)(key, {path: stored[copies.get(path, path)] for path in kept})


def _by_path(tree: Params) -> dict[str, Any]:
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _copies(settings: InitConfig, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """For each parameter that the checkpoint lacks and `settings.copies` has a source for: the path of that source."""
    found: dict[str, str] = {}
    for target, source in settings.copies:
        paths = [path for path in wanted if path.startswith(f"{target}/")]
        sources = {path: source + path.removeprefix(target) for path in paths if path not in stored}
        found |= {path: source for path, source in sources.items() if source in stored}
        if not paths or not any(path.startswith(f"{source}/") for path in stored):
            raise InputError(f"config.init.copies: {settings.checkpoint} and the model have no {source} to begin {target} with")
    return found


def _kept(settings: InitConfig, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """The parameters that come from the checkpoint, by path; InputError for what does not fit."""

    def is_reinit(path: str) -> bool:
        return any(re.search(pattern, path) for pattern in settings.reinit)

    for pattern in settings.reinit:
        if not any(re.search(pattern, path) for path in wanted):
            raise InputError(f"config.init.reinit: {pattern!r} matches no parameter")
    kept = []
    for path, leaf in stored.items():
        if is_reinit(path):
            continue
        if path not in wanted and path.startswith(_LEFT_BEHIND):
            continue
        if path not in wanted:
            raise InputError(f"{settings.checkpoint}: holds {path}, which the configured architecture does not have")
        if tuple(leaf.shape) != tuple(wanted[path].shape):
            shapes = f"shape {tuple(leaf.shape)}, expected {tuple(wanted[path].shape)}"
            raise InputError(
                f"{settings.checkpoint}: {path} has {shapes}; name it in config.init.reinit to initialize it randomly"
            )
        kept.append(path)
    for path in wanted.keys() - stored.keys():
        if not is_reinit(path):
            raise InputError(f"{settings.checkpoint}: has no {path}; name it in config.init.reinit to initialize it randomly")
    return kept
