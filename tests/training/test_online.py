"""Online training end to end on a tiny model: on-policy identities, controls, static shapes, and exact continuation."""

import base64
import functools
import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nextstep_jax.data.sequence import image_prefix
from nextstep_jax.errors import InputError
from nextstep_jax.generation.rollouts import PromptRows, Rollouts
from nextstep_jax.rewards import loading
from nextstep_jax.rewards.endpoint import EndpointReward
from nextstep_jax.training import loop, online
from nextstep_jax.training.candidates import CandidatePrompt
from nextstep_jax.training.config import base_config, model_fields, prompts, resolve, reward
from nextstep_jax.training.image_scores import Scores
from nextstep_jax.training.loop import train
from nextstep_jax.training.prompts import frame_prompts
from nextstep_jax.training.run_logs import read_metrics
from tests.training.conftest import metric_lines, untimed

WORDS = ("a red circle", "a blue square", "red", "a circle of blue", "left", "a red square", "blue of red", "a circle")


def brightness(requests):
    return [{"reward": float(request.image.mean()) / 255} for request in requests]


def of_words(requests):
    return [{"reward": float(len(request.prompt))} for request in requests]


def picky(requests):
    """Unanimous about "red", without an answer for one of "left", else brightness."""
    scores = brightness(requests)
    for i, request in enumerate(requests):
        if request.prompt == "red":
            scores[i] = {"reward": 1.0}
        if request.prompt == "left" and i % 2:
            scores[i] = None
    return scores


@pytest.fixture
def config(tiny_config, tiny_checkpoint, tiny_vocabulary, tmp_path):
    """objective -> a short run on eight prompts."""
    (tmp_path / "tokenizer.json").write_bytes(tiny_vocabulary.to_bytes())
    (tmp_path / "prompts.txt").write_text("\n".join(WORDS))

    def make(objective, function="brightness"):
        config = base_config(objective)
        config.model = model_fields(tiny_config.with_transformer(layers=1))
        config.model.flow_head.layers = 1
        config.image_tokenizer_checkpoint = str(tiny_checkpoint)
        config.data.vocabulary = str(tmp_path / "tokenizer.json")
        config.data.batch_size = 4
        config.data.sources.all = prompts(str(tmp_path / "prompts.txt"))
        config.rewards.one = reward(f"python:tests.training.test_online:{function}")
        config.rollouts.update({"images": 4, "image_size": 32, "steps": 4})
        config.loss.update({"kl_weight": 0.01, "max_mean": 2.0})
        config.optimizer.update({"learning_rate": 1e-3, "weight_decay": 0.0})
        config.update({"steps": 4, "log_every": 1})
        config.checkpoint.every = 2
        return config

    return make


def logged(workdir):
    return {name: values for name, (_, values) in read_metrics(workdir).items()}


def distance(one, other):
    return max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_grpo_begins_on_policy_and_reports_what_it_saw(config, tmp_path):
    train(config("grpo"), tmp_path / "run")
    values = logged(tmp_path / "run")
    np.testing.assert_allclose(values["online/ratio"], 1, atol=1e-6)
    assert values["online/kl"][0] == values["online/drift"][0] == 0 and values["online/kl"][-1] > 0
    assert np.all(np.abs(values["online/policy_loss"]) < 1e-4)  # advantages of a group sum to 0
    assert np.all(values["groups/kept"] == 1) and np.all(values["reward_std/one"] > 0)
    np.testing.assert_array_equal(values["reward/one"], values["reward/total"])
    assert np.all(values["gradient_norm"] > 0)
    distances = 0.01 * values["online/drift"]
    np.testing.assert_allclose(values["loss"], values["online/policy_loss"] + distances, atol=0.01 * distances.max())


@pytest.mark.parametrize("objective", ["nft", "grpo"])
def test_what_teaches_nothing_is_counted_and_needs_no_new_program(config, tmp_path, objective, monkeypatch):
    """All eight prompts in each step, of which one is unanimous and one not scored; how many are kept changes nothing."""
    run = config(objective, "picky")
    run.data.batch_size = 4
    run.loss.update({"kl_weight": 0.0, "min_spread": 0.0})
    run.steps = 6
    sizes = []
    compiled = jax.jit

    def counting(function, **options):
        made = compiled(function, **options)
        sizes.append(made)
        return made

    monkeypatch.setattr(online.jax, "jit", counting)
    train(run, tmp_path / "run")
    monkeypatch.undo()
    values = logged(tmp_path / "run")
    kept, missing = values["groups/kept"], values["groups/not_scored"]
    assert set(kept) <= {0.5, 0.75, 1.0} and len(set(kept)) > 1 and set(missing) == {0.0, 0.25}
    assert sizes and all(made._cache_size() <= 1 for made in sizes)
    assert np.all(np.isfinite(values["loss"])) and np.all(values["reward/one"] <= 1)


