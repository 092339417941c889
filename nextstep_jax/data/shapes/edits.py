"""Edits: the operations, their wording, and the scene they lead to."""

import dataclasses
import random
from collections.abc import Iterable
from typing import Any

from nextstep_jax.data.shapes.holdout import is_held_out
from nextstep_jax.data.shapes.language import REGION_WORDS, Reader, noun_phrase
from nextstep_jax.data.shapes.layout import free_centers, random_kind
from nextstep_jax.data.shapes.meaning import Mention
from nextstep_jax.data.shapes.scene import BACKGROUNDS, COLORS, REGIONS, SHAPES, SIZES, Object, Scene, in_region, overlap
from nextstep_jax.errors import InputError

OPERATIONS = ("recolor", "remove", "add", "move", "resize", "reshape", "background")


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change to a scene.

    Attributes:
      operation: one of OPERATIONS.
      target: the Mention of the object it is about (for "add" the new one); None for "background".
      value: the new color, size, shape, region or background; for "add" the region or None.
    """

    operation: str
    target: Any = None
    value: Any = None


def random_edit(scene: Scene, operation: str, rng: random.Random) -> Edit | None:
    """A random edit that applies to the scene and changes it; None if this draw does not."""
    if operation == "background":
        return Edit(operation, value=_other(BACKGROUNDS, scene.background, rng))
    if operation == "add":
        kind = random_kind(rng)
        region = rng.choice((*REGIONS, None))
        size = kind[2] if rng.random() < 0.6 else None
        taken = any((thing.shape, thing.color) == kind[:2] for thing in scene.objects)
        return None if taken or len(scene.objects) >= 4 else Edit(operation, Mention(*kind[:2], size), region)
    if not scene.objects:
        return None
    thing = rng.choice(scene.objects)
    target = reference(scene, thing, rng)
    if target is None:
        return None
    if operation == "recolor":
        return Edit(operation, target, _other(COLORS, thing.color, rng))
    if operation == "reshape":
        return Edit(operation, target, _other(SHAPES, thing.shape, rng))
    if operation == "resize":
        return Edit(operation, target, _other(SIZES, thing.size, rng))
    if operation == "move":
        # Not to where it nearly is already, so that the move can be seen.
        regions = [region for region in REGIONS if not in_region(thing.center, region, slack=8, canvas=scene.canvas)]
        return Edit(operation, target, rng.choice(regions)) if regions else None
    return Edit(operation, target)


def random_change(scene: Scene, operation: str, rng: random.Random) -> tuple[Scene | None, Edit | None]:
    """A random edit and the scene after it, in which no two objects are alike; (None, None) if this draw gives none."""
    edit = random_edit(scene, operation, rng)
    after = None if edit is None else apply_edit(edit, scene, rng)
    if after is None or len({(thing.shape, thing.color) for thing in after.objects}) < len(after.objects):
        return None, None
    return after, edit


def reference(scene: Scene, thing: Object, rng: random.Random) -> Mention | None:
    """How to refer to an object: by shape, and by color where needed or at random; None if another object matches, too."""
    alike = [other for other in scene.objects if other.shape == thing.shape]
    if len(alike) > 1 and sum(other.color == thing.color for other in alike) > 1:
        return None
    return Mention(thing.shape, thing.color if len(alike) > 1 or rng.random() < 0.4 else None)


def find(scene: Scene, target: Mention) -> int:
    """The index of the object that a reference means. InputError unless there is exactly one."""
    found = [i for i, thing in enumerate(scene.objects) if target.fits(thing)]
    if len(found) != 1:
        raise InputError(f"the image holds {len(found)} objects that are a {target}; an edit needs exactly one")
    return found[0]


def apply_edit(edit: Edit, scene: Scene, rng: random.Random) -> Scene | None:
    """The scene after an edit, or None where there is no room for it.

    A moved object goes to the nearest free position of `layout.CENTERS` in the region; an added one to any free position (in
    the region). All others stay where they are; a resized one needs room there.
    """
    if edit.operation == "background":
        return dataclasses.replace(scene, background=edit.value)
    if edit.operation == "add":
        for size in (edit.target.size,) if edit.target.size else rng.sample(SIZES, 2):
            free = free_centers(size, scene.items, scene.canvas)
            free = [c for c in free if edit.value is None or in_region(c, edit.value, canvas=scene.canvas)]
            if free:
                added = Object(edit.target.shape, edit.target.color, size, rng.choice(free))
                return dataclasses.replace(scene, objects=(*scene.objects, added))
        return None
    index = find(scene, edit.target)
    thing = scene.objects[index]
    others = scene.objects[:index] + scene.objects[index + 1 :]
    if edit.operation == "remove":
        return dataclasses.replace(scene, objects=others)
    field = {"recolor": "color", "reshape": "shape", "resize": "size", "move": None}[edit.operation]
    changed = dataclasses.replace(thing, **{field: edit.value}) if field else thing
    if edit.operation == "resize" and any(overlap(changed, other) for other in others):
        return None
    if edit.operation == "move":
        x, y = thing.center
        free = free_centers(changed.size, others, scene.canvas)
        free = [c for c in free if in_region(c, edit.value, canvas=scene.canvas)]
        if not free:
            return None
        changed = dataclasses.replace(changed, center=min(free, key=lambda c: (c[0] - x) ** 2 + (c[1] - y) ** 2))
    return dataclasses.replace(scene, objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))


def edit_held_out(edit: Edit, before: Scene, after: Scene) -> bool:
    """Whether training never sees this operation with this outcome (holdout.py)."""
    operation = OPERATIONS.index(edit.operation)
    if edit.operation == "background":
        names = tuple(BACKGROUNDS)
        return is_held_out((operation, names.index(before.background), names.index(after.background)))
    if edit.operation == "remove":
        thing = before.objects[find(before, edit.target)]
    else:
        thing = next(thing for thing in after.objects if thing not in before.objects)
    return is_held_out((operation, SHAPES.index(thing.shape), tuple(COLORS).index(thing.color)))


# --- in words ---------------------------------------------------------------------------------------------------------

_FORMS = {
    "recolor": ("make {} {}", "paint {} {}", "change the color of {} to {}"),
    "remove": ("remove {}", "delete {}", "take away {}"),
    "add": ("add {}", "put {}", "place {}"),
    "move": ("move {} {}", "shift {} {}"),
    "resize": ("make {} {}",),
    "reshape": ("turn {} into {}", "replace {} with {}", "change {} into {}"),
    "background": ("make the background {}", "change the background to {}"),
}
EDIT_VERBS = frozenset(form.split()[0] for forms in _FORMS.values() for form in forms)
_MOVE_WORDS = {region: f"to the {region}" for region in REGIONS}
_RESIZE_WORDS = {"large": ("larger", "bigger"), "small": ("smaller",)}
_RESIZE_OF = {word: size for size, words in _RESIZE_WORDS.items() for word in words}


def instruct(edit: Edit, rng: random.Random) -> str:
    """Put an edit into words; `parse_edit` gives it back."""
    form = rng.choice(_FORMS[edit.operation])
    if edit.operation == "background":
        return form.format(edit.value)
    if edit.operation == "add":
        what = noun_phrase(edit.target, rng)
        return f"{form.format(what)} {rng.choice(REGION_WORDS[edit.value])}" if edit.value else f"add {what}"
    value = edit.value
    if edit.operation == "move":
        value = _MOVE_WORDS[value]
    elif edit.operation == "resize":
        value = rng.choice(_RESIZE_WORDS[value])
    elif edit.operation == "reshape":
        value = f"a {value}"
    return form.format(noun_phrase(edit.target, rng, article="the"), value)


def parse_edit(text: str) -> Edit:
    """What an instruction asks for. InputError names the word at which it leaves the dataset's language."""
    reader = Reader(text)
    if reader.take_any(("make the background", "change the background to")):
        edit = Edit("background", value=reader.choice(BACKGROUNDS, "a background"))
    elif reader.take_any(("remove", "delete", "take away")):
        edit = Edit("remove", reader.reference())
    elif reader.take_any(("add", "put", "place")):
        target = reader.noun_phrase()
        region = reader.one_of([(words, region) for region, forms in REGION_WORDS.items() for words in forms])
        if target.shape is None or target.color is None or target.count > 1:
            raise InputError(f'cannot read "{text}": one object of a named color is added at a time')
        edit = Edit("add", target, region)
    elif reader.take_any(("move", "shift")):
        target = reader.reference()
        region = reader.one_of([(words, region) for region, words in _MOVE_WORDS.items()])
        if region is None:
            raise reader.error("where to")
        edit = Edit("move", target, region)
    elif reader.take_any(("turn", "replace")):
        target = reader.reference()
        edit = Edit("reshape", target, _new_shape(reader))
    elif reader.take("change the color of"):
        target = reader.reference()
        reader.expect("to")
        edit = Edit("recolor", target, reader.choice(COLORS, "a color"))
    elif reader.take("change"):
        target = reader.reference()
        edit = Edit("reshape", target, _new_shape(reader))
    elif reader.take_any(("make", "paint")):
        target = reader.reference()
        value = reader.choice((*COLORS, *_RESIZE_OF), "a color or a size")
        edit = Edit("recolor", target, value) if value in COLORS else Edit("resize", target, _RESIZE_OF[value])
    else:
        raise reader.error("an instruction")
    reader.finish()
    return edit


def _new_shape(reader: Reader) -> str:
    if not reader.take_any(("into a", "with a")):
        raise reader.error('"into a" or "with a"')
    return reader.choice(SHAPES, "a shape")


def _other(names: Iterable[str], current: str, rng: random.Random) -> str:
    return rng.choice([name for name in names if name != current])
