"""The weights of FID's network, read from the file that the other implementations download.

It is pt_inception-2015-12-05-6726825d.pth (pytorch-fid) or weights-inception-2015-12-05-6726825d.pth (torch-fidelity), the same
file; the end of its name is the beginning of its sha256. It is not part of this package.
"""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from nextstep_jax.conversion.torch_files import StoredTensor, open_file
from nextstep_jax.data import files
from nextstep_jax.errors import InputError
from nextstep_jax.models.inception import CLASSES, SIDE, Inception
from nextstep_jax.untrusted import open_inside

OFFICIAL = "6726825d"
_NAMES = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}


class InceptionWeights(NamedTuple):
    """Parameters of `models.inception.Inception`, and the sha256 of their file."""

    params: dict[str, Any]
    sha256: str


def read_inception(path: str | os.PathLike, unofficial: bool = False) -> InceptionWeights:
    """The network's parameters, float32.

    Args:
      unofficial: take a file with another digest.

    Raises:
      InputError: not that file; or, naming the tensor, one that is missing, unknown, or of another shape or dtype.
    """
    path = pathlib.Path(path)
    with open_inside(path):
        digest = files.sha256(path)
    if not digest.startswith(OFFICIAL) and not unofficial:
        raise InputError(
            f"{path}: expected the weights of 2015-12-05, whose sha256 begins with {OFFICIAL}, found {digest[:8]}; "
            f"--unofficial takes them as they are"
        )
    tensors = {tensor.name: tensor for tensor in open_file(path)}
    expected = dict(_expected())
    known = {*expected, "fc.bias"}  # the bias is not used
    missing = sorted(known - tensors.keys())
    unknown = sorted(name for name in tensors.keys() - known if not name.endswith(".num_batches_tracked"))
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has {unknown[0]}"
        raise InputError(
            f"{path}: not the layout of pt_inception-2015-12-05, it {what} ({len(missing)} missing, {len(unknown)} unknown)"
        )
    _require(tensors["fc.bias"], (CLASSES,))
    params: dict[str, Any] = {}
    for name, (keys, shape) in expected.items():
        _require(tensors[name], shape)
        array = np.array(tensors[name].read(), np.float32)
        if not np.isfinite(array).all() or (keys[-1] == "var" and (array < 0).any()):
            raise InputError(f"{path}: {name}: has values that are not finite, or a negative variance")
        place = params
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = array.transpose(_to_flax(len(shape)))
    return InceptionWeights(params, digest)


def _expected() -> list[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """(name in the file, (keys of the parameter, shape in the file)) of each tensor that is used."""
    pixels = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), pixels)["params"]
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = tuple(key.key for key in path)
        name = "fc.weight" if keys == ("fc_kernel",) else ".".join((*keys[:-1], _NAMES[keys[-1]]))
        found.append((name, (keys, tuple(leaf.shape[axis] for axis in _to_torch(leaf.ndim)))))
    return found


def _to_torch(rank: int) -> tuple[int, ...]:
    """The order of a parameter's axes in the file: output, input, down, across."""
    return {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[rank]


def _to_flax(rank: int) -> tuple[int, ...]:
    return {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[rank]


def _require(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype != np.float32:
        expected, found = f"float32 {list(shape)}", f"{tensor.dtype} {list(tensor.shape)}"
        raise InputError(f"{tensor.file}: {tensor.name}: expected {expected}, found {found}")
