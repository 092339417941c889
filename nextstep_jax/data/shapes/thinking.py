"""What a model thinks before it draws an edit: the objects and their places before, the change, and the same afterwards.

The nine places are numbered row by row:

    1 empty empty 1 empty 2 circle red 2 small ... 9 star blue 9 large. circle red 2 small then circle green 2 small.
    1 empty empty empty 2 circle green small ... 9 star blue large

A new background changes no place; between the tables stands "background white then background gray".

This order lets a small model look up what an instruction means, since a transformer most easily finds the word that follows
words it has. An instruction gives a shape and perhaps a color; in the first table a shape is followed by its color, and both by
their place. In either table, what lies at a place follows its number.
"""

import itertools
import random

from nextstep_jax.data.shapes.holdout import held_out_in
from nextstep_jax.data.shapes.layout import CENTERS
from nextstep_jax.data.shapes.scene import COLORS, SHAPES, SIZES, Object, Scene

_PLACES: dict[tuple[float, float], int] = {
    center: number for number, center in enumerate(sorted(CENTERS, key=lambda c: c[::-1]), 1)
}


def thinking_text(before: Scene, after: Scene) -> str:
    """The thinking text of a change of one object or of the background. Objects must be at `layout.CENTERS`."""
    second = " ".join(" ".join((str(number), *_thing(after, center))) for center, number in _PLACES.items())
    return f"{_table(before)}. {_change(before, after)}. {second}"


def table(rng: random.Random) -> tuple[str, str]:
    """A first table of three to five objects, no two alike in shape and color, and the same objects in another order.

    The second text takes nothing but lookups in the first. Neither holds a held-out combination.
    """
    while True:
        kinds = rng.sample([*itertools.product(SHAPES, COLORS)], rng.choice((3, 4, 5)))
        centers = rng.sample(CENTERS, len(kinds))
        scene = Scene(tuple(Object(*kind, rng.choice(SIZES), at) for kind, at in zip(kinds, centers, strict=True)))
        if not held_out_in(scene):
            return f"{_table(scene)}.", " then ".join(_entry(scene, center) for center in centers)


def _change(before: Scene, after: Scene) -> str:
    gone, new = _place_of_difference(before, after), _place_of_difference(after, before)
    gone, new = gone or new, new or gone
    if gone is None or new is None:
        return f"background {before.background} then background {after.background}"
    return f"{_entry(before, gone)} then {_entry(after, new)}"


def _place_of_difference(scene: Scene, other: Scene) -> tuple[float, float] | None:
    """Where the object is that the other scene does not have."""
    return next((thing.center for thing in scene.objects if thing not in other.objects), None)


def _table(scene: Scene) -> str:
    """The first table."""
    return " ".join(f"{number} {_entry(scene, center)}" for center, number in _PLACES.items())


def _entry(scene: Scene, center: tuple[float, float]) -> str:
    shape, color, size = _thing(scene, center)
    return f"{shape} {color} {_PLACES[center]} {size}"


def _thing(scene: Scene, center: tuple[float, float]) -> tuple[str, str, str]:
    """Shape, color and size of what lies there."""
    there = (thing for thing in scene.objects if thing.center == center)
    return next(((thing.shape, thing.color, thing.size) for thing in there), ("empty", "empty", "empty"))
