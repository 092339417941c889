"""on_a_mesh.py CHECKPOINT FOLDER: what the commands make of a checkpoint on one device and on meshes of eight; prints JSON,
{mesh: [the largest difference of a pixel, whether parameters were split], "same_text": bool}. The larger mesh is given int8.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from click.testing import CliRunner

from nextstep_jax import cli_shared
from nextstep_jax.cli import cli
from nextstep_jax.data.images import load
from nextstep_jax.generation.pipeline import Pipeline

checkpoint, folder = sys.argv[1], pathlib.Path(sys.argv[2])
(folder / "batch").mkdir()
splits: list[bool] = []
load_pipeline = Pipeline.from_checkpoint.__func__


def noted(cls, *arguments):
    """Remembers whether a device holds only a part of a kernel."""
    made = load_pipeline(cls, *arguments)
    kernel = made.params["decoder"]["layers_0"]["mlp"]["down"]["kernel"]
    splits.append(kernel.sharding.shard_shape(kernel.shape) != kernel.shape)
    return made


Pipeline.from_checkpoint = classmethod(noted)
cli_shared.keep_compiled_programs = lambda: None


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments, "--checkpoint", checkpoint], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def drawn(*more: str) -> np.ndarray:
    """An image of each of two prompts."""
    out = folder / "batch"
    for path in out.iterdir():
        path.unlink()
    run("generate", "a red circle", "a blue square", "--seed", "3", "--out", str(out), *more)
    return np.stack([np.asarray(load(path), np.int32) for path in sorted(out.iterdir())])


assert jax.device_count() == 8
complete = ("complete", "a red", "--max-tokens", "8")
images, text, small = drawn(), run(*complete), drawn("--dtype", "int8")
assert len(images) == 2 and not any(splits)
found = {}
for mesh, expected, more in (("tensor=2", images, ()), ("tensor=8", small, ("--dtype", "int8"))):
    splits.clear()
    found[mesh] = [int(np.abs(drawn("--mesh", mesh, *more) - expected).max()), all(splits)]
print(json.dumps(found | {"same_text": run(*complete, "--mesh", "tensor=2") == text}))
