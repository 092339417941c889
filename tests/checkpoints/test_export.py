"""From a run's state to a parameter checkpoint."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import manifest
from nextstep_jax.checkpoints.export import export_params
from nextstep_jax.checkpoints.training import TrainCheckpointer
from nextstep_jax.errors import DamagedDataError, InputError

CONFIG = {"model": {"hidden_size": 8}, "image_tokenizer": None}


@pytest.fixture
def run(tmp_path, state):
    """A run with steps 1 and 2; the second has doubled embeddings and an average kept without the outer "model"."""
    with TrainCheckpointer(tmp_path / "run", config={}, checkpoint_config=CONFIG) as checkpointer:
        checkpointer.save(1, state)
        state["params"]["model"]["embedding"]["embedding"] *= 2
        checkpointer.save(2, state | {"average": state["params"]["model"]})
    return tmp_path / "run"


def _layers(state):
    """The model's parameters in the form they have on disk."""
    model = state["params"]["model"]
    kernel, decoder = np.asarray(model["decoder"]["layers"]["q"]["kernel"]), {"scale": model["decoder"]["scale"]}
    decoder |= {f"layers_{i}": {"q": {"kernel": kernel[i]}} for i in range(3)}
    return {"embedding": model["embedding"], "decoder": decoder}


def test_stacks_become_layers(run, state, tmp_path, assert_same):
    assert export_params(run, tmp_path / "out") == 2
    assert_same({"model": _layers(state)}, checkpoints.load_params(tmp_path / "out"))
    assert checkpoints.load_config(tmp_path / "out")["model"] == CONFIG["model"]


def test_a_collection_that_is_one_part(run, state, tmp_path, assert_same):
    export_params(run, tmp_path / "out", collections=("average",), part="model", config={"model": {"other": 1}})
    assert_same(_layers(state), checkpoints.load_params(tmp_path / "out", subtree="model"))
    assert checkpoints.load_config(tmp_path / "out")["model"] == {"other": 1}


def test_an_average_that_leaves_out_what_is_frozen_is_filled_up(tmp_path, assert_same):
    """The state of adversarial training of a tokenizer whose decoder is frozen; the discriminator stays behind."""
    params = {"image_tokenizer": {"encoder": jnp.zeros(3), "decoder": jnp.ones(4)}, "discriminator": jnp.ones(2)}
    state = {"params": params, "ema": {"image_tokenizer": {"encoder": jnp.full(3, 0.5), "decoder": None}}}
    with TrainCheckpointer(tmp_path / "run", config={}, checkpoint_config={"image_tokenizer": {}}) as checkpointer:
        checkpointer.save(1, state)
    export_params(tmp_path / "run", tmp_path / "out", collections=("ema", "params"))
    expected = {"image_tokenizer": {"encoder": np.full(3, 0.5, np.float32), "decoder": np.ones(4, np.float32)}}
    assert_same(expected, checkpoints.load_params(tmp_path / "out"))


def test_an_older_step_in_another_dtype(run, state, tmp_path):
    assert export_params(run, tmp_path / "out", step=1, dtype="float16") == 1
    found = checkpoints.load_params(tmp_path / "out", subtree="model")
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float16")}
    expected = np.asarray(state["params"]["model"]["embedding"]["embedding"], np.float32) / 2
    np.testing.assert_allclose(np.asarray(found["embedding"]["embedding"], np.float32), expected, rtol=1e-3)


def test_what_the_run_does_not_train_comes_from_the_base(run, params, tmp_path, assert_same):
    checkpoints.save_params(tmp_path / "base", params, CONFIG, {"tokenizer.json": b"{}"})
    export_params(run, tmp_path / "out", base=tmp_path / "base", dtype="float16")
    found = checkpoints.load_params(tmp_path / "out")
    assert set(found) == {"model", "image_tokenizer"} and "layers_2" in found["model"]["decoder"]
    assert {leaf.dtype for leaf in jax.tree.leaves(found["model"])} == {jnp.dtype("float16")}
    assert_same(params["image_tokenizer"], found["image_tokenizer"])
    assert checkpoints.load_file(tmp_path / "out", "tokenizer.json") == b"{}"


def test_while_the_run_goes_on(tmp_path, state, assert_same):
    with TrainCheckpointer(tmp_path / "run", config={}, checkpoint_config=CONFIG) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        checkpointer.save(2, state)
        assert export_params(tmp_path / "run", tmp_path / "out", step=1) == 1
    assert_same({"model": _layers(state)}, checkpoints.load_params(tmp_path / "out"))


@pytest.mark.parametrize("what", ["file", "digest"])
def test_a_damaged_step_is_not_exported(run, tmp_path, what):
    step = run / "checkpoints" / "2"
    if what == "file":
        path = max(step.rglob("*/d/*"), key=lambda path: path.stat().st_size)
        path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
        message = "damaged: state/.* bytes, expected"
    else:
        path = step / "process_0-of-1.json"
        content = manifest.read_sealed(path)
        content["leaves"]["params/model/decoder/layers/q/kernel"]["digest"] = "0"
        path.write_bytes(manifest.seal(content))
        message = "leaf params/model/decoder/layers/q/kernel does not match its digest"
    with pytest.raises(DamagedDataError, match=message):
        export_params(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_step_removed_by_its_run_meanwhile_is_not_called_damaged(run, tmp_path, monkeypatch):
    def removed(*_):
        shutil.rmtree(run / "checkpoints" / "2")
        return []

    monkeypatch.setattr(manifest, "find_damage", removed)
    with pytest.raises(InputError, match="the run removed this step"):
        export_params(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_exported(run, tmp_path, state):
    with pytest.raises(InputError, match="no parameters under ema, only average, opt, params, skipped, step"):
        export_params(run, tmp_path / "out", collections=("ema",))
    with pytest.raises(InputError, match="step 5 is not there, only 1, 2"):
        export_params(run, tmp_path / "out", step=5)
    with pytest.raises(InputError, match="expected a run's folder with a complete step"):
        export_params(tmp_path / "nowhere", tmp_path / "out")
    with TrainCheckpointer(tmp_path / "other", config={}) as checkpointer:
        checkpointer.save(1, state)
    with pytest.raises(InputError, match="no checkpoint_config"):
        export_params(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()
