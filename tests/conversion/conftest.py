"""Released folders to convert: the goldens, and variations of them made on the spot."""

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDENS


@pytest.fixture(scope="session")
def model_tensors() -> dict[str, np.ndarray]:
    """The released tensors of the tiny model, read by the safetensors library."""
    return load_file(GOLDENS / "tiny_model/model.safetensors")


@pytest.fixture(scope="session")
def tokenizer_tensors() -> dict[str, np.ndarray]:
    """The released tensors of the tiny image tokenizer."""
    return load_file(GOLDENS / "tiny_vae/checkpoint.safetensors")


@pytest.fixture(scope="session")
def model_config() -> dict:
    """config.json of the tiny model."""
    return json.loads((GOLDENS / "tiny_model/config.json").read_text())


@pytest.fixture
def released(tmp_path: pathlib.Path) -> pathlib.Path:
    """A complete released folder that a test may change: tiny model, and its image tokenizer in vae/."""
    folder = tmp_path / "released"
    shutil.copytree(GOLDENS / "tiny_model", folder)
    (folder / "vae").mkdir()
    for name in ("config.json", "checkpoint.safetensors"):
        shutil.copy(GOLDENS / "tiny_vae" / name, folder / "vae")
    return folder


@pytest.fixture
def edit(released: pathlib.Path) -> Callable:
    """edit(change) rewrites the model's tensors, edit(change, "vae") the image tokenizer's: change(dict) in place."""

    def apply(change: Callable[[dict], None], part: str = "model") -> None:
        file = released / ("model.safetensors" if part == "model" else "vae/checkpoint.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


@pytest.fixture
def edit_config(released: pathlib.Path) -> Callable:
    """edit_config(name=value, ...) changes the model's config.json; None as the value removes the key."""

    def apply(part: str = "", **changes) -> None:
        file = released / part / "config.json"
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return apply
