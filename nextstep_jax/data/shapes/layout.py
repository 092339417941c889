"""Random scenes, by category, with objects that do not touch and relations that are clear."""

import functools
import itertools
import random
from collections.abc import Iterable

from nextstep_jax.data.shapes.holdout import CATEGORIES, held_out_in
from nextstep_jax.data.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    GAP,
    LETTER_PITCH,
    RADII,
    RELATIONS,
    SHAPES,
    SIZES,
    SQUARE,
    WORDS,
    Object,
    Scene,
    Word,
    clearly_related,
    overlap,
    relation,
)

Center = tuple[int, int]


@functools.cache
def centers(canvas: tuple[int, int]) -> tuple[Center, ...]:
    """Where an object's center can lie: where four tokens of 16 x 16 pixels meet."""
    width, height = canvas
    return tuple((x, y) for x in range(16, width, 16) for y in range(16, height, 16))


CENTERS = centers(SQUARE)  # 16, 32 or 48 from the left and from the top

# Usual positions by number of objects. Captions say what there is but seldom where: if all positions were equally likely, an
# object's first token could come anywhere, and a small model would take long to connect it with its word.
LAYOUTS: dict[int, tuple[tuple[tuple[int, int], ...], ...]] = {
    1: (((32, 32),),),
    2: (((16, 32), (48, 32)), ((32, 16), (32, 48))),
    3: (((16, 16), (48, 16), (32, 48)), ((32, 16), (16, 48), (48, 48))),
    4: (((16, 16), (48, 16), (16, 48), (48, 48)),),
}
USUAL = 0.7  # how often objects take one of LAYOUTS; otherwise they go anywhere


@functools.cache
def layouts(count: int, canvas: tuple[int, int]) -> tuple[tuple[Center, ...], ...]:
    """LAYOUTS on a canvas: what stood at an edge of the square stands at that edge, what stood in the middle before the middle.

    Objects can overlap there: three do not fit on 80 x 48 pixels.
    """

    def place(at: int, side: int) -> int:
        return {16: 16, 32: _middle(side), 48: side - 16}[at]

    width, height = canvas
    return tuple(tuple((place(x, width), place(y, height)) for x, y in layout) for layout in LAYOUTS[count])


def _middle(side: int) -> int:
    """The border between two tokens that is nearest to the middle, of two the first."""
    return side // 32 * 16


# How often each category is drawn for training. Colors, positions and words take the most learning.
CATEGORY_WEIGHTS = dict(zip(CATEGORIES, (0.12, 0.08, 0.16, 0.16, 0.18, 0.16, 0.14), strict=True))


def random_scene(category: str, rng: random.Random, split: str = "train", canvas: tuple[int, int] = SQUARE) -> Scene:
    """A scene of a category: for "train" one without held-out combinations, for "heldout" one with the category's own."""
    while True:
        scene = _draw(category, rng, canvas)
        if scene is not None:
            held = held_out_in(scene)
            if category in held if split == "heldout" else not held:
                return scene


def random_category(rng: random.Random) -> str:
    return rng.choices(CATEGORIES, tuple(CATEGORY_WEIGHTS.values()))[0]


def free_centers(size: str, others: Iterable[Object | Word], canvas: tuple[int, int] = SQUARE) -> list[Center]:
    """The `centers` where an object of a size would touch none of the others (as `scene.overlap` judges)."""
    free, reach = list(centers(canvas)), RADII[size] + GAP
    for other in others:
        (x, y), (w, h) = other.center, other.half_extent
        free = [c for c in free if abs(c[0] - x) >= reach + w or abs(c[1] - y) >= reach + h]
    return free


@functools.cache
def related_centers(size: str, other: str, name: str, canvas: tuple[int, int] = SQUARE) -> list[tuple[Center, Center]]:
    """Pairs of `centers` at which an object of the first size stands in a clear relation to one of the second."""
    b = Object("circle", "red", other, (0, 0))

    @functools.cache
    def suits(dx: int, dy: int) -> bool:
        a = Object("circle", "red", size, (dx, dy))
        return relation(a, b) == name and clearly_related(a, b) and not overlap(a, b)

    return [(p, q) for p, q in itertools.product(centers(canvas), repeat=2) if suits(p[0] - q[0], p[1] - q[1])]


