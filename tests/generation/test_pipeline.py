"""What a user calls, on a tiny random model."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from nextstep_jax.errors import InputError
from nextstep_jax.generation import loaded_model, profiling
from nextstep_jax.generation.config import RECOMMENDED, GenerationConfig, recommended
from nextstep_jax.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_same_seed_same_image_whatever_the_batch(tiny_pipeline):
    alone = tiny_pipeline.generate("a red circle", seed=3)
    both = tiny_pipeline.generate(["a red circle", "blue square"], seed=3)
    np.testing.assert_allclose(alone[0].tokens, both[0].tokens, atol=1e-4)
    assert np.abs(alone[0].tokens - tiny_pipeline.generate("a red circle", seed=4)[0].tokens).max() > 0.1


def test_each_prompt_may_have_a_seed_of_its_own(tiny_pipeline):
    both = tiny_pipeline.generate(["a red circle", "blue square"], seed=[3, 4], n=2)
    alone = tiny_pipeline.generate("blue square", seed=4, n=2)
    assert [image.record["seed"] for image in both] == [3, 3, 4, 4]
    for image, other in zip(both[2:], alone, strict=True):
        np.testing.assert_allclose(image.tokens, other.tokens, atol=1e-4)
    with pytest.raises(InputError, match="expected one seed or one of each of 2 prompts, found 1"):
        tiny_pipeline.generate(["a red circle", "blue square"], seed=[3])


def test_several_images_of_a_prompt_differ_and_keep_their_index(tiny_pipeline):
    three = tiny_pipeline.generate("a red circle", n=3, seed=3)
    assert [image.record["index"] for image in three] == [0, 1, 2]
    one = tiny_pipeline.generate("a red circle", n=1, seed=3)
    np.testing.assert_allclose(one[0].tokens, three[0].tokens, atol=1e-4)
    assert np.abs(three[0].tokens - three[1].tokens).max() > 0.1


@pytest.mark.parametrize(
    ("size", "expected"),
    [(dict(height=32, width=96), (32, 96)), (dict(aspect="4:1"), (32, 128)), (dict(aspect="1:1"), (64, 64)), ({}, (64, 64))],
)
def test_any_grid(tiny_pipeline, size, expected):
    (image,) = tiny_pipeline.generate("a red circle", **size)
    assert image.pixels.shape == (*expected, 3) and image.pixels.dtype == np.uint8


def test_png_carries_its_record(tiny_pipeline, tmp_path):
    (image,) = tiny_pipeline.generate("a red circle", seed=5)
    image.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as file:
        assert (
            file.text["prompt"] == "a red circle" and file.text["seed"] == "5" and '"sampler": "ode"' in file.text["settings"]
        )
        np.testing.assert_array_equal(np.asarray(file), image.pixels)


def test_previews_come_in_order_and_end_with_the_image(tiny_pipeline):
    seen = []
    images = tiny_pipeline.generate("a red circle", on_chunk=lambda done, total, partial: seen.append((done, total, partial())))
    assert [done for done, *_ in seen] == sorted({done for done, *_ in seen}) and seen[-1][0] == seen[-1][1] == 16
    np.testing.assert_array_equal(seen[-1][2][0], images[0].pixels)


def test_edit_takes_the_size_of_its_source(tiny_pipeline, picture):
    wide = np.concatenate([picture, picture], axis=1)
    (image,) = tiny_pipeline.edit(wide, "red square")
    assert image.pixels.shape[1] > image.pixels.shape[0]
    assert image.record["settings"]["image_cfg"] == 1.5


def test_edit_reads_its_sources(tiny_pipeline, picture):
    a, b = (tiny_pipeline.edit(p, "a red square", seed=1)[0].tokens for p in (picture, 255 - picture))
    assert np.abs(a - b).max() > 1e-3


def test_edit_places_images_where_the_instruction_says(tiny_pipeline, picture):
    images = [picture, 255 - picture]
    first = tiny_pipeline.edit(images, "<image_1>a red square<image_0>", seed=1)[0].tokens
    swapped = tiny_pipeline.edit(images[::-1], "<image>a red square<image>", seed=1)[0].tokens
    np.testing.assert_allclose(first, swapped, atol=1e-4)
    last = tiny_pipeline.edit(images, "a red square", seed=1, settings=tiny_pipeline.settings(edit=True, sources_last=True))
    placed = tiny_pipeline.edit(images, "a red square<image><image>", seed=1)
    np.testing.assert_array_equal(last[0].tokens, placed[0].tokens)
    with pytest.raises(InputError, match="<image_2> in the instruction"):
        tiny_pipeline.edit(images, "<image_2>a red square")
    with pytest.raises(InputError, match="places 1 of 2"):
        tiny_pipeline.edit(images, "<image_1>a red square")


def test_negative_prompt_and_guidance_have_an_effect(tiny_pipeline):
    plain = tiny_pipeline.generate("a red circle")[0].tokens
    for changes in (
        {"negative_prompt": "blue square"},
        {"cfg": 4.0},
        {"schedule": "linear"},
        {"cfg": 1.0},
        {"normalize_tokens": False},
    ):
        other = tiny_pipeline.generate("a red circle", settings=tiny_pipeline.settings(**changes))[0].tokens
        assert np.abs(plain - other).max() > 1e-3, changes


def test_ids_serve_callers_without_a_text_tokenizer(tiny_pipeline):
    blind = dataclasses.replace(tiny_pipeline, vocabulary=None)
    by_ids = blind.generate(tiny_pipeline.vocabulary.encode("a red circle"))
    by_text = tiny_pipeline.generate("a red circle", settings=tiny_pipeline.settings(prompt_suffix="", negative_prompt=""))
    np.testing.assert_allclose(by_text[0].tokens, by_ids[0].tokens, atol=1e-5)
    with pytest.raises(InputError, match="no text tokenizer"):
        blind.generate("a red circle")


def test_progress_counts_all_batches(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("nextstep_jax.generation.pipeline.MAX_BATCH", 2)
    seen = []
    settings = tiny_pipeline.settings(steps=1, cfg=1.0)
    tiny_pipeline.generate(
        ["a red circle", "blue"], n=2, height=32, width=32, settings=settings, on_chunk=lambda *now: seen.append(now[:2])
    )
    assert seen == [(done, 8) for done in range(1, 9)]


def test_generate_text_is_repeatable_and_reads_images(tiny_pipeline, picture):
    text = tiny_pipeline.generate_text("a red", max_tokens=6)
    assert text == tiny_pipeline.generate_text("a red", max_tokens=6)
    assert isinstance(tiny_pipeline.generate_text("", images=[picture], max_tokens=6), str)


def test_what_is_written_can_be_read_again(tiny_pipeline, monkeypatch):
    """Neither the unknown token nor ids beyond the tokenizer's, nor a marker that was not asked for."""
    seen, decode_ids = [], loaded_model.text.decode_ids

    def recorded(config, params, state, keys, temperature, top_p, allowed, *rest):
        seen.append(np.flatnonzero(~np.asarray(allowed)).tolist())
        return decode_ids(config, params, state, keys, temperature, top_p, allowed, *rest)

    monkeypatch.setattr(loaded_model.text, "decode_ids", recorded)
    special, vocabulary = tiny_pipeline.special, tiny_pipeline.vocabulary
    tiny_pipeline.generate_ids(["a red"], [special.eos], jax.random.key(0), 4)
    markers = {special.pad, special.image_area, special.begin_of_image, special.begin_of_thinking}
    assert {vocabulary.unknown, *markers, *range(vocabulary.size, 512)} <= set(seen[0])
    assert special.eos not in seen[0] and vocabulary.encode("red")[0] not in seen[0]


