"""Every stage through the one loop, on shapes: it learns, continues exactly where it stopped, and stops when it must."""

import importlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.data.images import load
from nextstep_jax.data.sequence import KIND_IDS
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.evaluation.evaluators import EVALUATORS
from nextstep_jax.launch import export
from nextstep_jax.launch.shipped import config_names
from nextstep_jax.training import loop
from nextstep_jax.training.config import evaluation, resolve
from nextstep_jax.training.init import to_canonical
from tests.training.conftest import metric_lines, untimed

pytestmark = pytest.mark.usefixtures("shared_compilations")

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Online stages make their own data (test_online.py), and an untrained teacher has nothing to distill (test_few_step.py).
NAMES = [name for name in config_names() if not name.endswith(("_nft", "_grpo", "_distill"))]


@pytest.fixture
def laptop(shapes_data, tokenizer_folder):
    """name -> its config, shrunk, on the test's data."""

    def make(name):
        config = importlib.import_module(f"nextstep_jax.configs.{name}").get_config("laptop")
        if config.objective != "reconstruction":
            config.data.root = str(shapes_data)
            config.image_tokenizer_checkpoint = str(tokenizer_folder)
            config.data.seq_len, config.data.batch_size = 160, 2
            if not config.model.transformer.scan_layers:  # every layer is compiled
                config.model.transformer.layers = config.model.flow_head.layers = 1
        else:
            config.data.sources = ("shapes:pair:train:24",)
        config.checkpoint.every = 0  # the end is enough
        return config

    return make


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_learns(name, laptop, tmp_path):
    """30 steps on 24 samples of each kind bring the loss down by a tenth at least, and leave a checkpoint of the averaged
    parameters.
    """
    config = laptop(name)
    state = loop.train(config, tmp_path)
    lines = metric_lines(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert all(line["non_finite_steps"] == 0 for line in lines)
    root = "image_tokenizer" if config.objective == "reconstruction" else "model"
    exported = checkpoints.load_params(tmp_path / "export", subtree=root)
    expected = jax.tree.map(lambda leaf: leaf.astype(config.export_dtype), to_canonical(state.averaged_params)[root])
    assert jax.tree.structure(exported) == jax.tree.structure(expected) and same(exported, expected)
    if config.objective == "multitask":
        named = {kind for line in lines for kind in KIND_IDS if f"text_loss/{kind}" in line}
        kinds = {
            "pairs": "pair",
            "captions": "pair",
            "edits": "edit",
            "thinking": "edit",
            "tables": "text",
            "stories": "interleaved",
            "candidates": "preference",
        }
        names = [name for name, source in config.data.sources.items() if source.weight]
        assert named == {kinds.get(name, name.partition("_")[0]) for name in names}  # "pair_80x48" is a pair
        assert all(line["packing_waste"] < 0.5 and line["text_targets_dropped"] == 0 for line in lines)


def test_a_stopped_run_ends_with_the_same_bits(laptop, tmp_path, monkeypatch):
    """Taken away after step 7 and started again: parameters, moments, average and metrics are those of a run in one piece."""
    config = laptop("shapes_nextstep")
    whole = loop.train(config, tmp_path / "whole")

    monkeypatch.setattr(loop.TrainCheckpointer, "reached_preemption", lambda self, step: step == 7)
    stopped = loop.train(config, tmp_path / "pieces")
    assert stopped.step == 7
    assert not (tmp_path / "pieces" / "export").exists()
    monkeypatch.undo()
    continued = loop.train(config, tmp_path / "pieces")
    assert continued.ema is not None
    assert same(whole, continued)
    last = [metric_lines(tmp_path / part)[-1] for part in ("whole", "pieces")]
    assert untimed(last[0]) == untimed(last[1])

    # What can be exported at any time from the run's folder is what the run wrote at its end.
    arguments = ["--workdir", str(tmp_path / "pieces"), "--out", str(tmp_path / "exported"), "--dtype", config.export_dtype]
    assert export.main(arguments) == 0
    folders = (tmp_path / "pieces" / "export", tmp_path / "exported")
    at_end, later = (checkpoints.load_params(folder, subtree="model") for folder in folders)
    assert jax.tree.structure(at_end) == jax.tree.structure(later) and same(at_end, later)
    for read in (checkpoints.load_config, lambda folder: checkpoints.load_file(folder, "tokenizer.json")):
        assert read(folders[0]) == read(folders[1])
    assert export.main([*arguments, "--step", "3"]) == 2


def test_a_few_samples_are_learned_by_heart(laptop, tmp_path):
    config = laptop("nextstep_14b_stage1")
    config.steps, config.log_every = 150, 30
    config.data.sources.text.path = "shapes:text:train:4"
    config.data.sources.interleaved.weight = 0.0
    loop.train(config, tmp_path)
    lines = metric_lines(tmp_path)
    assert lines[-1]["text_loss"] < 0.5 * lines[0]["text_loss"]
    assert lines[-1]["image_loss"] < 0.75 * lines[0]["image_loss"]


def test_a_run_that_stays_non_finite_stops_and_names_the_batch(laptop, tmp_path):
    """The parameters to start from hold a NaN."""
    config = laptop("shapes_tokenizer")
    config.max_nonfinite_steps, config.log_every = 3, 3
    objective = loop.make_stage(resolve(config)).objective
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    broken = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), shapes)
    checkpoints.save_params(tmp_path / "broken", broken, {"model": None, "image_tokenizer": {}})
    config.init.checkpoint = str(tmp_path / "broken")
    with pytest.raises(
        NextStepError, match=r"3 steps in a row, 1 to 3; first batch: shapes-pair-train:shapes/train/0/pair/\d+"
    ):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()


