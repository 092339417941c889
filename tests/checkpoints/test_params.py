"""Parameter checkpoints: round trips, meshes, Orbax, memory, refusals."""

import json
import logging
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.checkpoints import arrays
from nextstep_jax.checkpoints import params as params_module
from nextstep_jax.errors import DamagedDataError, InputError
from nextstep_jax.storage.files import Files

CONFIG = {"model": {"hidden_size": 8}, "image_tokenizer": None}


@pytest.fixture
def saved(tmp_path, params):
    checkpoints.save_params(tmp_path / "checkpoint", params, CONFIG, {"tokenizer.json": b"{}", "more/notes.txt": b"x"})
    return tmp_path / "checkpoint"


def test_round_trip(saved, params, assert_same):
    assert_same(params, checkpoints.load_params(saved))
    assert_same(params["model"], checkpoints.load_params(saved, subtree="model"))
    assert checkpoints.load_config(saved) == {"format": "nextstep_jax", "version": 1} | CONFIG
    assert checkpoints.load_file(saved, "tokenizer.json") == b"{}"
    assert checkpoints.load_file(saved, "absent.json") is None
    assert checkpoints.params.load_extra_files(saved) == {"tokenizer.json": b"{}", "more/notes.txt": b"x"}


def test_a_folder_reached_over_its_parent(saved, params, assert_same, monkeypatch):
    monkeypatch.chdir(saved)
    assert_same(params, checkpoints.load_params(pathlib.Path("..") / saved.name))


def test_shapes_without_reading(saved, params):
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), checkpoints.abstract_params(saved)) == expected


def test_leaves_one_by_one(saved, params, assert_same):
    found = dict(checkpoints.iterate_params(saved, "image_tokenizer"))
    assert list(found) == ["image_tokenizer/conv_in/kernel"]
    assert_same(params["image_tokenizer"]["conv_in"]["kernel"], found["image_tokenizer/conv_in/kernel"])


def test_dtype_changes_only_when_asked(tmp_path):
    tree = {"model": {"w": np.float32([1.0, 2.0]), "count": np.int32([3])}, "other": {"w": np.float32([3.0])}}
    checkpoints.save_params(tmp_path / "c", tree, CONFIG)
    found = checkpoints.load_params(tmp_path / "c", subtree="model", dtype="bfloat16")
    assert (found["w"].dtype, found["count"].dtype) == (jnp.bfloat16, jnp.int32)
    found = checkpoints.load_params(tmp_path / "c", dtype={"model": "float16", "image_tokenizer": "bfloat16"})
    assert (found["model"]["w"].dtype, found["other"]["w"].dtype) == (jnp.float16, jnp.float32)


def test_leaves_over_many_chunks_and_commits(tmp_path, monkeypatch, assert_same):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(arrays, "_COMMIT_BYTES", 1 << 12)
    tree = {"model": {str(i): np.random.default_rng(i).standard_normal((37, 41, 3)).astype(np.float32) for i in range(3)}}
    checkpoints.save_params(tmp_path / "c", tree, CONFIG)
    monkeypatch.undo()
    assert_same(tree, checkpoints.load_params(tmp_path / "c"))


def test_leaves_not_in_memory_order(tmp_path, assert_same):
    value = np.arange(24, dtype=np.float32).reshape(4, 6)
    checkpoints.save_params(tmp_path / "c", {"model": {"a": value.T, "b": value[::-1, ::2], "c": jnp.asarray(value)}}, CONFIG)
    assert_same({"a": value.T, "b": value[::-1, ::2], "c": value}, checkpoints.load_params(tmp_path / "c", subtree="model"))


def test_orbax_restores_it(saved, params, assert_same):
    assert_same(params, ocp.PyTreeCheckpointer().restore(saved / "params"))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
    found = ocp.StandardCheckpointer().restore(saved / "params", target)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert_same(params, found)


def test_restores_onto_a_mesh_reading_only_slices(run_program, tmp_path):
    assert run_program("params_on_a_mesh.py", tmp_path, devices=8).split() == ["ok"]


def test_memory_follows_the_largest_leaf(run_program, tmp_path):
    used = json.loads(run_program("params_memory.py", tmp_path))
    assert used["saving"] < used["bound"] and used["reading"] < used["bound"], used


def test_a_small_model_takes_few_files_and_little_more_than_its_bytes(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"model": {f"layer_{i}": {"w": rng.standard_normal((100, 128)).astype(np.float32)} for i in range(150)}}
    checkpoints.save_params(tmp_path / "c", tree, CONFIG)
    files = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    # Config, manifest, Orbax's tree, the database's manifest and its data: one file, or a few where writing is slow.
    assert 5 <= len(files) <= 10
    assert sum(path.stat().st_size for path in files) < 1.05 * 150 * 100 * 128 * 4


def test_the_config_may_be_completed_while_leaves_are_written(tmp_path):
    config = dict(CONFIG)

    def leaves():
        yield "model/w", np.zeros(3, np.float32)
        config["dropped"] = ["rotary.inv_freq"]

    checkpoints.save_params(tmp_path / "c", leaves(), config)
    assert checkpoints.load_config(tmp_path / "c")["dropped"] == ["rotary.inv_freq"]