@pytest.mark.parametrize("kind", ["generate", "edit"])
def test_thinking_comes_before_the_image(kind, tiny_pipeline, picture, monkeypatch):
    special, seen, read = tiny_pipeline.special, [], []

    def generate_ids(self, parts, stops, *args, **kwargs):
        seen.append((parts, stops))
        return [20, 21], special.end_of_thinking

    def sample_tokens(self, branches, *args):
        read.extend(branches)
        return np.zeros((len(branches), 16, self.config.token_channels), np.float32)

    monkeypatch.setattr(Pipeline, "generate_ids", generate_ids)
    monkeypatch.setattr(Pipeline, "sample_tokens", sample_tokens)
    settings = tiny_pipeline.settings(edit=kind == "edit", thinking=True)
    asked = (["a red circle", "a star"],) if kind == "generate" else (picture, "a red circle")
    images = getattr(tiny_pipeline, kind)(*asked, n=2, settings=settings)
    assert len(seen) == (2 if kind == "generate" else 1)  # once a prompt, for all its images
    for branches, (parts, stops) in zip(read[::2], seen, strict=True):
        assert branches[0] == [*parts[:-1], [special.begin_of_thinking, 20, 21, special.end_of_thinking]]
        assert parts[-1] == [special.begin_of_thinking] and special.end_of_thinking in stops
        assert not any(isinstance(part, list) and special.begin_of_thinking in part for row in branches[1:] for part in row)
    assert all(image.record["thinking"] == tiny_pipeline.text([20, 21]) for image in images)


