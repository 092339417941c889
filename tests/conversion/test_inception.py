"""The file of FID's weights: what is taken, and what is said of anything else. `fid/test_features.py` has the numbers."""

import numpy as np
import pytest

from nextstep_jax.conversion import inception
from nextstep_jax.errors import InputError
from tests.conversion import torch_writer

SHAPES = {name: shape for name, (_, shape) in inception._expected()} | {"fc.bias": (1008,)}


def test_the_layout_of_the_file():
    assert len(SHAPES) == 94 * 5 + 2 and SHAPES["fc.weight"] == (1008, 2048)
    assert SHAPES["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert SHAPES["Mixed_7b.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert sum(int(np.prod(shape)) for shape in SHAPES.values()) == 23_885_392


class _Stored:
    """A file's tensors that are zeros until they are read."""

    def __init__(self, monkeypatch, tmp_path, **changes):
        shapes = {name: shape for name, shape in {**SHAPES, **changes}.items() if shape is not None}
        self.path = tmp_path / "x.pth"
        self.path.write_bytes(b"weights")
        self.values = {}

        def tensor(name, shape):
            def read():
                return np.full(shape, self.values.get(name, 1), np.float32)

            return inception.StoredTensor(name, shape, np.dtype(np.float32), self.path, read)

        monkeypatch.setattr(inception, "open_file", lambda _: [tensor(name, shape) for name, shape in shapes.items()])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"Mixed_5b.branch1x1.bn.bias": None}, r"it has no Mixed_5b.branch1x1.bn.bias \(1 missing, 0 unknown\)"),
        ({"AuxLogits.fc.bias": (1,)}, "it has AuxLogits.fc.bias"),
        ({"fc.weight": (1000, 2048)}, r"fc.weight: expected float32 \[1008, 2048\], found float32 \[1000, 2048\]"),
        ({"fc.bias": (1000,)}, r"fc.bias: expected float32 \[1008\]"),
        ({"Mixed_6c.branch7x7_2.conv.weight": (160, 160, 7, 1)}, r"Mixed_6c.branch7x7_2.conv.weight: expected .*1, 7\]"),
    ],
)
def test_another_layout_names_the_tensor(monkeypatch, tmp_path, changes, message):
    stored = _Stored(monkeypatch, tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        inception.read_inception(stored.path, unofficial=True)


@pytest.mark.parametrize("value", [np.nan, -1])
def test_values_that_make_no_sense(monkeypatch, tmp_path, value):
    stored = _Stored(monkeypatch, tmp_path)
    stored.values["Mixed_7a.branch3x3_1.bn.running_var"] = value
    with pytest.raises(InputError, match="Mixed_7a.branch3x3_1.bn.running_var: has values that are not finite, or a negative"):
        inception.read_inception(stored.path, unofficial=True)


def test_the_digest_is_checked(tmp_path):
    path = torch_writer.save(tmp_path / "pt_inception-2015-12-05-6726825d.pth", {"fc.bias": np.zeros(1008, np.float32)})
    with pytest.raises(InputError, match="sha256 begins with 6726825d, found [0-9a-f]{8}; --unofficial"):
        inception.read_inception(path)
    with pytest.raises(InputError, match="not the layout of pt_inception-2015-12-05, it has no"):
        inception.read_inception(path, unofficial=True)