def test_a_failure_leaves_nothing(tmp_path):
    def leaves():
        yield "model/w", np.zeros(3, np.float32)
        raise InputError("tensor q has NaN")

    with pytest.raises(InputError, match="q has NaN"):
        checkpoints.save_params(tmp_path / "c", leaves(), CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["leaves", "renaming"])
def test_a_kill_leaves_nothing_and_the_next_run_cleans_up(start_program, tmp_path, moment):
    process = start_program("killed_converting.py", tmp_path / "c", moment)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert not (tmp_path / "c").exists() and len(list(tmp_path.iterdir())) == 1
    checkpoints.save_params(tmp_path / "c", {"model": {"w": np.zeros(3, np.float32)}}, CONFIG)
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "write", full)
    with pytest.raises(InputError, match="cannot be written.*No space left"):
        checkpoints.save_params(tmp_path / "c", {"model": {"w": np.zeros(3, np.float32)}}, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_hit_by_the_arrays(start_program, tmp_path):
    process = start_program("converting_past_a_limit.py", tmp_path / "c")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "cannot be written" in out and "\n" not in out.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ([("model/w", np.zeros(3, np.float32))] * 2, "given twice"),
        ([("model/w", np.zeros(3, np.float32)), ("model/w/b", np.zeros(3, np.float32))], "both a leaf and a folder"),
        ([("model/w/b", np.zeros(3, np.float32)), ("model/w", np.zeros(3, np.float32))], "both a leaf and a folder"),
        ([("model/a.b", np.zeros(3, np.float32))], "without dots"),
        ([("model//b", np.zeros(3, np.float32))], "without dots"),
        ([("model/w", np.zeros(3))], "leaf model/w: dtype.*float64"),
        ([], "no leaves"),
    ],
)
def test_unusable_leaves(tmp_path, leaves, message):
    with pytest.raises(InputError, match=message):
        checkpoints.save_params(tmp_path / "c", leaves, CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../escape", "/absolute", "a/../../b", "params/_METADATA", "manifest.json", "config.json/x", ""]
)
def test_extra_files_stay_inside_and_off_the_checkpoints_own(tmp_path, name):
    with pytest.raises(InputError, match="extra file|relative file name"):
        checkpoints.save_params(tmp_path / "c", {"model": {"w": np.zeros(3, np.float32)}}, CONFIG, {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_taken_destination_is_refused(saved, params):
    with pytest.raises(InputError, match="already exists"):
        checkpoints.save_params(saved, params, CONFIG)


def test_an_unwritable_destination_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        checkpoints.save_params(tmp_path / "file" / "c", {"model": {"w": np.zeros(3, np.float32)}}, CONFIG)


@pytest.mark.parametrize("what", ["missing", "file", "empty", "half_written"])
def test_what_is_no_checkpoint(tmp_path, saved, what):
    folder = tmp_path / what
    if what == "file":
        folder.write_text("")
    elif what == "empty":
        folder.mkdir()
    elif what == "half_written":
        os.rename(saved, folder)
        (folder / "manifest.json").unlink()
    for call in (checkpoints.load_config, checkpoints.load_params, checkpoints.abstract_params):
        with pytest.raises(
            InputError, match=r"expected a checkpoint folder with config.json, params/ and manifest.json"
        ) as caught:
            call(folder)
        assert str(folder) in str(caught.value)


def test_an_address_of_another_kind_is_refused():
    with pytest.raises(InputError, match="expected gs://BUCKET/NAME or s3://BUCKET/NAME"):
        checkpoints.load_params("az://bucket/checkpoint")


def test_an_absent_subtree_is_named(saved):
    with pytest.raises(InputError, match="no parameters for text_tokenizer, only for image_tokenizer, model"):
        checkpoints.load_params(saved, subtree="text_tokenizer")


def test_shardings_of_another_structure_are_refused(saved):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(InputError, match="image_tokenizer/conv_in/kernel has no sharding"):
        checkpoints.load_params(saved, subtree="image_tokenizer", shardings={})
    with pytest.raises(InputError, match="image_tokenizer/other has a sharding but is not in the checkpoint"):
        checkpoints.load_params(saved, subtree="image_tokenizer", shardings={"conv_in": {"kernel": one}, "other": one})


def test_a_newer_version_is_refused(tmp_path):
    checkpoints.save_params(tmp_path / "c", {"model": {"w": np.zeros(3, np.float32)}}, {"version": 2})
    with pytest.raises(InputError, match="expected nextstep_jax version 1, found nextstep_jax version 2"):
        checkpoints.load_config(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda content: content["leaves"].update(huge={"shape": [2**40], "dtype": "float32", "digest": ""}), DamagedDataError),
        (lambda content: content["files"].update({"../outside": {"size": 1, "digest": ""}}), InputError),
        (lambda content: content["leaves"].update(odd=3), InputError),
        (lambda content: content.pop("leaves"), InputError),
    ],
)
def test_a_forged_manifest_neither_fills_the_memory_nor_leaves_the_folder(saved, change, error):
    content = params_module.manifest.read_sealed(saved / "manifest.json")
    change(content)
    (saved / "manifest.json").write_bytes(params_module.manifest.seal(content))
    with pytest.raises(error):
        checkpoints.load_params(saved)


def test_nothing_is_logged_on_the_happy_path(saved, caplog):
    with caplog.at_level(logging.INFO, "nextstep_jax"):
        checkpoints.load_params(pathlib.Path(saved))
    assert not caplog.records