def test_the_first_groups_that_teach_something_are_trained_on(config, tmp_path):
    run = config("nft", "picky")
    run.data.batch_size, run.data.train_prompts, run.steps, run.loss.min_spread = 8, 4, 2, 0.0
    train(run, tmp_path / "run")
    values = logged(tmp_path / "run")
    np.testing.assert_allclose(values["groups/kept"], 6 / 8)
    np.testing.assert_allclose(values["groups/not_scored"], 1 / 8)


@pytest.mark.parametrize("objective", ["nft", "grpo"])
def test_a_run_that_was_stopped_continues_bit_for_bit(config, tmp_path, objective):
    run = config(objective)
    run.ema_decay = 0.5
    whole = train(run, tmp_path / "whole")
    run.steps = 2
    train(run, tmp_path / "parts")
    run.steps = 4
    parts = train(run, tmp_path / "parts")
    assert distance(whole.params, parts.params) == distance(whole.ema, parts.ema) == 0
    first, second = ([untimed(line) for line in metric_lines(tmp_path / part)] for part in ("whole", "parts"))
    assert first == second


def test_parts_of_a_batch_add_up(config, tmp_path):
    run = config("grpo")
    run.steps = 1
    whole = train(run, tmp_path / "whole")
    run.grad_accum_steps = 2
    parts = train(run, tmp_path / "parts")
    assert distance(whole.params, parts.params) < 1e-5


def test_a_frozen_flow_head_stays_as_it_is(config, tmp_path, tiny_config, tiny_checkpoint, tiny_params):
    run = config("grpo")
    run.model, run.init.checkpoint = model_fields(tiny_config), str(tiny_checkpoint)  # a new head would pass no gradient on
    run.optimizer.frozen, run.steps = (r"^model/flow_head/",), 2
    after = train(run, tmp_path / "run").params["model"]
    assert distance(tiny_params["flow_head"], after["flow_head"]) == 0
    assert distance(tiny_params["decoder"], after["decoder"]) > 0


def test_the_old_policy_of_nft_is_the_average(config, tmp_path):
    run = config("nft")
    run.ema_decay, run.ema_ramp = 0.9, 0.3
    train(run, tmp_path / "run")
    values = logged(tmp_path / "run")
    np.testing.assert_allclose(values["online/moved"][:2], 0, atol=1e-12)  # the decay after no update is 0
    assert values["online/moved"][2] > 0


def test_a_reward_that_does_not_look_at_images_changes_nothing(config, tmp_path):
    run = config("nft", "of_words")
    run.steps = 2
    before = jax.jit(loop.make_stage(resolve(run)).objective.init)(jax.random.key(run.seed))
    after = train(run, tmp_path / "run")
    assert distance(before, after.params) == 0
    assert np.all(logged(tmp_path / "run")["groups/kept"] == 0)


def test_validation_is_the_reward_of_held_out_prompts(config, tmp_path):
    (tmp_path / "held.txt").write_text("\n".join(WORDS[:4]))
    run = config("nft")
    run.data.validation.held = prompts(str(tmp_path / "held.txt"))
    run.validation.update({"every": 1, "batches": 2})
    run.optimizer.learning_rate, run.steps = 1e-12, 2  # the same model twice
    train(run, tmp_path / "run")
    values = logged(tmp_path / "run")["validation/reward/total"]
    assert len(values) == 2 and values[0] == pytest.approx(values[1], abs=1e-6)


def test_a_server_that_fails_in_every_way_costs_its_groups_and_never_the_run(config, tmp_path, server, monkeypatch):
    """In turn: scores, busy once, garbage, too slow, busy for good, scores that are no numbers, an answer cut off."""
    monkeypatch.setattr(loading, "EndpointReward", functools.partial(EndpointReward, timeout=0.3, pause=0.001))
    seen = []

    def answer(path, body, count):
        values = [{"reward": np.asarray(decoded(r["image"])).mean() / 255} for r in body["requests"]]
        prompts = tuple(r["prompt"] for r in body["requests"])
        if prompts not in seen:
            seen.append(prompts)
        scores, step = (200, json.dumps({"scores": values}).encode()), seen.index(prompts)
        if step == 1:
            return (500, b"") if count == 2 else scores
        if step == 3:
            time.sleep(0.6)
        failures = {2: (200, b"<html>"), 4: (503, b""), 5: (200, b'{"scores": [%s]}' % b", ".join([b"NaN"] * 16)), 6: None}
        return failures.get(step, scores)

    server.answer = answer
    run = config("nft")
    run.rewards.one.reward, run.steps = f"{server.url}/score", 8
    train(run, tmp_path / "run")
    values = logged(tmp_path / "run")
    assert values["groups/not_scored"].tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert values["groups/kept"].tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    assert np.all(np.isfinite(values["loss"])) and np.all(values["gradient_norm"][2:7] == 0)
    assert len(values["reward/one"]) == 3  # of steps without a score there is none to report


