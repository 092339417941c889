"""Preference training end to end: candidates of a tiny model, the stage's first loss, learning, and exact continuation."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nextstep_jax.batch import PairedBatch
from nextstep_jax.data import records, shards
from nextstep_jax.data.augment import split_preference
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.vocabulary import SPECIAL_TOKENS
from nextstep_jax.errors import InputError
from nextstep_jax.generation import loaded_model
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.models.nextstep import NextStep, empty_batch
from nextstep_jax.objectives.preference import pair_errors
from nextstep_jax.rewards.combine import RewardTerm
from nextstep_jax.rewards.loading import FunctionReward
from nextstep_jax.seeds import prompt_seed
from nextstep_jax.training import preference
from nextstep_jax.training.candidates import CandidatePrompt, make_candidates, read_prompts
from nextstep_jax.training.config import base_config, model_fields, source
from nextstep_jax.training.loop import train
from nextstep_jax.training.run_logs import read_metrics

pytestmark = pytest.mark.usefixtures("shared_compilations")

PROMPTS = [CandidatePrompt(text) for text in ("a red circle", "a blue square", "red", "a circle of blue", "left")]


def brightness(requests):
    """Nothing of "red" is scored, "left" is always the same."""
    values = [float(request.image.mean()) for request in requests]
    return [
        None if request.prompt == "red" else {"reward": 0.0 if request.prompt == "left" else value}
        for request, value in zip(requests, values, strict=True)
    ]


TERMS = [RewardTerm(FunctionReward("brightness", brightness))]


@pytest.fixture(scope="module")
def candidates(tmp_path_factory, tiny_pipeline):
    root = tmp_path_factory.mktemp("candidates")
    settings = tiny_pipeline.settings(image_size=32, prompt_suffix="")
    report = make_candidates(
        tiny_pipeline, PROMPTS, TERMS, root / "candidates", per_prompt=4, settings=settings, shard_prompts=2
    )
    return root, report, settings


def test_candidates_are_scored_and_what_teaches_nothing_is_counted(candidates, tiny_pipeline):
    root, report, settings = candidates
    assert report == {
        "prompts": 5,
        "samples": 3,
        "images": 12,
        "skipped": {"not scored": 1, "all scores equal": 1},
    }
    dataset = ArrayRecordSource(root / "candidates")
    assert [dataset[i].texts[0].text for i in range(3)] == ["a red circle", "a blue square", "a circle of blue"]
    sample = dataset[1]
    images = tiny_pipeline.generate("a blue square", n=4, seed=1, settings=settings)  # the second prompt's own seed
    for part, image, score in zip(sample.images, images, sample.metadata["scores"], strict=True):
        tokens = part.latents().astype(np.float32)
        assert part.latents().shape == (4, 4, 16) and score == pytest.approx(float(image.pixels.mean()))
        np.testing.assert_allclose(np.sort(tokens.ravel()), np.sort(image.tokens.ravel()), atol=5e-3)


def test_interrupted_candidates_go_on_where_they_stopped(candidates, tiny_pipeline, tmp_path):
    root, report, settings = candidates
    calls = []

    def failing(requests):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return brightness(requests)

    terms = [RewardTerm(FunctionReward("brightness", failing))]
    arguments = {"per_prompt": 4, "settings": settings, "shard_prompts": 2}
    with pytest.raises(KeyboardInterrupt):
        make_candidates(tiny_pipeline, PROMPTS, terms, tmp_path / "c", **arguments)
    assert make_candidates(tiny_pipeline, PROMPTS, terms, tmp_path / "c", **arguments) == report
    assert calls == [8, 8, 8, 4]  # the first shard's images were scored once
    shards = [path for path in (tmp_path / "c").iterdir() if path.is_file() and path.name != "index.json"]
    same = [(root / "candidates" / p.name).read_bytes() == p.read_bytes() for p in shards]
    assert same and all(same)
    with pytest.raises(InputError, match="made otherwise"):
        make_candidates(tiny_pipeline, PROMPTS, terms, tmp_path / "c", **(arguments | {"seed": 1}))


def test_prompts_of_which_all_images_are_alike_make_no_dataset(tiny_pipeline, tmp_path, candidates):
    with pytest.raises(InputError, match=r"no prompt is left to learn from \(1 all scores equal\)"):
        make_candidates(tiny_pipeline, PROMPTS[-1:], TERMS, tmp_path / "c", per_prompt=2, settings=candidates[2])


def test_each_image_may_come_after_thoughts_of_its_own(tiny_pipeline, tmp_path, monkeypatch):
    """What is stored is what the model read, and the thoughts alone are targets."""
    monkeypatch.setattr(loaded_model, "MAX_THINKING_TOKENS", 8)
    settings = tiny_pipeline.settings(image_size=32, prompt_suffix="", thinking=True, thinking_temperature=2.0)
    make_candidates(tiny_pipeline, PROMPTS[:1], TERMS, tmp_path / "c", per_prompt=3, settings=settings)
    sample = ArrayRecordSource(tmp_path / "c")[0]
    begin, end = (SPECIAL_TOKENS[f"{name}_of_thinking"] for name in ("begin", "end"))
    shared, own = split_preference(sample)
    assert shared == [TextPart("a red circle", loss=False), TextPart(begin, loss=False)] and len(own) == 3
    thoughts = [text.text.removesuffix(end) for text, _ in own]
    assert len(set(thoughts)) == 3 and all(text.text.endswith(end) and text.loss and image.loss for text, image in own)
    seeds = [prompt_seed(0, str(number)) for number in range(3)]
    drawn = tiny_pipeline.generate(["a red circle"] * 3, seed=seeds, settings=settings)
    assert [image.record["thinking"] for image in drawn] == thoughts
    assert [float(image.pixels.mean()) for image in drawn] == pytest.approx(sample.metadata["scores"])


def test_candidates_of_an_instruction_are_edits_of_its_images(tiny_pipeline, tmp_path):
    """A file of instructions names the images; the reward sees them, and they are stored as the model read them."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "before.png")
    lines = [{"prompt": "a red circle", "images": ["before.png"], "text": "a"}, {"prompt": "left", "images": ["before.png"]}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prompts, seen = read_prompts(tmp_path / "edits.jsonl"), []

    def distance(requests):
        seen.extend(requests)
        return [{"reward": float(np.abs(r.image - np.float32(r.sources[0])).mean())} for r in requests]

    settings = tiny_pipeline.settings(True, image_size=32, prompt_suffix="better", sources_last=True)
    terms = [RewardTerm(FunctionReward("distance", distance))]
    report = make_candidates(tiny_pipeline, prompts, terms, tmp_path / "c", per_prompt=2, settings=settings)
    assert report["samples"] == 2 and all(np.array_equal(r.sources[0], pixels) and len(r.sources) == 1 for r in seen)
    (text, source, suffix), own = split_preference(ArrayRecordSource(tmp_path / "c")[0])
    assert (text, suffix) == (TextPart("a red circle", loss=False), TextPart(" better", loss=False))
    (tokens,) = tiny_pipeline.encode_images([pixels], 0)
    assert not source.loss and np.allclose(np.sort(source.latents().ravel()), np.sort(tokens.tokens.ravel()), atol=5e-3)
    drawn = tiny_pipeline.edit(pixels, "a red circle", n=2, settings=settings)
    for (part,), image in zip(own, drawn, strict=True):
        np.testing.assert_allclose(np.sort(part.latents().ravel()), np.sort(image.tokens.ravel()), atol=5e-3)
    with pytest.raises(InputError, match="prompts with images or prompts without, found 2 of 3 with images"):
        make_candidates(tiny_pipeline, [*prompts, PROMPTS[0]], terms, tmp_path / "d", per_prompt=2)


@pytest.fixture
def config(candidates, tiny_config, tiny_checkpoint):
    config = base_config("preference")
    config.model = model_fields(tiny_config)
    config.init.checkpoint = config.image_tokenizer_checkpoint = str(tiny_checkpoint)
    config.data.root = str(candidates[0])
    config.data.sources.candidates = source("candidates")
    config.data.update({"seq_len": 32, "batch_size": 2})
    config.loss.update({"beta": 50.0, "draws": 4})
    config.optimizer.update({"learning_rate": 3e-3, "weight_decay": 0.0, "schedule": "constant"})
    config.update({"steps": 4, "log_every": 1})
    config.checkpoint.every = 2
    return config


def test_training_begins_at_log_two_and_learns_to_prefer(config, tmp_path):
    config.steps = 25
    train(config, tmp_path / "run")
    metrics = {name: values for name, (_, values) in read_metrics(tmp_path / "run").items()}
    assert metrics["loss"][0] == pytest.approx(math.log(2), rel=1e-6)
    assert metrics["preference/margin"][0] == metrics["preference/winner_drift"][0] == 0
    assert len(metrics["preference/unconditional_error"]) == 25 and metrics["preference/unconditional_error"].min() > 0
    assert metrics["preference/correct"][-5:].mean() > 0.9 and metrics["loss"][-5:].mean() < 0.4
    images = Pipeline.from_checkpoint(tmp_path / "run" / "export").generate("a red circle", height=32, width=32)
    assert images[0].pixels.shape == (32, 32, 3)


def test_the_unconditional_error_is_that_of_images_without_their_text(tiny_config, tiny_params):
    """Of a row that begins with the size of its image; neither other words nor another loser change it."""
    rng, n, channels = np.random.default_rng(0), 4, tiny_config.token_channels
    text = np.array([[5, 6, 7, tiny_config.image_area_id, 9, tiny_config.begin_of_image_id]], np.int32)
    noise, t = rng.normal(size=(1, n, 2, channels)).astype(np.float32), rng.uniform(size=(1, n, 2)).astype(np.float32)
    winner, loser = rng.normal(size=(2, n, channels)).astype(np.float32)

    def side(text, image):
        length = text.shape[1]
        is_image = (np.arange(16)[None] >= length) & (np.arange(16)[None] < length + n)
        inside = np.arange(16)[None] < length + n
        tokens = np.zeros((1, 16, channels), np.float32)
        tokens[:, length : length + n] = image
        found = dataclasses.replace(
            empty_batch(tiny_config, 1, 16),
            text_ids=np.pad(text, ((0, 0), (0, 16 - length))),
            image_tokens=tokens,
            is_image=is_image,
            positions=np.where(inside, np.arange(16), 0).astype(np.int32),
            segment_ids=inside.astype(np.int32),
            image_weight=is_image.astype(np.float32),
        )
        return jax.tree.map(jnp.asarray, found)

    def unconditional(text, winner, loser):
        batch = PairedBatch(side(text, winner), side(text, loser))
        return np.asarray(preference.unconditional_errors(tiny_config, tiny_params, batch, noise, t, n))

    found = unconditional(text, winner, loser)
    alone = PairedBatch(side(text[:, 3:], winner), side(text[:, 3:], loser))
    limits = {"max_text_targets": 0, "max_image_targets": n}
    errors = pair_errors(NextStep(tiny_config), tiny_params, alone, noise, t, **limits)
    np.testing.assert_allclose(found, [[n * errors.winner[0, 0], n]], rtol=1e-5)
    other_text = text.copy()
    other_text[0, :3] += 3
    np.testing.assert_allclose(unconditional(other_text, winner, loser), found, rtol=1e-6)
    np.testing.assert_array_equal(unconditional(text, winner, loser + 1), found)
    assert abs(unconditional(text, winner + 1, loser) - found)[0, 0] > 0.01


def write_plans(root: pathlib.Path) -> None:
    """A dataset of two images a prompt, each after a plan of its own, one word or three."""
    rng = np.random.default_rng(3)

    def sample(i: int) -> Sample:
        images = [ImagePart.from_latents(rng.normal(size=(4, 4, 16)).astype(np.float16), 32, 32) for _ in range(2)]
        parts = TextPart("a circle", loss=False), TextPart("red"), images[0], TextPart("blue square left"), images[1]
        return Sample(parts, "preference", f"plan {i}", metadata={"scores": [1.0, 0.0]})

    samples = [sample(i) for i in range(4)]
    root.mkdir(parents=True)
    shard = shards.write_shard(root / shards.shard_name(0), map(records.pack, samples))
    shards.write_index(root, "plans", [shard], images=8, kinds={"preference": 4}, latents={"area": 32})


def test_plans_of_their_own_are_learned_from(config, tmp_path):
    """With the images out of the sigmoid, the margin is the texts' alone; without beta_text they are not read at all."""
    write_plans(tmp_path / "data" / "candidates")
    config.data.root = str(tmp_path / "data")
    config.steps = 25
    config.loss.update({"beta": 0.0, "beta_text": 1.0})
    train(config, tmp_path / "texts")
    metrics = {name: values for name, (_, values) in read_metrics(tmp_path / "texts").items()}
    assert metrics["loss"][0] == pytest.approx(math.log(2), rel=1e-6)
    np.testing.assert_array_equal(metrics["preference/margin"], metrics["preference/text_margin"])
    assert metrics["preference/text_margin"][-1] > 1
    drifts = metrics["preference/loser_text_drift"] - metrics["preference/winner_text_drift"]
    np.testing.assert_allclose(drifts, metrics["preference/text_margin"], atol=1e-5)
    config.steps = 2
    config.loss.update({"beta": 50.0, "beta_text": 0.0})
    train(config, tmp_path / "images")
    _, margins = read_metrics(tmp_path / "images")["preference/text_margin"]
    np.testing.assert_array_equal(margins, 0)


def test_nothing_preferred_is_refused(config, tmp_path):
    config.loss.beta = 0.0
    with pytest.raises(InputError, match="beta or beta_text must be above 0, found 0 for both"):
        train(config, tmp_path / "run")


def test_a_run_that_was_stopped_continues_bit_for_bit(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    config.steps = 2
    train(config, tmp_path / "parts")
    config.steps = 4
    parts = train(config, tmp_path / "parts")
    config.reference = "ahead"
    ahead = train(config, tmp_path / "ahead")
    for one, *others in zip(*(jax.tree.leaves(state.params) for state in (whole, parts, ahead)), strict=True):
        np.testing.assert_array_equal(one, others[0])
        np.testing.assert_array_equal(one, others[1])
    metrics = [read_metrics(tmp_path / name) for name in ("whole", "ahead")]
    for name in ("preference/margin", "preference/winner_drift", "preference/unconditional_error", "loss"):
        np.testing.assert_array_equal(*(values[name][1] for values in metrics))


def test_a_reference_computed_ahead_knows_no_other_pairs(config, tmp_path):
    config.reference, config.validation.every = "ahead", 1
    config.data.validation.candidates = source("candidates")
    with pytest.raises(InputError, match="config.reference must be copy where config.validation.every is not 0"):
        train(config, tmp_path / "run")


def test_gradients_of_parts_add_up_to_the_batchs(config, tmp_path):
    config.steps = 1
    whole = train(config, tmp_path / "whole")
    config.grad_accum_steps = 2
    parts = train(config, tmp_path / "parts")
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("objective", ["multitask", "preference"])
def test_each_stage_takes_its_own_kind_of_data(config, shapes_data, candidates, tmp_path, objective):
    if objective == "multitask":
        other = base_config("multitask")
        other.model, other.init, other.data = config.model, config.init, config.data
        other.steps, message = 1, "this training takes no preferences, found a sample of kind 'preference'"
    else:
        other, message = config, "this training takes preferences, found a sample of kind 'pair'"
        other.data.root = str(shapes_data)
        other.data.sources.candidates.path = "pair"
    with pytest.raises(InputError, match=message):
        train(other, tmp_path / "run")


def test_preferred_images_alone_are_no_preferences(config, tmp_path):
    config.data.sources.candidates.augmentation.preferred_only = True
    with pytest.raises(InputError, match="config.data.sources.candidates.augmentation.preferred_only leaves no image"):
        train(config, tmp_path / "run")


def test_prompts_of_files_and_of_the_dataset(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\n  a dog \n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.txt")] == ["a cat", "a dog"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a sign", "text": "Open"}) + "\n")
    assert read_prompts(tmp_path / "a.jsonl") == [CandidatePrompt("a sign", {"text": "Open"})]
    edits = read_prompts("shapes:edits:3")
    assert all(prompt.images[0].shape == (64, 64, 3) and prompt.metadata == {"category": "edits"} for prompt in edits)
    for category in ("words", "counted pairs"):
        assert [p.metadata["category"] for p in read_prompts(f"shapes:{category}:3")] == [category] * 3
    canvases = [prompt.canvas for spec in ("shapes:counting:1", "shapes:counting:1:80x48") for prompt in read_prompts(spec)]
    assert canvases == [None, (80, 48)]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"\n \n", "expected prompts, one a line, found none"),
        ("a.txt", b"\xff\xfe", "cannot be read as a text file"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}', 'line 2: expected an object with a text called "prompt"'),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"prompt": "a", "images": "b.png"}', 'line 1: expected a list of file names called "images"'),
        ("a.jsonl", b'{"prompt": "a", "images": ["../b.png"]}', "line 1: .*b.png: a link out of the folder"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("spec", ["shapes:cats:3", "shapes:words:0", "shapes:words:x", "shapes:words", "shapes:words:3:80x80"])
def test_prompts_that_the_dataset_does_not_have_are_refused(spec):
    with pytest.raises(InputError, match="expected shapes:CATEGORY:N"):
        read_prompts(spec)