def test_thoughts_at_a_temperature_follow_the_seed(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(loaded_model, "MAX_THINKING_TOKENS", 8)

    def thoughts(temperature, seeds):
        settings = tiny_pipeline.settings(thinking=True, thinking_temperature=temperature, image_size=32)
        images = tiny_pipeline.generate(["a red circle"] * len(seeds), seed=seeds, settings=settings)
        return [image.record["thinking"] for image in images]

    first, second, again = thoughts(2.0, [1, 2, 1])
    assert first == again != second
    likely = thoughts(0.0, [1, 2])
    assert likely[0] == likely[1] != first


def test_no_thinking_without_thinking_tokens(tiny_pipeline):
    special = dataclasses.replace(tiny_pipeline.special, begin_of_thinking=None, end_of_thinking=None)
    with pytest.raises(InputError, match="no thinking tokens"):
        dataclasses.replace(tiny_pipeline, special=special).generate("a", settings=tiny_pipeline.settings(thinking=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.generate(""), "must not be empty"),
        (lambda p: p.generate("a", height=20), "multiple of 16"),
        (lambda p: p.generate("a", aspect="9:1"), "aspect must be"),
        (lambda p: p.generate("a", aspect="1:1", height=64), "not both"),
        (lambda p: p.generate("a", n=0), "at least 1"),
        (lambda p: p.generate("a", seed=-1), "seed must be"),
        (lambda p: p.generate("a", height=1600, width=1600), "do not fit"),
        (lambda p: p.generate("a " * 5000), "do not fit"),
        (lambda p: p.edit([], "a"), "at least one input image"),
        (lambda p: p.edit("/nonexistent.png", "a"), "/nonexistent.png"),
        (lambda p: p.generate_text(""), "must not be empty"),
        (lambda p: p.generate_text("a", temperature=-1), "temperature"),
        (lambda p: p.settings(cfg=0.5), "at least 1"),
        (lambda p: p.settings(image_cfg=0.5), "at least 1"),
        (lambda p: p.generate("a", settings=p.settings(image_cfg=2.0)), "needs an input image"),
        (lambda p: p.settings(sampler="august2025", steps=1), "at least 2 steps"),
        (lambda p: p.settings(schedule="up"), "schedule must be one of"),
    ],
)
def test_bad_input_is_one_clear_line(tiny_pipeline, call, message):
    with pytest.raises(InputError, match=message) as error:
        call(tiny_pipeline)
    assert "\n" not in str(error.value)


def test_recommended_settings_follow_the_release():
    assert recommended("1.0").sampler == "august2025" and recommended("1.0").normalize_tokens
    assert recommended("1.0", edit=True).image_cfg == 2.0 and recommended("1.0", edit=True).shift == 3.2
    assert recommended("1.1") == RECOMMENDED["1.1"] == GenerationConfig(negative_prompt=RECOMMENDED["1.1"].negative_prompt)
    assert recommended("1.1", {"cfg": 3.0, "edit": {"image_cfg": 1.5}}, edit=True).image_cfg == 1.5
    assert recommended("1.1", {"cfg": 3.0, "edit": {"image_cfg": 1.5}}).image_cfg == 1.0
    with pytest.raises(InputError, match="unknown generation settings"):
        recommended("1.1", {"cgf": 3.0})


