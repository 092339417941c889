"""Stories: a scene that changes step by step, a sentence before each image, and how such sentences are read.

first, draw a large red circle on a white background. IMAGE then add a blue star on the left. IMAGE
finally, make the circle smaller. IMAGE now there is a red circle and a blue star.
"""

import random
from collections.abc import Sequence

from nextstep_jax.data.shapes.edits import OPERATIONS, Edit, edit_held_out, instruct, parse_edit, random_change
from nextstep_jax.data.shapes.holdout import held_out_in
from nextstep_jax.data.shapes.language import REGION_WORDS, enumerate_phrases, noun_phrase, parse, split_words
from nextstep_jax.data.shapes.meaning import Description, describe
from nextstep_jax.data.shapes.scene import BACKGROUNDS, Scene
from nextstep_jax.errors import InputError

MAX_STORY = 5  # images
_LAST = "finally,"
_CONNECTIVES = ("then", "now", "next,", "after that,")
_NOTHING = "now there is nothing"


def story(rng: random.Random, counts: Sequence[int]) -> list[tuple[str, Scene]]:
    """As many images as one of `counts` says, each one edit further, and the sentence before each. Fit for training."""
    while True:
        scene = Scene((), rng.choice(tuple(BACKGROUNDS)))
        count = rng.choice(counts)
        steps = []
        if rng.random() < 0.5:
            steps.append((f"start with an empty {scene.background} background.", scene))
        while len(steps) < count:
            operation = "add" if not scene.objects or rng.random() < 0.5 else rng.choice(OPERATIONS)
            after, edit = random_change(scene, operation, rng)
            if after is None or edit is None or edit_held_out(edit, scene, after) or held_out_in(after):
                break
            if not steps:
                place = f" {rng.choice(REGION_WORDS[edit.value])}" if edit.value else ""
                text = f"first, draw {noun_phrase(edit.target, rng)}{place} on a {scene.background} background."
            else:
                connective = _LAST if len(steps) == count - 1 else rng.choice(_CONNECTIVES)
                text = f"{connective} {instruct(edit, rng)}."
            scene = after
            steps.append((text, scene))
        if len(steps) == count:
            return steps


def closing(scene: Scene, rng: random.Random) -> str:
    """The sentence after the last image: what there is, without sizes and places. Text after an image is what the model can
    end after (data/sequence.py), an image is not."""
    return f"now there is {inventory_in_words(scene, rng)}."


def inventory_in_words(scene: Scene, rng: random.Random) -> str:
    mentions = describe(scene, rng, sizes=0).mentions
    return enumerate_phrases([noun_phrase(mention, rng) for mention in mentions]) if mentions else "nothing"


def parse_beginning(text: str) -> Description:
    """What the first image must show. InputError names the word at which it leaves the dataset's language."""
    return parse(_without(text, ("first,", "start with"), "a beginning"))


def parse_step(text: str) -> tuple[Edit, bool]:
    """The edit that a later sentence asks for, and whether it says that it is the last."""
    return parse_edit(_without(text, (_LAST, *_CONNECTIVES), "a step")), text.startswith(_LAST)


def parse_closing(text: str) -> Description:
    """What a closing sentence says there is."""
    if not text.endswith("."):
        raise InputError(f'cannot read "{text}": expected a full stop at the end')
    if split_words(text) == split_words(f"{_NOTHING}."):
        return Description(())
    return parse(_without(text, ("now",), "a closing sentence"))


def _without(text: str, openings: Sequence[str], expected: str) -> str:
    opening = next((opening for opening in openings if text.startswith(f"{opening} ")), None)
    if opening is None:
        raise InputError(f'cannot read "{text}": expected {expected}, which opens with {" or ".join(map(repr, openings))}')
    return text.removeprefix(opening)
