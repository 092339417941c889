"""Weights in the layout of FID's network."""

import pathlib

import numpy as np
import pytest

from nextstep_jax.conversion import inception
from tests.conversion import torch_writer
from tests.evaluation.fid.drawn import draw


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory) -> pathlib.Path:
    """A file like pt_inception-2015-12-05, its numbers drawn."""
    shapes = {name: shape for name, (_, shape) in inception._expected()} | {"fc.bias": (1008,)}
    arrays = {name: draw(name, shape) for name, shape in shapes.items()}
    arrays["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(0, np.int64)
    return torch_writer.save(tmp_path_factory.mktemp("weights") / "drawn.pth", arrays)


@pytest.fixture(scope="session")
def weights(weights_file) -> inception.InceptionWeights:
    return inception.read_inception(weights_file, unofficial=True)