def test_samples_validation_and_a_profile_are_written(laptop, tmp_path):
    config = laptop("shapes_tokenizer")
    config.samples.every, config.validation.every, config.validation.batches = 15, 15, 1
    config.profile.start, config.profile.stop = 3, 4
    config.data.validation = ("shapes:pair:heldout:8",)
    loop.train(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_00000015.png", "step_00000030.png"]
    assert load(tmp_path / "samples" / "step_00000030.png").size == (8 * 64, 2 * 64)
    assert [line["step"] for line in metric_lines(tmp_path) if "validation/psnr" in line] == [15, 30]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("name", "entry", "numbers"),
    [
        ("shapes_tokenizer", evaluation("reconstruction", 2, limit=4, batch=4), {"psnr", "ssim", "scene_accuracy", "images"}),
        ("shapes_nextstep", evaluation("shapes", 2, per_category=1, categories=("colors",), steps=1), {"colors", "overall"}),
    ],
)
def test_evaluations_during_training(name, entry, numbers, laptop, tmp_path):
    config = laptop(name)
    config.steps, config.evals.held_out = 4, entry
    loop.train(config, tmp_path, EVALUATORS)
    found = {line["step"]: {key for key in line if key.startswith("held_out/")} for line in metric_lines(tmp_path)}
    assert {step for step, keys in found.items() if keys} == {2, 4}
    assert {f"held_out/{number}" for number in numbers} <= found[2]


def test_the_model_in_training_draws_its_prompts(laptop):
    config = laptop("shapes_nextstep")
    config.samples.prompts = ("a red circle", "a blue star")
    config.samples.generation.update({"steps": 2, "image_size": 32})
    stage = loop.make_stage(resolve(config))
    pixels = stage.draw_samples(jax.jit(stage.objective.init)(jax.random.key(0)))
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8


def test_a_model_on_two_devices_draws_while_it_trains(shapes_data, tokenizer_folder, tmp_path):
    values = {
        "steps": 2,
        "optimizer.warmup_steps": 0,
        "mesh.data": 2,
        "mesh.fsdp": 1,
        "data.root": shapes_data,
        "checkpoint.every": 0,
    }
    values |= {"image_tokenizer_checkpoint": tokenizer_folder, "model.transformer.layers": 1, "model.flow_head.layers": 1}
    values |= {"samples.every": 2, "samples.prompts": ("a red circle",), "samples.generation.steps": 2}
    config = f"{CONFIGS}/shapes_nextstep.py:laptop"
    command = [sys.executable, "-m", "launch.train", "--config", config, "--workdir", str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command += [f"--config.{name}={value}" for name, value in values.items()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "samples" / "step_00000002.png").size == (64, 64)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "config.steps"),
        ({"ema_decay": 1.0}, "config.ema_decay"),
        ({"checkpoint.keep_last": 0}, "config.checkpoint.keep_last must"),
        ({"max_target_fraction.image": 1.5}, "config.max_target_fraction.image must"),
        ({"data.data_shards": 3}, r"batch_size \(2\) is not a multiple of data_shards \(3\)"),
        (
            {"data.batch_size": 3, "grad_accum_steps": 2},
            "not a multiple of 1 devices with rows x grad_accum_steps 2",
        ),
        ({"data.sources.pairs.path": ""}, "config.data.sources.pairs.path is missing"),
        ({"data.vocabulary": ""}, "config.data.vocabulary"),
        ({"model.end_of_image_id": 3}, "end_of_image"),
        ({"mesh.fsdp": 7}, "does not fit"),
        ({"init.checkpoint": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_config_that_makes_no_run_is_an_error_before_anything_is_compiled(laptop, tmp_path, change, message):
    config = laptop("nextstep_14b_stage1")
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        loop.train(config, tmp_path)
