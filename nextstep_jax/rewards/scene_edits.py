"""Whether an edited image is what an instruction makes of the image before it, in the built-in dataset's world."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from nextstep_jax.data import shapes
from nextstep_jax.data.shapes.edits import find
from nextstep_jax.data.shapes.meaning import REGION_SLACK, inventory
from nextstep_jax.data.shapes.scene import in_region

PLACE_SLACK = 5.0  # pixels that an object may have moved that should have stayed in place


def edit_failure(edit: shapes.Edit, before: shapes.Scene, after: shapes.Scene) -> str | None:
    """Why an edit is wrong: the scene afterwards lacks what was asked for, or something else changed. None if it is right."""
    background = edit.value if edit.operation == "background" else before.background
    if after.background != background:
        return f"the background is {after.background}, not {background}"
    if after.word != before.word:
        return "there is a word now"
    expected = _expected(edit, before)
    found = f"found {inventory(after)}"
    if len(after.objects) != len(expected):
        return f"expected {len(expected)} objects, {found}"
    problems = min((_problems(expected, order) for order in itertools.permutations(after.objects)), key=len)
    return f"{problems[0]}, {found}" if problems else None


def edited_fraction(edit: shapes.Edit, before: shapes.Scene, after: shapes.Scene) -> float:
    """The objects that a scene should hold after an edit and does, of all that it should hold or holds."""
    expected, found = _expected(edit, before), list(after.objects)
    total, met = max(len(expected), len(found)), 0
    for wanted in expected:
        if (thing := next((thing for thing in found if wanted.is_met_by(thing)), None)) is not None:
            found.remove(thing)
            met += 1
    return met / total if total else 1.0


@dataclasses.dataclass(frozen=True)
class _Expected:
    """An object that should be there after an edit. `size` None: any; `place`: a center, a region, or None for anywhere."""

    shape: str
    color: str
    size: str | None
    place: tuple[float, float] | str | None

    def is_met_by(self, thing: shapes.Object) -> bool:
        if (self.shape, self.color) != (thing.shape, thing.color) or self.size not in (None, thing.size):
            return False
        if isinstance(self.place, str):
            return in_region(thing.center, self.place, REGION_SLACK)
        return self.place is None or max(abs(p - q) for p, q in zip(self.place, thing.center, strict=True)) <= PLACE_SLACK


def _expected(edit: shapes.Edit, before: shapes.Scene) -> list[_Expected]:
    things = [_Expected(thing.shape, thing.color, thing.size, thing.center) for thing in before.objects]
    if edit.operation == "add":
        return [*things, _Expected(edit.target.shape, edit.target.color, edit.target.size, edit.value)]
    if edit.operation != "background":
        index = find(before, edit.target)
        if edit.operation == "remove":
            del things[index]
        else:
            field = {"recolor": "color", "reshape": "shape", "resize": "size", "move": "place"}[edit.operation]
            changes: dict[str, Any] = {field: edit.value}
            things[index] = dataclasses.replace(things[index], **changes)
    return things


def _problems(expected: Sequence[_Expected], things: Sequence[shapes.Object]) -> list[str]:
    return [
        f"expected a {' '.join(filter(None, (e.size, e.color, e.shape)))} {_place(e.place)}"
        for e, thing in zip(expected, things, strict=True)
        if not e.is_met_by(thing)
    ]


def _place(place: tuple[float, float] | str | None) -> str:
    if place is None:
        return "anywhere"
    return f"in the region {place!r}" if isinstance(place, str) else f"at x {place[0]:.0f}, y {place[1]:.0f}"
