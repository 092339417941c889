"""Reading back what a run wrote."""

import numpy as np
import pytest

from nextstep_jax.data.image_output import save_image
from nextstep_jax.errors import InputError
from nextstep_jax.training.metrics import Writer
from nextstep_jax.training.run_logs import read_metrics, read_samples


def test_metrics_come_back_as_curves(tmp_path):
    writer = Writer(tmp_path, {})
    writer.scalars(5, {"loss": 2.0, "rate": 0.1})
    writer.scalars(10, {"loss": float("nan")})
    writer.scalars(10, {"validation/loss": 1.5})
    writer.close()
    found = read_metrics(tmp_path)
    assert list(found) == ["loss", "rate", "validation/loss"]
    steps, values = found["loss"]
    np.testing.assert_array_equal(steps, [5, 10])
    np.testing.assert_array_equal(values, [2.0, np.nan])


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(InputError, match="metrics of a training run"):
        read_metrics(tmp_path)
    assert read_samples(tmp_path) == {}


def test_samples_come_back_in_order(tmp_path):
    (tmp_path / "samples").mkdir()
    for step in (20, 3):
        save_image(tmp_path / "samples" / f"step_{step:08d}.png", np.full((4, 4, 3), step, np.uint8))
    found = read_samples(tmp_path)
    assert list(found) == [3, 20] and found[20].shape == (4, 4, 3) and found[20].max() == 20