def scatter(
    kinds: list[tuple[str, str, str]], rng: random.Random, canvas: tuple[int, int] = SQUARE
) -> tuple[Object, ...] | None:
    """Objects of the given (shape, color, size), usually in one of `layouts`; None if the last one does not fit."""
    if rng.random() < USUAL:
        usual = rng.choice(layouts(len(kinds), canvas))
        together = tuple(Object(*kind, c) for kind, c in zip(kinds, rng.sample(usual, len(usual)), strict=True))
        return None if any(overlap(a, b) for a, b in itertools.combinations(together, 2)) else together
    placed: tuple[Object, ...] = ()
    for shape, color, size in sorted(kinds, key=lambda kind: -RADII[kind[2]]):
        free = free_centers(size, placed, canvas)
        if not free:
            return None
        placed += (Object(shape, color, size, rng.choice(free)),)
    return placed


def random_kind(rng: random.Random, size: str | None = None) -> tuple[str, str, str]:
    return rng.choice(SHAPES), rng.choice(tuple(COLORS)), size or rng.choice(SIZES)


def _draw(category: str, rng: random.Random, canvas: tuple[int, int]) -> Scene | None:
    background = rng.choice(tuple(BACKGROUNDS))
    if category == "words":
        return _draw_word(background, rng, canvas)
    if category == "counting":
        kind = random_kind(rng)
        count = rng.choice((2, 3, 4))
        # Three large objects fit only side by side; with three or more all are small.
        kind = kind if count == 2 else (*kind[:2], "small")
        extra = [random_kind(rng, "small")] if count < 4 and rng.random() < 0.25 else []
        objects = None if extra and extra[0][:2] == kind[:2] else scatter([kind] * count + extra, rng, canvas)
        return None if objects is None else Scene(objects, background, canvas=canvas)
    if category == "position":
        a, b = random_kind(rng), random_kind(rng)
        if a[:2] == b[:2]:
            return None
        places = related_centers(a[2], b[2], rng.choice(RELATIONS), canvas)
        if rng.random() < USUAL:
            usual = layouts(2, canvas)
            places = [pair for pair in places if pair in usual or pair[::-1] in usual]
        if not places:  # nothing lies above anything on 48 pixels
            return None
        p, q = rng.choice(places)
        return Scene((Object(*a, p), Object(*b, q)), background, canvas=canvas)
    count = {"single object": 1, "two objects": 2, "colors": 1, "attribute binding": 2 if rng.random() < 0.6 else 3}[category]
    kinds = [random_kind(rng, "small" if count == 3 else None) for _ in range(count)]
    if len({kind[:2] for kind in kinds}) < count or (category == "two objects" and kinds[0][0] == kinds[1][0]):
        return None
    objects = scatter(kinds, rng, canvas)
    return None if objects is None else Scene(objects, background, canvas=canvas)


def _draw_word(background: str, rng: random.Random, canvas: tuple[int, int]) -> Scene | None:
    """A word on a line of its own, alone or with an object below or above it. Few lines, each one row of tokens, and centered
    words are easier to learn. None where the word is wider than the canvas.
    """
    width, height = canvas
    text, color = rng.choice(WORDS), rng.choice(tuple(COLORS))
    half = LETTER_PITCH * len(text) // 2
    if 2 * half > width:
        return None
    # Letters meet the borders of tokens as on the square, if there is room.
    x = _middle(width) if half <= _middle(width) else width // 2
    if rng.random() < 0.6:
        usual = _middle(height) - 8
        others = [y for y in range(8, height, 16) if y != usual]
        line = usual if rng.random() < USUAL else rng.choice(others)
        return Scene((), background, Word(text, color, (x, line)), canvas)
    word = Word(text, color, (x, rng.choice((8, height - 8))))
    kind = random_kind(rng)
    free = [c for c in free_centers(kind[2], (word,), canvas) if clearly_related(Object(*kind, c), word)]
    if rng.random() < USUAL:
        free = [c for c in free if c[0] == _middle(width)]
    return Scene((Object(*kind, rng.choice(free)),), background, word, canvas) if free else None
