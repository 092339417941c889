"""Few-step distillation end to end: the second head learns the first one's guided flow, and draws."""

import dataclasses

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.batch import Batch
from nextstep_jax.data.sequence import ImageTokens
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.load import require_usable
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import frame_prompt, row_batch
from nextstep_jax.models.nextstep import NextStep, init_params
from nextstep_jax.objectives import few_step as objectives
from nextstep_jax.training.config import base_config, model_fields, source
from nextstep_jax.training.few_step import few_step_losses, without_text
from nextstep_jax.training.loop import train
from nextstep_jax.training.post_training_settings import FewStepLossConfig
from nextstep_jax.training.run_logs import read_metrics


def test_without_text_is_what_the_unconditional_branch_sees(tiny_config, tiny_params):
    special = SpecialIds.from_config(tiny_config, range(20, 30), 10)
    tokens = np.random.default_rng(0).normal(size=(4, tiny_config.token_channels)).astype(np.float32)
    image = ImageTokens(tokens, 2, 2)
    rows = [frame_prompt([ids, image], special, tiny_config) for ids in ([5, 6, 7], [8], [])]
    alone = row_batch(rows[2])
    singles = [row_batch(row) for row in rows[:2]]
    packed = Batch(*(np.concatenate([getattr(b, f.name) for b in singles], axis=1) for f in dataclasses.fields(Batch)))
    packed = dataclasses.replace(packed, segment_ids=np.repeat([[1, 2]], [len(row) for row in rows[:2]], axis=1))
    model, variables = NextStep(tiny_config), {"params": tiny_params}
    expected = model.apply(variables, alone)[0]
    found = model.apply(variables, jax.jit(without_text, static_argnums=1)(packed, tiny_config.image_area_id))[0]
    n, (first, second) = len(rows[2]), (len(row) for row in rows[:2])
    np.testing.assert_allclose(found[first - n : first], expected, atol=2e-5)
    np.testing.assert_allclose(found[first + second - n :], expected, atol=2e-5)


@pytest.mark.parametrize("method", ["regression", "lagrangian"])
def test_the_draws_of_a_token_share_its_times_and_guidance(tiny_config, tiny_params, method):
    """The error of every draw, point by point from the conditions, noise, times and guidance that the stage draws."""
    config = dataclasses.replace(tiny_config, map_head=True)
    model, draws, key = NextStep(config), 3, jax.random.key(5)
    head = init_params(config, jax.random.key(1))["map_head"]
    head = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(2), leaf.shape), head)
    params = tiny_params | {"map_head": head}
    special = SpecialIds.from_config(config, range(20, 30), 10)
    tokens = np.random.default_rng(0).normal(size=(4, config.token_channels)).astype(np.float32)
    row = row_batch(frame_prompt([[5, 6, 7], ImageTokens(tokens, 2, 2)], special, config))
    batch = dataclasses.replace(row, image_weight=row.is_image.astype(np.float32))
    settings = FewStepLossConfig(method, draws)
    losses = jax.jit(few_step_losses, static_argnums=(0, 4, 5))
    _, error, mask = losses(model, params, batch, key, 4, settings)
    assert error.shape == (1, 4, draws) and mask.all()

    apply = jax.jit(model.apply, static_argnames="method")

    def call(method, *arguments):
        return apply({"params": params}, *arguments, method=method)

    first = int(np.flatnonzero(np.asarray(row.is_image)[0])[0])
    seen = (batch, without_text(batch, config.image_area_id))
    conditions = [np.repeat(call("project_out", call("__call__", b)[0, first - 1 : first + 3]), draws, axis=0) for b in seen]
    of_times, of_noise, of_strength = jax.random.split(key, 3)
    noise = jax.random.normal(of_noise, (4 * draws, config.token_channels))
    w = np.repeat(np.exp(jax.random.uniform(of_strength, (4,)) * np.log(settings.max_guidance)), draws)

    def velocity(x, t):
        conditional, other = (call("velocity", x, t, condition) for condition in conditions)
        return objectives.Velocities(other + w[:, None] * (conditional - other), conditional)

    def acceleration(x, velocities, s, t):
        jumps = len(x) // len(w)
        each = [np.tile(values, (jumps, 1)) for values in conditions]
        return call("acceleration", x, *velocities, s, t, *each, np.tile(w, jumps))

    if method == "regression":
        jumps = objectives.draw_jumps(of_times)
        expected = objectives.regression_loss(acceleration, objectives.follow(velocity, noise), *jumps)[1].mean(0)
    else:
        s, t = (np.repeat(times, draws) for times in objectives.draw_times(of_times, 4))
        x = s[:, None] * np.repeat(tokens, draws, axis=0) + (1 - s)[:, None] * noise
        expected = objectives.lagrangian_loss(acceleration, velocity, x, s, t)[1]
    np.testing.assert_allclose(error.reshape(-1), expected, rtol=2e-3, atol=1e-5)