def decoded(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data.batch_size": 9}, "a step takes 9 different prompts, found 8"),
        ({"data.sources.all.path": ""}, "config.data.sources.all.path is missing"),
        ({"data.sources.all.path": "/nowhere.txt"}, "/nowhere.txt: cannot be read"),
        ({"data.sources.all.path": "shapes:words:9:80x48"}, "config.data.sources.all.path: the images of a run have one"),
        ({"rewards.one.reward": "python:nowhere:f"}, "config.rewards.one: reward python:nowhere:f"),
        ({"rewards.one.reward": ""}, "config.rewards.one.reward is missing"),
        ({"rollouts.window": 4}, "config.rollouts.window of 4 steps holds step 3 of 'cps'|config.rollouts.window"),
        ({"rollouts.trained_steps": 0}, "config.rollouts.trained_steps must be at least 1 for GRPO"),
        ({"rollouts.image_size": 40}, "multiple of 16 pixels"),
        ({"image_tokenizer_checkpoint": ""}, "rewards see images"),
        ({"data.train_prompts": 5}, "train_prompts must be at most batch_size"),
        ({"loss.weight": "late"}, "config.loss.weight must be one of"),
    ],
)
def test_settings_that_make_no_run_are_refused(config, tmp_path, change, message):
    run = config("grpo")
    run.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        train(run, tmp_path / "run")


def test_groups_without_a_score_weigh_nothing():
    scores = Scores(
        jnp.asarray([[1.0, 0.0], [0.0, 0.0]]), jnp.asarray([True, False]), {"one": jnp.asarray([[0.5, 0.3], [0.0, 0.0]])}
    )
    found = online.rollout_statistics(scores, jnp.asarray([True, False]))
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "reward/total": 0.5,
        "reward_std/total": 0.5,
        "reward/one": 0.4,
        "reward_std/one": 0.1,
        "groups/kept": 0.5,
        "groups/not_scored": 0.5,
    }


def test_thoughts_of_a_prompt_stand_between_its_words_and_the_image(tiny_config, tiny_vocabulary):
    special = tiny_vocabulary.special
    asked = [CandidatePrompt("a circle", {"thinking": "red circle"})]
    rows = frame_prompts(asked, "left", 2, 2, tiny_config, tiny_vocabulary)
    ids = rows.text_ids[0, : rows.lengths[0]].tolist()
    begin, end = ids.index(special.begin_of_thinking), ids.index(special.end_of_thinking)
    assert tiny_vocabulary.decode(ids[begin + 1 : end]) == "red circle"
    assert tiny_vocabulary.decode(ids[:begin]) == "a circle left"
    assert ids[end + 1 :] == image_prefix(special, 2, 2)
    with pytest.raises(InputError, match="do not fit the window of"):
        frame_prompts(asked, "left", 64, 64, tiny_config, tiny_vocabulary)


def test_each_image_keeps_its_groups_advantage_weight_and_prompt(config):
    """Three groups of two, the middle one unanimous; and with room for two groups, the first and the last are learned from."""
    run = config("nft")
    run.loss.kl_weight, run.rollouts.images = 0.0, 2
    tokens = np.arange(6 * 4, dtype=np.float32).reshape(6, 4, 1) * np.ones(64, np.float32)
    numbers = np.repeat(np.arange(3, dtype=np.int32), 2)
    rows = PromptRows(10 + numbers[:, None] + np.zeros((6, 8), np.int32), np.full(6, 3, np.int32), numbers)
    empty = np.zeros((6, 4, 0, 64), np.float32)
    drawn = online.Drawn(rows, Rollouts(tokens, empty, empty), np.zeros(0, np.int32), tokens)
    totals = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.25]], np.float32)
    scores = Scores(totals, np.ones(3, bool), {"one": totals})

    def complete(groups):
        run.data.train_prompts = groups
        resolved = resolve(run)
        make = online.make_complete(resolved, online.generation_settings(resolved))
        return make(None, None, drawn, scores, jnp.int32(0), jax.random.key(0))

    every, first = complete(0), complete(2)
    np.testing.assert_array_equal(every.weight, [1, 1, 0, 0, 1, 1])
    np.testing.assert_allclose(every.advantage, [1, -1, 0, 0, -1, 1], atol=1e-3)
    np.testing.assert_array_equal(first.weight, [1, 1, 1, 1])
    np.testing.assert_allclose(first.advantage, [1, -1, -1, 1], atol=1e-3)
    kept = [0, 1, 4, 5]
    np.testing.assert_array_equal(first.tokens, tokens[kept])
    np.testing.assert_array_equal(first.rows.text_ids[:, 0], 10 + numbers[kept])
    np.testing.assert_allclose(
        first.points, first.t[..., None] * first.tokens[:, :, None] + (1 - first.t)[..., None] * first.noise
    )


def test_grpo_draws_with_the_parameters_and_not_with_their_average(config, tmp_path):
    run = config("grpo")
    run.steps = 3
    plain = train(run, tmp_path / "plain")
    run.ema_decay = 0.9
    assert distance(plain.params, train(run, tmp_path / "averaged").params) == 0
