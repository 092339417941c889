"""ShapeEval's judgement as a reward: on the dataset's own images, and on images that are partly right."""

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.rewards.loading import open_reward
from nextstep_jax.rewards.protocol import RewardRequest
from nextstep_jax.rewards.scene_edits import edited_fraction


@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_what_the_dataset_draws_is_right_and_another_prompt_wrong(category):
    reward = open_reward("shapes")
    prompts = shapes.prompts("train", category, 6)
    samples = [shapes.sample("pair", index) for index in range(40)]
    own = [RewardRequest(sample.texts[0].text, sample.images[0].pixels()) for sample in samples]
    assert np.mean([score["reward"] for score in reward(own)]) > 0.95  # the reader misses a word or two
    others = [RewardRequest(prompt.text, sample.images[0].pixels()) for prompt in prompts for sample in samples[:6]]
    assert np.mean([score["reward"] for score in reward(others)]) < 0.2


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("a red circle and a blue square", 1.0),
        ("a red circle and a green square", 0.5),
        ("a circle and a square", 1.0),
        ("two red circles and a blue square", 2 / 3),
        ("a red circle", 0.5),
        ("a green cross", 0.0),
    ],
)
def test_parts_are_the_things_that_are_there(prompt, parts):
    from nextstep_jax.rewards.shapes import matched_fraction

    thing = shapes.Object
    scene = shapes.Scene((thing("circle", "red", "large", (16, 16)), thing("square", "blue", "large", (48, 48))), "white")
    assert matched_fraction(shapes.parse(prompt), scene) == pytest.approx(parts)


def test_an_edit_is_right_after_it_and_wrong_before_it():
    asked = []
    for index in range(28):
        sample = shapes.sample("edit", index)
        before, after = (part.pixels() for part in sample.images)
        asked += [RewardRequest(sample.texts[0].text, image, {}, [before]) for image in (after, before)]
    scores = open_reward("shapes")(asked)
    assert [score["reward"] for score in scores] == [1, 0] * 28
    assert all(score["parts"] == 1 for score in scores[::2])


@pytest.mark.parametrize(
    "instruction, parts",
    [
        ("remove the circle", 1 / 2),
        ("make the circle green", 1 / 2),
        ("add a small green star", 2 / 3),
        ("make the background black", 1.0),
    ],
)
def test_parts_of_an_edit_are_the_objects_as_they_should_be(instruction, parts):
    """Judged on the image before."""
    thing = shapes.Object
    scene = shapes.Scene((thing("circle", "red", "large", (16, 16)), thing("square", "blue", "large", (48, 48))), "white")
    assert edited_fraction(shapes.parse_edit(instruction), scene, scene) == pytest.approx(parts)


def test_what_cannot_be_judged_is_not_scored():
    reward, pixels = open_reward("shapes"), np.zeros((64, 64, 3), np.uint8)
    assert reward([RewardRequest("a cat on a bench", pixels), RewardRequest("a red circle", pixels[:32])]) == [None, None]
    edits = [
        RewardRequest("make the cat red", pixels, {}, [pixels]),
        RewardRequest("remove the star", pixels, {}, [pixels] * 2),
    ]
    empty = shapes.render(shapes.Scene((), "white"))
    assert reward([*edits, RewardRequest("remove the star", empty, {}, [empty])]) == [None] * 3  # there is no star