@pytest.fixture
def config(shapes_data, tiny_config, tiny_checkpoint):
    config = base_config("few_step")
    config.model = model_fields(dataclasses.replace(tiny_config, map_head=True))
    config.init.checkpoint = config.image_tokenizer_checkpoint = str(tiny_checkpoint)
    config.init.reinit = (r"^model/map_head/",)
    config.data.root = str(shapes_data)
    config.data.sources.pairs = source("pair", image_first=0.0)
    config.data.update({"seq_len": 160, "batch_size": 1})
    config.loss.update({"draws": 4, "max_guidance": 4.0})
    config.optimizer.update({"learning_rate": 1e-2, "weight_decay": 0.0})
    config.update({"steps": 30, "log_every": 1})
    return config


def test_the_second_head_learns_and_everything_else_stays(config, tmp_path, tiny_checkpoint):
    train(config, tmp_path / "run")
    metrics = {name: values for name, (_, values) in read_metrics(tmp_path / "run").items()}
    for name in ("loss", "few_step/error"):
        assert metrics[name][-5:].mean() < 0.7 * metrics[name][:3].mean(), name
    export = tmp_path / "run" / "export"
    found, before = checkpoints.load_params(export)["model"], checkpoints.load_params(tiny_checkpoint)["model"]
    assert found.keys() - before.keys() == {"map_head"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        np.testing.assert_array_equal(leaf, _at(found, path))

    pipeline = Pipeline.from_checkpoint(export)
    images = [
        pipeline.generate("a red circle", height=32, width=32, settings=pipeline.settings(sampler="map", steps=steps, cfg=cfg))
        for steps, cfg in ((1, 2.0), (4, 2.0), (2, 1.0))
    ]
    assert all(np.isfinite(image[0].tokens).all() for image in images)
    assert np.abs(images[0][0].tokens - images[1][0].tokens).max() > 1e-4
    with pytest.raises(InputError, match="needs a checkpoint with a map head"):
        require_usable(tiny_checkpoint, False, {"sampler": "map", "steps": 1})
    with pytest.raises(InputError, match="needs a checkpoint with a map head"):
        Pipeline.from_checkpoint(tiny_checkpoint).generate("a red circle", settings=GenerationConfig(sampler="map", steps=1))
    require_usable(export, False, {"sampler": "map", "steps": 1})


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


@pytest.mark.parametrize("values, message", [({"image_cfg": 2.0}, "image_cfg above 1"), ({"rescale": True}, "rescale")])
def test_what_the_map_was_not_distilled_with_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        GenerationConfig(sampler="map", steps=1, **values)


def test_settings_that_would_train_the_rest_are_refused(config, tmp_path):
    config.optimizer.frozen = ()
    with pytest.raises(InputError, match="optimizer.frozen must hold all but model/map_head"):
        train(config, tmp_path / "run")
