"""Which combinations training never sees.

Every category has its kind of combination, written as a tuple of positions in the lists of names:

    single object      shape, size, background of an image's only object
    two objects        the two shapes and the background of an image of two
    counting           how many (2, 3, 4 are 0, 1, 2) of one shape and color
    colors             shape, color, background of an image's only object
    position           shape, color and the relation this object has to an object of another kind
    attribute binding  shape, color, shape, color of two kinds in one image
    words              word, color
    edits              operation, and the shape and color of the object as it comes out (for "background": old, new)

About one combination in eleven of each is held out, evenly: with all members but one fixed, at most one value of that one
is (two of the 16 words). A scene is held out if it holds any such combination, mentioned or not: as (circle, red, below) is
held out, no training image has a red circle below something else, whatever its caption says.
"""

import itertools

from nextstep_jax.data.shapes.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, WORDS, Scene, relation

CATEGORIES = ("single object", "two objects", "counting", "colors", "position", "attribute binding", "words")

_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_COLOR = {name: i for i, name in enumerate(COLORS)}
_BACKGROUND = {name: i for i, name in enumerate(BACKGROUNDS)}
_WORD = {name: i for i, name in enumerate(WORDS)}


def is_held_out(combination: tuple[int, ...]) -> bool:
    """The rule, the same for every category."""
    return sum(factor * member for factor, member in zip((1, 3, 5, 7), combination, strict=False)) % 11 == 4


def held_out_relations() -> list[tuple[str, str, str]]:
    """The (shape, color, relation) combinations that no training sample contains."""
    names = itertools.product(enumerate(SHAPES), enumerate(COLORS), enumerate(RELATIONS))
    return [(s, c, r) for (i, s), (j, c), (k, r) in names if is_held_out((i, j, k))]


def held_out_in(scene: Scene) -> set[str]:
    """The categories of the held-out combinations a scene contains; empty for a scene fit for training."""
    found = set()
    word = scene.word
    if word is not None and word.text in _WORD and is_held_out((_WORD[word.text], _COLOR[word.color])):
        found.add("words")
    kinds: dict[tuple[int, int], int] = {}
    for thing in scene.objects:
        kind = (_SHAPE[thing.shape], _COLOR[thing.color])
        kinds[kind] = kinds.get(kind, 0) + 1
    if any(count > 1 and is_held_out((count - 2, *kind)) for kind, count in kinds.items()):
        found.add("counting")
    if any(is_held_out(a + b) for a, b in itertools.combinations(sorted(kinds), 2)):
        found.add("attribute binding")
    background = _BACKGROUND[scene.background]
    if scene.word is None and len(scene.objects) == 1:
        (thing,) = scene.objects
        if is_held_out((_SHAPE[thing.shape], SIZES.index(thing.size), background)):
            found.add("single object")
        if is_held_out((_SHAPE[thing.shape], _COLOR[thing.color], background)):
            found.add("colors")
    both = sorted(_SHAPE[thing.shape] for thing in scene.objects)
    if scene.word is None and len(both) == 2 and is_held_out((*both, background)):
        found.add("two objects")
    for a, b in itertools.permutations(scene.items, 2):
        if a in scene.objects and (b not in scene.objects or (a.shape, a.color) != (b.shape, b.color)):
            name = relation(a, b)
            if name is not None and is_held_out((_SHAPE[a.shape], _COLOR[a.color], RELATIONS.index(name))):
                found.add("position")
    return found
