"""Choices between a stored sample and its sequence: reproducible, at the stated rates, and nothing else."""

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep_jax.data.augment import (
    AS_STORED,
    Augmentation,
    arrange,
    arrange_preference,
    choose_pair,
    draws,
    make_seed,
    split_preference,
)
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS
from tests.data.made_up import image

MAKE_SEED = json.loads((GOLDENS / "sequences_feb.json").read_text())["make_seed"]
DRAWS = 2000

PAIR = Sample((TextPart("a cat"), image(1, 1, 0)), "pair", "pair", caption_variants={"short": "cat", "long": "a cat on a mat"})
SOURCE, OTHER, TARGET = image(1, 1, 1), image(1, 2, 2), image(2, 1, 3)
EDIT = Sample((SOURCE, TextPart("make it red"), TARGET), "edit", "edit")
EDIT_OF_TWO = Sample((SOURCE, OTHER, TextPart("join them"), TARGET), "edit", "edit of two")


def shape(parts) -> str:
    """Texts as "t", images by their number of rows and columns."""
    return " ".join("t" if isinstance(part, TextPart) else f"{part.height // 16}*{part.width // 16}" for part in parts)


def rates(sample, **changes) -> dict[str, float]:
    """How often each order of parts comes out."""
    augmentation = dataclasses.replace(AS_STORED, **changes)
    counts = {}
    for index in range(DRAWS):
        order = shape(arrange(sample, augmentation, 7, index))
        counts[order] = counts.get(order, 0) + 1 / DRAWS
    return counts


@pytest.mark.parametrize("case", MAKE_SEED, ids=lambda case: str(case["args"]))
def test_make_seed(case):
    assert make_seed(*case["args"]) == case["seed"]
    assert draws(*case["args"]).random() == case["first_random"]


def test_as_stored_changes_nothing():
    for sample in (PAIR, EDIT, EDIT_OF_TWO):
        for index in range(50):
            parts = arrange(sample, AS_STORED, 0, index)
            assert shape(parts) == shape(sample.parts)
            assert [part.text for part in parts if isinstance(part, TextPart)] == [part.text for part in sample.texts]


def test_image_first():
    assert rates(PAIR, image_first=0.3) == pytest.approx({"t 1*1": 0.7, "1*1 t": 0.3}, abs=0.04)


def test_caption_dropout():
    assert rates(PAIR, caption_dropout=0.2) == pytest.approx({"t 1*1": 0.8, "1*1": 0.2}, abs=0.04)


def test_source_dropout():
    expected = {"1*1 t 2*1": 0.8, "t 2*1": 0.1, "1*1 2*1": 0.1}
    assert rates(EDIT, source_dropout=0.2) == pytest.approx(expected, abs=0.03)
    assert rates(EDIT_OF_TWO, source_dropout=1) == {"1*1 1*2 t 2*1": pytest.approx(1)}


def test_two_source_dropout():
    expected = {"1*1 1*2 t 2*1": 0.7, "1*2 t 2*1": 0.09, "1*1 t 2*1": 0.21}
    assert rates(EDIT_OF_TWO, two_source_dropout=0.3) == pytest.approx(expected, abs=0.03)
    assert rates(EDIT, two_source_dropout=1) == {"1*1 t 2*1": pytest.approx(1)}


def test_sources_last():
    assert rates(EDIT_OF_TWO, sources_last=0.1) == pytest.approx({"1*1 1*2 t 2*1": 0.9, "t 1*1 1*2 2*1": 0.1}, abs=0.03)


def test_only_the_last_image_of_an_edit_keeps_its_loss():
    for index in range(50):
        parts = arrange(EDIT_OF_TWO, Augmentation(), 0, index)
        *sources, target = [part for part in parts if isinstance(part, ImagePart)]
        assert target.loss and not any(source.loss for source in sources)
    silent = dataclasses.replace(EDIT, parts=(*EDIT.parts[:2], dataclasses.replace(TARGET, loss=False)))
    assert not arrange(silent, AS_STORED, 0, 0)[-1].loss


