"""ShapeEval against images whose content is known: right ones pass, wrong ones fail, clean or as a tokenizer leaves them."""

import dataclasses
import io
import json
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from nextstep_jax.data import shapes
from nextstep_jax.data.shapes import edits, language, layout, meaning, samples, stories
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation import shapes as shape_eval
from nextstep_jax.rewards.scene_reader import UNKNOWN, parse_scene

COUNT = 24


def clean(image, seed):
    return image


def like_a_tokenizer(image, seed):
    """Blur of one pixel and noise of 8 levels."""
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)), np.float64)
    noisy = soft + np.random.default_rng(seed).normal(0, 8, soft.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def jpeg(image, seed):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=75, subsampling=0)
    return np.asarray(Image.open(data))


DEGRADE = {function.__name__: function for function in (clean, like_a_tokenizer, jpeg)}


def described_scenes(category, count):
    """(scene, prompt with everything said) of a category."""
    rng = random.Random(f"evaluation {category}")
    for index in range(count):
        scene = layout.random_scene(category, rng, shapes.SPLITS[index % 2])
        truth = meaning.describe(scene, rng, colors=1, sizes=0.5, background=0.5, relations=category in ("position", "words"))
        yield scene, shapes.Prompt(language.realize(truth, rng), category, truth)


# --- corruptions: each makes a scene wrong in one way, or returns None where it cannot ----------------------------------


def _other(names, current, rng):
    return rng.choice([name for name in names if name != current])


def _change(scene, rng, **how):
    """One object with an attribute changed to another value."""
    if not scene.objects:
        return None
    index = rng.randrange(len(scene.objects))
    thing = scene.objects[index]
    changes = {name: _other(values, getattr(thing, name), rng) for name, values in how.items()}
    return dataclasses.replace(
        scene, objects=scene.objects[:index] + (dataclasses.replace(thing, **changes),) + scene.objects[index + 1 :]
    )


def wrong_color(scene, rng):
    if not scene.objects:
        return dataclasses.replace(
            scene, word=dataclasses.replace(scene.word, color=_other(shapes.COLORS, scene.word.color, rng))
        )
    return _change(scene, rng, color=shapes.COLORS)


def wrong_shape(scene, rng):
    return _change(scene, rng, shape=shapes.SHAPES)


def missing_object(scene, rng):
    return dataclasses.replace(scene, objects=scene.objects[1:]) if scene.objects else dataclasses.replace(scene, word=None)


def extra_object(scene, rng):
    free = layout.free_centers("small", scene.items)
    kind = layout.random_kind(rng, "small")
    return dataclasses.replace(scene, objects=(*scene.objects, shapes.Object(*kind, rng.choice(free)))) if free else None


def swapped_places(scene, rng):
    if len(scene.objects) != 2:
        return None
    a, b = scene.objects
    return dataclasses.replace(
        scene, objects=(dataclasses.replace(a, center=b.center), dataclasses.replace(b, center=a.center))
    )


def swapped_colors(scene, rng):
    if len(scene.objects) != 2:
        return None
    a, b = scene.objects
    return dataclasses.replace(scene, objects=(dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color)))


def wrong_background(scene, rng):
    return dataclasses.replace(scene, background=_other(shapes.BACKGROUNDS, scene.background, rng))


def wrong_word(scene, rng):
    if scene.word is None:
        return None
    near = [word for word in shapes.WORDS if len(word) == len(scene.word.text)]
    return dataclasses.replace(scene, word=dataclasses.replace(scene.word, text=_other(near, scene.word.text, rng)))


def misspelt_word(scene, rng):
    """One letter replaced, the result no word of the list."""
    if scene.word is None:
        return None
    text = scene.word.text
    at = rng.randrange(len(text))
    text = text[:at] + _other("abcdefghijlnoprstuvy", text[at], rng) + text[at + 1 :]
    return None if text in shapes.WORDS else dataclasses.replace(scene, word=dataclasses.replace(scene.word, text=text))


def moved(scene, rng):
    """The first object put somewhere else."""
    first, *others = scene.objects
    (x, y), free = first.center, layout.free_centers(first.size, others)
    far = [center for center in free if max(abs(center[0] - x), abs(center[1] - y)) >= 8]
    return dataclasses.replace(scene, objects=(dataclasses.replace(first, center=rng.choice(far)), *others)) if far else None