@pytest.mark.parametrize("schedule", ["constant", "linear", "rising"])
def test_guidance_per_token(schedule):
    values = GenerationConfig(cfg=3.0, schedule=schedule).guidance(4)
    assert values.shape == (4, 2) and np.isfinite(values).all() and values[:, 0].max() <= 3.0


@pytest.mark.parametrize("tokens", [1, 2, 16, 18])
def test_steps_fall_along_the_image(tokens):
    assert GenerationConfig(steps=12).steps_along(tokens) == [(tokens, 12)]
    plan = GenerationConfig(steps=12, final_steps=6).steps_along(tokens)
    assert plan[0][1] == 12 and plan[-1][0] == tokens and len(plan) == min(4, tokens)
    assert sorted(plan) == plan and sorted((steps for _, steps in plan), reverse=True) == [steps for _, steps in plan]


def test_fewer_steps_late_in_the_image(tiny_pipeline):
    """Tokens of the first stages are those of the plain setting; then the numbers of steps differ, and so do the tokens."""
    plain = tiny_pipeline.settings(sampler="sde", steps=3)
    one, other = (
        tiny_pipeline.generate("a red circle", settings=settings, height=32, width=32, seed=1)[0].tokens
        for settings in (plain, plain.replace(final_steps=2))
    )
    np.testing.assert_allclose(one[:2], other[:2], atol=1e-5)
    assert np.abs(one[2] - other[2]).max() > 1e-3


def test_int8_draws_nearly_the_same_tokens(tiny_checkpoint, tiny_pipeline):
    exact, small = (Pipeline.from_checkpoint(tiny_checkpoint, dtype=dtype) for dtype in (None, "int8"))
    how = {"settings": exact.settings(sampler="ode", steps=3, cfg=1.0), "height": 16, "width": 16}
    one, other = (pipeline.generate("a red circle", **how)[0].tokens for pipeline in (exact, small))
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(pipeline.params["decoder"])) for pipeline in (exact, small)]
    assert sizes[1] < 0.35 * sizes[0]


def test_profile_names_the_parts(tiny_pipeline):
    with profiling.listen() as profile:
        tiny_pipeline.generate("a red circle", height=16, width=16, seed=5)
    tiny_pipeline.generate("a red circle", height=16, width=16, seed=5)  # nobody listens any more
    assert {"prefill", "tokens", "decode"} <= set(profile.seconds) and min(profile.seconds.values()) >= 0
    assert profile.table().splitlines()[-1].startswith("total")


def test_overrides_hold_for_images_and_edits(tiny_pipeline):
    changed = tiny_pipeline.with_overrides({"steps": 7, "sampler": None})
    assert changed.settings().steps == changed.settings(edit=True).steps == 7
    assert changed.settings().sampler == tiny_pipeline.settings().sampler


def test_text_can_be_read_along_and_stopped(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("nextstep_jax.generation.loaded_model.TEXT_CHUNK", 2)
    seen = []
    text = tiny_pipeline.generate_text("a red", max_tokens=7, on_text=seen.append)
    assert text == tiny_pipeline.generate_text("a red", max_tokens=7) == seen[-1]
    assert len(seen) > 1 and all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_pipeline.generate_text("a red", max_tokens=7, on_text=stop)


def test_partial_images_hold_the_tokens_so_far(tiny_pipeline):
    seen = []
    (image,) = tiny_pipeline.generate("a red circle", on_chunk=lambda done, _, partial: seen.append((done, partial)))
    for done, partial in seen:
        np.testing.assert_array_equal(partial.tokens[0, :done], image.tokens[:done])
        assert not partial.tokens[0, done:].any() and (partial.h, partial.w) == (4, 4)


def test_require_drawable_refuses_what_drawing_would(tiny_pipeline, picture):
    settings = tiny_pipeline.settings(edit=True)
    assert tiny_pipeline.require_drawable("a red circle", [], 4, 4, tiny_pipeline.settings()).is_image.sum() == 0
    assert tiny_pipeline.require_drawable("a red circle", [picture], 4, 4, settings).is_image.sum() == 16
    for prompt, message in (("<image_1> a", "asks for an image"), ("a " * 5000, "do not fit"), (" ", "must not be empty")):
        with pytest.raises(InputError, match=message):
            tiny_pipeline.require_drawable(prompt, [picture], 4, 4, settings)