def texts(sample, **changes) -> set[str]:
    augmentation = dataclasses.replace(AS_STORED, **changes)
    arranged = [arrange(sample, augmentation, 1, index) for index in range(200)]
    return {part.text for parts in arranged for part in parts if isinstance(part, TextPart)}


def test_wordings():
    assert texts(PAIR, caption_variants={"": 1, "short": 1, "long": 0, "absent": 5}) == {"a cat", "cat"}
    assert texts(PAIR, caption_variants={"absent": 1}) == {"a cat"}
    assert texts(PAIR, caption_variants={"long": 1}) == {"a cat on a mat"}


def test_templates_and_capitals():
    assert texts(PAIR, templates=("{text}", "draw {text}!")) == {"a cat", "draw a cat!"}
    assert texts(PAIR, capitalize=0.5) == {"a cat", "A cat"}
    document = Sample((TextPart("as it is"),), "text", "document")
    assert texts(document, capitalize=1.0, templates=("draw {text}",)) == {"as it is"}
    braces = Sample((TextPart("{0.__class__}"), image(1, 1, 0)), "pair", "braces")
    assert texts(braces, templates=("draw {text}",)) == {"draw {0.__class__}"}


def test_same_index_same_choice_and_epochs_differ():
    augmentation = Augmentation()
    first = [shape(arrange(PAIR, augmentation, 3, index)) for index in range(200)]
    assert first == [shape(arrange(PAIR, augmentation, 3, index)) for index in range(200)]
    assert first != [shape(arrange(PAIR, augmentation, 3, 200 + index)) for index in range(200)]
    assert first != [shape(arrange(PAIR, augmentation, 4, index)) for index in range(200)]


@pytest.mark.parametrize(
    "changes",
    [
        {"image_first": 1.5},
        {"preference_flip": 2},
        {"caption_dropout": -0.1},
        {"caption_variants": {"a": -1}},
        {"templates": ("x",)},
    ],
)
def test_bad_settings(changes):
    with pytest.raises(InputError, match=next(iter(changes))[:6]):
        Augmentation(**changes)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(0, 2**31))