CORRUPTIONS = (
    wrong_color,
    wrong_shape,
    missing_object,
    extra_object,
    swapped_places,
    swapped_colors,
    wrong_background,
    wrong_word,
    misspelt_word,
)


# --- images from prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrade", DEGRADE)
@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_right_pictures_pass(category, degrade):
    for seed, (scene, prompt) in enumerate(described_scenes(category, COUNT)):
        assert shape_eval.failure(prompt, DEGRADE[degrade](shapes.render(scene), seed)) is None, (prompt.text, scene)


@pytest.mark.parametrize("degrade", ["clean", "like_a_tokenizer"])
@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_wrong_pictures_fail(corrupt, degrade):
    rng, made = random.Random(0), 0
    for category in shapes.CATEGORIES:
        for seed, (scene, prompt) in enumerate(described_scenes(category, COUNT // 2)):
            wrong = corrupt(scene, rng)
            # Some changes leave the prompt true: a color swap within a pair of one color, a background nobody named.
            if wrong is None or (corrupt is not misspelt_word and shapes.contradiction(prompt.truth, wrong) is None):
                continue
            made += 1
            assert shape_eval.failure(prompt, DEGRADE[degrade](shapes.render(wrong), seed)), (prompt.text, wrong)
    assert made >= 8


@pytest.mark.parametrize("category", shapes.NEWCOMER_CATEGORIES)
def test_what_newcomers_ask_for_is_judged_from_pixels(category):
    rng, made = random.Random(category), set()
    for seed in range(COUNT):
        text, truth, scene = shapes.draw_newcomer_prompt(category, rng, shapes.SPLITS[seed % 2])
        prompt = shapes.Prompt(text, category, truth)
        assert shape_eval.failure(prompt, like_a_tokenizer(shapes.render(scene), seed)) is None, (text, scene)
        for corrupt in CORRUPTIONS:
            wrong = corrupt(scene, rng)
            if wrong is not None and (corrupt is misspelt_word or shapes.contradiction(truth, wrong)):
                made.add(corrupt)
                assert shape_eval.failure(prompt, shapes.render(wrong)), (text, wrong)
        for shape in {thing.shape for thing in scene.objects}:  # one of a kind more or less than there should be
            same = [thing for thing in scene.objects if thing.shape == shape]
            fewer = dataclasses.replace(scene, objects=tuple(thing for thing in scene.objects if thing is not same[0]))
            assert shape_eval.failure(prompt, shapes.render(fewer)), (text, fewer)
    assert {wrong_color, wrong_shape, missing_object} <= made
    assert category != "introduced words" or {wrong_word, misspelt_word} <= made


@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_no_picture_passes_for_another_prompt_or_for_nothing(category):
    found = list(described_scenes(category, COUNT))
    blank = np.full((64, 64, 3), 248, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for (scene, _), (_, prompt) in zip(found, found[1:], strict=False):
        assert shape_eval.failure(prompt, blank) and shape_eval.failure(prompt, noise)
        if shapes.contradiction(prompt.truth, scene):
            assert shape_eval.failure(prompt, shapes.render(scene))


def test_read_scene_measures_places_and_sizes():
    things = (shapes.Object("star", "pink", "large", (17.5, 20.25)), shapes.Object("triangle", "cyan", "small", (47.0, 44.75)))
    scene = shapes.Scene(things, "navy")
    for seed, degrade in enumerate(DEGRADE.values()):
        read = parse_scene(degrade(shapes.render(scene), seed))
        assert read.background == "navy" and read.word is None and len(read.objects) == 2
        for thing, found in zip(things, read.objects, strict=True):
            assert (found.shape, found.color, found.size) == (thing.shape, thing.color, thing.size)
            assert found.center == pytest.approx(thing.center, abs=0.6)
    word = shapes.Scene((), "gray", shapes.Word("love", "purple", (32, 24)))
    assert parse_scene(shapes.render(word)) == dataclasses.replace(
        word, word=dataclasses.replace(word.word, center=(32.0, 24.0))
    )


def test_what_is_none_of_the_shapes_is_read_as_unknown():
    image = np.full((64, 64, 3), 248, np.uint8)
    image[20:24, 8:56] = shapes.COLORS["red"]
    assert [thing.shape for thing in parse_scene(image).objects] == [UNKNOWN]
    image = np.full((64, 64, 3), 248, np.uint8)
    image[20:40, 20:40] = (120, 80, 40)
    assert [(thing.shape, thing.color) for thing in parse_scene(image).objects] == [("square", UNKNOWN)]
    assert parse_scene(np.full((64, 64, 3), (255, 0, 255), np.uint8)).background == UNKNOWN
    half = shapes.render(shapes.Scene((shapes.Object("circle", "red", "large", (32, 32)),)))
    half[:, 33:] = 248
    assert parse_scene(half).objects[0].shape == UNKNOWN


def test_touching_things_of_two_colors_are_two_things():
    pair = (shapes.Object("square", "red", "small", (20, 32)), shapes.Object("circle", "blue", "large", (42, 32)))
    read = parse_scene(shapes.render(shapes.Scene(pair, "cream")))
    assert {(thing.shape, thing.color) for thing in read.objects} == {("square", "red"), ("circle", "blue")}


@pytest.mark.parametrize(
    "bad", [np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8)]
)
def test_only_pictures_of_the_right_kind_are_read(bad):
    with pytest.raises(InputError, match="uint8"):
        parse_scene(bad)


# --- edits ------------------------------------------------------------------------------------------------------------


def edit_prompts(operation, count):
    """(prompt, the scene afterwards)"""
    rng = random.Random(f"edit {operation}")
    for index in range(count):
        before, edit, after = samples._random_change(operation, rng, shapes.SPLITS[index % 2])
        yield shapes.Prompt(edits.instruct(edit, rng), "edits", edit, before), after


@pytest.mark.parametrize("degrade", DEGRADE)
@pytest.mark.parametrize("operation", edits.OPERATIONS)
def test_right_edits_pass(operation, degrade):
    for seed, (prompt, after) in enumerate(edit_prompts(operation, COUNT // 2)):
        assert shape_eval.failure(prompt, DEGRADE[degrade](shapes.render(after), seed)) is None, (prompt, after)


@pytest.mark.parametrize("operation", edits.OPERATIONS)
def test_undone_edits_fail(operation):
    for prompt, _ in edit_prompts(operation, COUNT // 2):
        assert shape_eval.failure(prompt, shapes.render(prompt.scene)), prompt


@pytest.mark.parametrize("operation", edits.OPERATIONS)
@pytest.mark.parametrize("corrupt", [wrong_color, wrong_shape, extra_object, wrong_background, moved])
def test_edits_that_touch_the_rest_fail(operation, corrupt):
    rng, made = random.Random(1), 0  # there is seldom room for another object
    for prompt, after in edit_prompts(operation, 2 * COUNT):
        rest = [thing for thing in after.objects if thing in prompt.scene.objects]
        if corrupt in (wrong_color, wrong_shape, moved) and not rest:
            continue
        others = tuple(thing for thing in after.objects if thing not in rest[:1])
        if corrupt is moved:
            wrong = moved(shapes.Scene((*rest[:1], *others), after.background), rng)
        elif corrupt in (wrong_color, wrong_shape):
            changed = corrupt(shapes.Scene((rest[0],)), rng).objects
            wrong = dataclasses.replace(after, objects=(*others, *changed))
        else:
            wrong = corrupt(after, rng)
        if wrong is not None:
            made += 1
            assert shape_eval.failure(prompt, shapes.render(wrong)), (prompt, wrong)
    assert made >= 3


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_captions_are_checked_for_truth(category):
    rng = random.Random(category)
    for scene, _ in described_scenes(category, COUNT):
        text = shapes.caption(scene, rng)
        prompt = shapes.Prompt("", "captions", None, scene)
        assert shape_eval.failure(prompt, text) is None
        assert shape_eval.failure(prompt, text.upper() + " .") is None
        for corrupt in (wrong_color, wrong_shape, missing_object, extra_object):
            wrong = corrupt(scene, rng)
            if wrong is not None and wrong.items:
                assert shape_eval.failure(prompt, shapes.caption(wrong, rng)), (text, wrong)


def test_captions_need_the_language_and_colors():
    scene = shapes.Scene((shapes.Object("circle", "red", "small", (20, 20)),))
    assert shape_eval.caption_failure(scene, "a circle") == "no color is named for the circle"
    assert "found 'blob'" in shape_eval.caption_failure(scene, "a red blob")
    assert "found the end" in shape_eval.caption_failure(scene, "")
    assert shape_eval.caption_failure(scene, "a small red circle on a white background") is None


# --- prompts and report -----------------------------------------------------------------------------------------------


def test_default_prompts_are_held_out_and_of_every_category():
    prompts = shape_eval.default_prompts(6)
    assert [prompt.category for prompt in prompts] == [name for name in shapes.PROMPT_CATEGORIES for _ in range(6)]
    trained = {part.text for index in range(500) for part in shapes.sample("pair", index).texts}
    assert not trained & {prompt.text for prompt in prompts}


def test_report_counts_and_names_what_failed():
    asked = [pair for category in shapes.CATEGORIES for pair in described_scenes(category, 4)]
    prompts, responses = [prompt for _, prompt in asked], [shapes.render(scene) for scene, _ in asked]
    for prompt in (*shapes.prompts("heldout", "edits", 4), *shapes.prompts("heldout", "captions", 4)):
        prompts.append(prompt)
        rng = random.Random(0)
        done = prompt.category == "edits" and shapes.apply_edit(prompt.truth, prompt.scene, rng)
        responses.append(shapes.render(done) if done else shapes.caption(prompt.scene, rng))
    report = shape_eval.evaluate(prompts, responses)
    assert report["overall"] == 1 and report["n"] == report["correct"] == 36 and report["failures"] == []

    responses[0] = responses[31] = np.zeros((64, 64, 3), np.uint8)
    responses[35] = "nonsense"
    report = json.loads(json.dumps(shape_eval.evaluate(prompts, responses)))
    assert report["overall"] == pytest.approx(1 - 0.25 / 7) and report["correct"] == 33
    assert report["categories"]["single object"] == {"n": 4, "correct": 3, "score": 0.75}
    assert report["categories"]["edits"]["correct"] == report["categories"]["captions"]["correct"] == 3
    assert sum(entry["n"] for entry in report["edits"].values()) == 4
    assert [entry["index"] for entry in report["failures"]] == [0, 31, 35]
    assert report["failures"][0]["prompt"] == prompts[0].text and "nonsense" in report["failures"][2]["reason"]
    table = shape_eval.format_report(report)
    assert len(table.splitlines()) == 10 and "0.964" in table
    with pytest.raises(InputError, match="one response per prompt"):
        shape_eval.evaluate(prompts, responses[1:])


def test_prompt_files_are_read_line_by_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text('a red circle left of a blue square\n\nthree stars\nmake the circle blue\nthe word "cat" in red\na cross\n')
    prompts = shape_eval.read_prompts(path)
    assert [prompt.category for prompt in prompts] == ["position", "counting", "edits", "words", "single object"]
    assert prompts[2].scene is not None and shape_eval.read_prompts(path) == prompts
    path.write_text("a red circle\na red dog\n")
    with pytest.raises(InputError, match=r"prompts.txt, line 2: .*found 'dog'"):
        shape_eval.read_prompts(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="found 0 lines"):
        shape_eval.read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        shape_eval.read_prompts(path)
    path.write_text("a red circle\n" * 400_000)
    with pytest.raises(InputError, match="one prompt per line"):
        shape_eval.read_prompts(path)
    with pytest.raises(InputError, match="missing.txt"):
        shape_eval.read_prompts(tmp_path / "missing.txt")


# --- other canvases and stories ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrade", ["clean", "like_a_tokenizer"])
@pytest.mark.parametrize("canvas", shapes.CANVASES)
def test_other_canvases_are_judged_as_the_square_is(canvas, degrade):
    rng = random.Random(f"canvas {canvas}")
    for seed in range(3 * len(shapes.CATEGORIES)):
        category = shapes.CATEGORIES[seed % len(shapes.CATEGORIES)]
        scene = layout.random_scene(category, rng, canvas=canvas)
        truth = meaning.describe(scene, rng, colors=1, background=1, region=1)
        image = DEGRADE[degrade](shapes.render(scene), seed)
        assert image.shape == (*canvas[::-1], 3) and parse_scene(image).canvas == canvas
        prompt = shapes.Prompt("", category, truth)
        assert shape_eval.failure(prompt, image) is None, scene
        assert shape_eval.failure(prompt, shapes.render(wrong_color(scene, rng))), scene


def test_prompts_for_another_canvas_fit_on_it():
    prompts = shape_eval.default_prompts(8, canvas=(80, 48))
    assert [prompt.category for prompt in prompts] == [name for name in shapes.CATEGORIES for _ in range(8)]
    assert all(sum(mention.count for mention in prompt.truth.mentions) <= 2 for prompt in prompts)
    with pytest.raises(InputError, match="edits can't be asked for on 80x48 pixels"):
        shape_eval.default_prompts(1, categories=["edits"], canvas=(80, 48))
    with pytest.raises(InputError, match="on 16x16 pixels"):
        shape_eval.default_prompts(1, canvas=(16, 16))


def told(seed, count=4):
    """A prompt and a story that is right: [image, text, image, ..., closing sentence]."""
    rng = random.Random(seed)
    steps = stories.story(rng, (count,))
    parts = [part for text, scene in steps for part in (text, shapes.render(scene))]
    return shapes.Prompt(parts[0], "stories", stories.parse_beginning(parts[0])), [
        *parts[1:],
        stories.closing(steps[-1][1], rng),
    ]


@pytest.mark.parametrize("degrade", ["clean", "like_a_tokenizer"])
def test_right_stories_pass(degrade):
    for seed in range(12):
        prompt, parts = told(seed, 2 + seed % 4)
        seen = [part if isinstance(part, str) else DEGRADE[degrade](part, seed) for part in parts]
        assert shape_eval.failure(prompt, seen) is None, parts[1::2]


def _blank(parts):
    return [*parts[:2], np.full((64, 64, 3), 22, np.uint8), *parts[3:]]


@pytest.mark.parametrize(
    "spoil",
    [
        _blank,
        lambda parts: parts[:-1],  # an image last
        lambda parts: parts[1:],
        lambda parts: [],
        lambda parts: parts[:1] + parts[-1:],  # one image
        lambda parts: [*parts[:2], parts[0], *parts[3:]],  # a step that was not done
        lambda parts: [*parts[:-1], "now there is a red circle, a blue star, a pink cross and a green diamond."],
        lambda parts: [*parts[:-1], parts[-1][:-1]],  # cut off
        lambda parts: [*parts[:-1], "finally, remove the star."],
        lambda parts: [parts[0], "1 empty empty 1 empty. circle red 2 small", *parts[2:]],
        lambda parts: [parts[0], "finally, " + parts[1].partition(" ")[2], *parts[2:]],
        lambda parts: [parts[0], parts[1].partition(" ")[2], *parts[2:]],
        lambda parts: parts[:-1] + ["then make the background gray.", parts[-2]] * 2 + parts[-1:],
    ],
)
def test_wrong_stories_fail(spoil):
    for seed in range(4):
        prompt, parts = told(seed)
        assert shape_eval.failure(prompt, spoil(parts)), parts[1::2]


def test_the_rest_of_a_story_must_be_left_alone():
    background = "then change the background to gray."
    thing = shapes.Object("star", "red", "small", (32, 32))
    first, after = shapes.Scene((thing,)), shapes.Scene((thing,), "gray")
    moved_too = dataclasses.replace(after, objects=(dataclasses.replace(thing, center=(16, 32)),))
    prompt = shapes.Prompt("", "stories", stories.parse_beginning("first, draw a red star on a white background."))
    for scene, right in ((after, True), (moved_too, False), (first, False)):
        parts = [shapes.render(first), background, shapes.render(scene), "now there is a red star."]
        assert (shape_eval.failure(prompt, parts) is None) == right
    parts[1:3] = ["then remove the circle.", shapes.render(first)]
    assert "an edit needs exactly one" in shape_eval.failure(prompt, parts)
    gone = [shapes.render(first), "finally, remove the star.", shapes.render(shapes.Scene())]
    assert shape_eval.failure(prompt, [*gone, "now there is nothing."]) is None
    assert shape_eval.failure(prompt, [*gone, "now there is a red star."])


def test_stories_and_newcomers_are_asked_for_by_name():
    assert not {*shapes.EXTRA_CATEGORIES} & {prompt.category for prompt in shape_eval.default_prompts(1)}
    prompts = shape_eval.default_prompts(5, categories=["stories"])
    assert [prompt.category for prompt in prompts] == ["stories"] * 5 and len({prompt.text for prompt in prompts}) == 5
    prompt, parts = told(0)
    report = shape_eval.evaluate([prompt, prompt], [parts, parts[:-1]])
    assert report["overall"] is None and report["categories"]["stories"] == {"n": 2, "correct": 1, "score": 0.5}
