"""Three kinds of prompt that people who are new to the dataset try at once, beside the benchmark's own categories.

    counted pairs     two kinds of object, at least one of them several times: "a large yellow star and three orange circles"
    introduced words  a word after an introduction: 'a picture of the word "cat" in pink'
    pink pairs        something pink beside another color: "a pink cross next to a red circle"

The language is that of the other prompts, and so are the combinations that training never sees (holdout.py): held-out prompts
ask for one, training prompts for none, so that the two have no prompt in common.
"""

import dataclasses
import random

from nextstep_jax.data.shapes.holdout import held_out_in
from nextstep_jax.data.shapes.language import realize
from nextstep_jax.data.shapes.layout import random_kind, random_scene, scatter
from nextstep_jax.data.shapes.meaning import Description, describe
from nextstep_jax.data.shapes.scene import BACKGROUNDS, COLORS, SQUARE, Scene

# By category, the kinds of combination of which a held-out scene holds one.
_HELD_OUT = {
    "counted pairs": {"counting", "attribute binding"},
    "introduced words": {"words"},
    "pink pairs": {"attribute binding"},
}
NEWCOMER_CATEGORIES = tuple(_HELD_OUT)

_COUNTS = ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2))


def draw_newcomer_prompt(
    category: str, rng: random.Random, split: str, canvas: tuple[int, int] = SQUARE
) -> tuple[str, Description, Scene]:
    """A prompt of one of NEWCOMER_CATEGORIES, what it says, and a scene of which it is true.

    Args:
      split: "train" for a scene without held-out combinations, "heldout" for one with the category's own.
      canvas: (width, height) in pixels.
    """
    if category == "introduced words":
        scene = random_scene("words", rng, split, canvas)
        truth = describe(scene, rng, relations=1)
        return realize(truth, rng, introduced=True), truth, scene
    while True:
        drawn = _draw_counted_pair(rng, canvas) if category == "counted pairs" else _draw_pink_pair(rng, canvas)
        if drawn is None:
            continue
        held = held_out_in(drawn)
        if held & _HELD_OUT[category] if split == "heldout" else not held:
            truth = describe(drawn, rng, sizes=1, relations=0)
            # People name the size of one thing and not of another.
            some = [m if rng.random() < 0.4 else dataclasses.replace(m, size=None) for m in truth.mentions]
            truth = dataclasses.replace(truth, mentions=tuple(some))
            return realize(truth, rng), truth, drawn


def _draw_counted_pair(rng: random.Random, canvas: tuple[int, int]) -> Scene | None:
    first, second = random_kind(rng), random_kind(rng)
    if first[:2] == second[:2]:
        return None
    a, b = rng.choice(_COUNTS)
    objects = scatter([first] * a + [second] * b, rng, canvas)
    return None if objects is None else Scene(objects, rng.choice(tuple(BACKGROUNDS)), canvas=canvas)


def _draw_pink_pair(rng: random.Random, canvas: tuple[int, int]) -> Scene | None:
    (shape, _, size), (other_shape, _, other_size) = random_kind(rng), random_kind(rng)
    other_color = rng.choice([color for color in COLORS if color != "pink"])
    objects = scatter([(shape, "pink", size), (other_shape, other_color, other_size)], rng, canvas)
    return None if objects is None else Scene(objects, rng.choice(tuple(BACKGROUNDS)), canvas=canvas)