def test_the_preferred_image_is_of_the_best_quarter_and_scores_more(scores, seed):
    if len(set(scores)) == 1:
        with pytest.raises(InputError, match="none is preferred"):
            choose_pair(scores, random.Random(seed))
        return
    winner, loser = choose_pair(scores, random.Random(seed))
    assert scores[winner] > scores[loser]
    best = max(1, len(scores) // 4)
    assert sum(score > scores[winner] for score in scores) < best  # no more than the best quarter's others are better
    assert sum(score < scores[loser] for score in scores) < len(scores) - best


def test_every_pair_of_the_best_four_and_the_others_is_drawn():
    drawn = {choose_pair(range(16), random.Random(seed)) for seed in range(2_000)}
    assert drawn == {(winner, loser) for winner in range(12, 16) for loser in range(12)}


@pytest.mark.parametrize("scores", [None, [1.0], [1.0, "2"], [1.0, float("nan")], "12"])
def test_a_preference_without_a_number_for_each_image_is_refused(scores):
    images = tuple(ImagePart.from_latents(np.zeros((2, 2, 16), np.float16), 16, 16) for _ in range(2))
    sample = Sample((TextPart("a"), *images), "preference", "k")
    object.__setattr__(sample, "metadata", {"scores": scores})
    with pytest.raises(InputError, match="scores"):
        arrange(sample, Augmentation(), 0, 0)


def test_a_preference_is_its_texts_with_one_image_and_with_another():
    images = [ImagePart.from_latents(np.full((2, 2, 16), i, np.float16), 16, 16) for i in range(5)]
    sample = Sample((TextPart("a"), TextPart("b"), *images), "preference", "k", metadata={"scores": [0, 4, 1, 2, 3]})
    seen = set()
    for index in range(50):
        (*texts, winner), (*again, loser) = arrange_preference(sample, Augmentation(), 0, index)
        assert texts == again == [TextPart("a", loss=False), TextPart("b", loss=False)] and winner == images[1]
        assert arrange(sample, Augmentation(preferred_only=True), 0, index) == [*sample.texts, winner]
        seen.add(float(loser.latents().flat[0]))
    assert seen == {0, 2, 3, 4}


def test_candidates_of_a_preference_may_have_a_text_of_their_own():
    """A plan stands before its image; what all share, the image that an instruction is about too, stands before either."""
    before = ImagePart.from_latents(np.full((2, 2, 16), 9, np.float16), 16, 16, loss=False)
    images = [ImagePart.from_latents(np.full((2, 2, 16), i, np.float16), 16, 16) for i in range(4)]
    own = [part for i, image in enumerate(images) for part in (TextPart(f"plan {i}"), image)]
    shared = (before, TextPart("make it red", loss=False), TextPart("think", loss=False))
    sample = Sample((*shared, *own), "preference", "k", metadata={"scores": [0, 0, 1, 0]})
    losers = set()
    for index in range(50):
        winner, loser = arrange_preference(sample, Augmentation(), 0, index)
        assert winner == [*shared, *own[4:6]] and loser[:3] == list(shared)
        losers.add(own.index(loser[3]))
        assert loser[4] == own[own.index(loser[3]) + 1]
    assert losers == {0, 2, 6}
    assert split_preference(sample) == (list(shared), [own[i : i + 2] for i in range(0, 8, 2)])


def test_a_prompt_that_is_a_target_is_shared_all_the_same():
    images = [ImagePart.from_latents(np.full((2, 2, 16), i, np.float16), 16, 16) for i in range(3)]
    sample = Sample((TextPart("a"), *images), "preference", "k")
    assert split_preference(sample) == ([TextPart("a")], [[image] for image in images])


def test_preferences_that_are_none_are_refused():
    source = ImagePart.from_latents(np.zeros((2, 2, 16), np.float16), 16, 16, loss=False)
    image = dataclasses.replace(source, loss=True)
    some = Sample((TextPart("a"), image, TextPart("b"), image, image), "preference", "k")
    with pytest.raises(InputError, match="2 of the 3 images of a preference come after a text of their own"):
        split_preference(some)
    with pytest.raises(InputError, match="at least 2 images that are targets, found 1"):
        split_preference(Sample((source, TextPart("a"), image), "preference", "k"))


def test_flipped_preferences_are_the_same_pairs_the_other_way_round():
    images = [ImagePart.from_latents(np.full((2, 2, 16), i, np.float16), 16, 16) for i in range(8)]
    sample = Sample((TextPart("a"), *images), "preference", "k", metadata={"scores": [0, 1, 0, 1, 0, 0, 1, 0]})

    def pairs(flip):
        drawn = [arrange_preference(sample, Augmentation(preference_flip=flip), 3, index) for index in range(400)]
        return [(winner[-1], loser[-1]) for winner, loser in drawn]

    plain, half, inverted = pairs(0), pairs(0.5), pairs(1)
    assert inverted == [(loser, winner) for winner, loser in plain]
    assert all(set(pair) == set(other) for pair, other in zip(half, plain, strict=True))
    assert sum(pair == other for pair, other in zip(half, plain, strict=True)) == pytest.approx(200, abs=40)


@given(st.integers(0, 2**63 - 1), st.integers(0, 62))
def test_every_bit_of_a_seed_counts(seed, bit):
    """The release's seeds have 31 bits; a number beyond them is drawn from digit by digit."""
    other = seed ^ (1 << bit)
    assert draws("wording", seed, 3).random() != draws("wording", other, 3).random()


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_small_numbers_seed_as_in_the_release(seed, index):
    assert draws("drop_text", seed, index).random() == random.Random(make_seed("drop_text", seed, index)).random()
