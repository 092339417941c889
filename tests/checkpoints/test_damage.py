"""Every flipped, cut, grown or missing file of a checkpoint is found, by name, and never restored."""

import shutil

import numpy as np
import pytest

from nextstep_jax import checkpoints, storage
from nextstep_jax.checkpoints import manifest, steps
from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage.files import FILES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("params") / "checkpoint"
    checkpoints.save_params(folder, params, {"model": {}}, {"tokenizer.json": b'{"version": "1.0"}'})
    return folder


@pytest.fixture
def step_folder(tmp_path, state):
    with TrainCheckpointer(tmp_path, config={"seed": 1}) as checkpointer:
        checkpointer.save(1, state, {"position": 4})
    return tmp_path / "checkpoints" / "1"


def _damages(size, rng):
    """(description, function of the bytes) for some places of a file."""
    places = {0, 1, size // 3, size // 2, size - 2, size - 1, *rng.integers(0, size, 4).tolist()}
    for place in sorted(place for place in places if 0 <= place < size):
        bit = 1 << int(rng.integers(8))
        yield (
            f"bit at {place}",
            lambda data, place=place, bit=bit: data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :],
        )
    for length in {0, size // 2, size - 1}:
        yield f"cut to {length}", lambda data, length=length: data[:length]
    yield "grown", lambda data: data + b"\0"


def undetected(folder, load):
    """Every damage, one at a time, that `load` does not report; each is undone."""
    rng, missed, trials = np.random.default_rng(0), [], 0
    for name in storage.of(folder).list_files(folder):
        path = folder / name
        data = path.read_bytes()
        for description, damage in _damages(len(data), rng):
            path.write_bytes(damage(data))
            trials += 1
            try:
                load()
                missed.append(f"{name}: {description}")
            except DamagedDataError as error:
                assert name in str(error), f"{name}: {description}: {error}"
        path.write_bytes(data)
    load()
    return missed, trials


def test_every_damage_to_a_parameter_checkpoint_is_found(checkpoint):
    missed, trials = undetected(checkpoint, lambda: checkpoints.load_params(checkpoint))
    assert missed == [] and trials > 60


def test_every_damage_to_a_training_step_is_found(step_folder, state):
    missed, trials = undetected(step_folder, lambda: steps.restore_step(step_folder, state, cast=False))
    assert missed == [] and trials > 100


def test_a_missing_file_is_named(checkpoint, tmp_path):
    for name in FILES.list_files(checkpoint):
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint, folder)
        (folder / name).unlink()
        if name == "manifest.json":  # then nothing says that it ever was a checkpoint
            with pytest.raises(InputError, match="no manifest.json"):
                checkpoints.load_params(folder)
        else:
            with pytest.raises(DamagedDataError, match=f"{name} is missing"):
                checkpoints.load_params(folder)
        shutil.rmtree(folder)


def test_a_missing_file_of_a_step_is_found(step_folder, state, tmp_path):
    for name in FILES.list_files(step_folder):
        folder = tmp_path / "copy"
        shutil.copytree(step_folder, folder)
        (folder / name).unlink()
        with pytest.raises(DamagedDataError, match="missing|expected the files"):
            steps.restore_step(folder, state, cast=False)
        shutil.rmtree(folder)


def test_values_are_checked_even_where_every_file_is_as_recorded(checkpoint, tmp_path, params):
    """As after a fault of memory between computing a leaf and writing it."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    content = manifest.read_sealed(folder / "manifest.json")
    digest = content["leaves"]["model/embedding/embedding"]["digest"]
    content["leaves"]["model/embedding/embedding"]["digest"] = digest[::-1]
    (folder / "manifest.json").write_bytes(manifest.seal(content))
    for load in (checkpoints.load_params, lambda path: list(checkpoints.iterate_params(path))):
        with pytest.raises(DamagedDataError, match="leaf model/embedding/embedding does not match its digest"):
            load(folder)


def test_the_config_can_not_be_edited_unnoticed(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("model", "modem"))
    with pytest.raises(DamagedDataError, match="config.json does not match its digest") as caught:
        checkpoints.load_config(folder)
    assert caught.value.exit_code == 3
