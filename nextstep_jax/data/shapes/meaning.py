"""What a caption says, and whether it is true of a scene.

A description is closed: it names everything in the image. What a mention leaves open (color, size) may be anything.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterable, Sequence

from nextstep_jax.data.shapes.scene import REGIONS, RELATIONS, Object, Scene, Word, clearly_related, in_region, relation

# Tolerance, in pixels, for scenes that were read from an image; the dataset itself is exact.
REGION_SLACK = 6
INVERSE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))


@dataclasses.dataclass(frozen=True)
class Mention:
    """One noun phrase: `count` objects alike, or (shape None) the word `text`. None leaves an attribute open."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    count: int = 1
    text: str | None = None

    def fits(self, thing: Object | Word) -> bool:
        if self.color not in (None, thing.color):
            return False
        if isinstance(thing, Word):
            return self.text == thing.text
        return self.shape == thing.shape and self.size in (None, thing.size)

    def __str__(self):
        what = f'word "{self.text}"' if self.shape is None else self.shape + ("s" if self.count > 1 else "")
        return " ".join(filter(None, (str(self.count) if self.count > 1 else "", self.size, self.color, what)))


@dataclasses.dataclass(frozen=True)
class Description:
    """The meaning of a caption.

    Attributes:
      mentions: everything there is; empty for a bare background.
      relation: where the first of exactly two mentions, of one object each, lies relative to the second.
      region: where in the image the only object lies.
      background: None leaves it open.
    """

    mentions: tuple[Mention, ...]
    relation: str | None = None
    region: str | None = None
    background: str | None = None


def describe(
    scene: Scene,
    rng: random.Random,
    *,
    colors: float = 1.0,
    sizes: float = 0.3,
    background: float = 0.3,
    relations: float = 0.7,
    region: float = 0.25,
    reading_order: float = 0.7,
) -> Description:
    """A true description of a scene that leaves out some of what could be said.

    Args:
      colors, sizes, background, relations, region: the probability that each is mentioned (relations and regions only where
        they are clear). Colors are mentioned for all or none, and always where shapes alone would not tell the objects apart.
      reading_order: the probability that objects without a relation are named in reading order.
    """
    kinds: dict[tuple[str, str], list[Object]] = {}
    for thing in scene.objects:
        kinds.setdefault((thing.shape, thing.color), []).append(thing)
    say_sizes = rng.random() < sizes
    say_colors = rng.random() < colors or len({shape for shape, _ in kinds}) < len(kinds)
    entries: list[tuple[Mention, Sequence[Object | Word]]] = []
    for (shape, color), alike in kinds.items():
        size = alike[0].size if say_sizes and len({thing.size for thing in alike}) == 1 else None
        entries.append((Mention(shape, color if say_colors else None, size, len(alike)), alike))
    if scene.word is not None:
        said_color = scene.word.color if say_colors else None
        entries.append((Mention(color=said_color, text=scene.word.text), [scene.word]))
    rng.shuffle(entries)
    things = [thing for _, group in entries for thing in group]
    said_relation = said_region = None
    if len(things) == len(entries) == 2 and clearly_related(*things) and rng.random() < relations:
        said_relation = relation(*things)
    elif rng.random() < reading_order:
        entries.sort(key=lambda entry: min(thing.center[::-1] for thing in entry[1]))
    mentions = tuple(mention for mention, _ in entries)
    if len(things) == 1 and scene.word is None and rng.random() < region:
        said_region = next((name for name in REGIONS if in_region(things[0].center, name, canvas=scene.canvas)), None)
    said_background = scene.background if not things or rng.random() < background else None
    return Description(mentions, said_relation, said_region, said_background)


def contradiction(description: Description, scene: Scene) -> str | None:
    """Why a scene (rendered, or read from an image) is not what the description says; None if it is.

    A relation is judged by `scene.relation`, a region with REGION_SLACK pixels of slack.
    """
    if description.background not in (None, scene.background):
        return f"the background is {scene.background}, not {description.background}"
    wanted = [mention for mention in description.mentions for _ in range(mention.count)]
    if len(wanted) != len(scene.items):
        return f"expected {_plain(wanted)}, found {inventory(scene)}"
    orders = itertools.permutations(scene.items)
    matches = [order for order in orders if all(m.fits(thing) for m, thing in zip(wanted, order, strict=True))]
    if not matches:
        return f"expected {_plain(wanted)}, found {inventory(scene)}"
    if description.relation and not any(relation(*order) == description.relation for order in matches):
        return f"the {wanted[0]} is not {description.relation} the {wanted[1]}"
    region = description.region
    if region and not any(in_region(order[0].center, region, REGION_SLACK, scene.canvas) for order in matches):
        return f"the {wanted[0]} is not in the region {description.region!r}"
    return None


def inventory(scene: Scene) -> str:
    """What is in a scene, for messages."""
    things = [Mention(thing.shape, thing.color, thing.size) for thing in scene.objects]
    return _plain(things if scene.word is None else [*things, Mention(color=scene.word.color, text=scene.word.text)])


def _plain(mentions: Iterable[Mention]) -> str:
    return ", ".join(map(str, mentions)) or "nothing"
