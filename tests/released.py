"""The golden checkpoint `tiny_model`, read from the released layout into the parameter tree."""

import functools
import json

from safetensors.numpy import load_file

from nextstep_jax.config import NextStepConfig
from nextstep_jax.conversion import names
from tests.conftest import GOLDENS


def get_leaf(params: dict, path: str):
    """The leaf of a parameter tree at a slash-joined path."""
    return functools.reduce(lambda node, name: node[name], path.split("/"), params)


@functools.cache
def tiny_model() -> tuple[NextStepConfig, dict]:
    """Config and parameters (unrolled form) of the golden checkpoint."""
    folder = GOLDENS / "tiny_model"
    config = NextStepConfig.from_released(json.loads((folder / "config.json").read_text()))
    released, params = load_file(folder / "model.safetensors"), {}
    for entry in names.model_entries(config):
        *parents, last = entry.path.split("/")
        functools.reduce(lambda node, name: node.setdefault(name, {}), parents, params)[last] = entry.load(
            released[entry.source]
        )
    return config, params
