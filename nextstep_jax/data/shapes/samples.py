"""Training samples and evaluation prompts, each a pure function of its arguments.

Kinds of sample:

    pair         a caption, then its image
    pair_80x48   the same on a canvas of 80 x 48 pixels; so for each of scene.CANVASES
    pair_newcomer  a pair of one of the kinds that newcomers ask for (newcomer.py)
    caption      an image, then a caption of it (the image is no target)
    edit         an image, an instruction, the image afterwards (only the last is a target)
    thinking     an instruction, an image, thinking text between the thinking tokens, the image afterwards (both are
                 targets; thinking.py)
    interleaved  a story: step by step, text and image in turn
    story        a story of two to five images, each but the first thought through before it is drawn; after the last it
                 says what there is now, and ends
    text         sentences without an image
    table        the first part of a thinking text, but of three to five objects and without an image; then these objects in
                 another order, which is a target and takes nothing but lookups
    letters      an image of letters that spell no word, without a caption, so that an image tokenizer learns letters and not
                 only the words that it has seen in this color

No global random state: every draw comes from a generator seeded with the digest of (kind, index, split, seed).
"""

import dataclasses
import hashlib
import random
from typing import Any

import numpy as np

from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.shapes.edits import (
    EDIT_VERBS,
    OPERATIONS,
    Edit,
    apply_edit,
    edit_held_out,
    find,
    instruct,
    parse_edit,
    random_change,
)
from nextstep_jax.data.shapes.holdout import CATEGORIES, held_out_in
from nextstep_jax.data.shapes.language import (
    BACKGROUND_FORMS,
    INTRODUCTIONS,
    NUMBERS,
    PLURALS,
    REGION_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    caption,
    noun_phrase,
    parse,
    realize,
    split_words,
)
from nextstep_jax.data.shapes.layout import random_category, random_kind, random_scene, scatter
from nextstep_jax.data.shapes.meaning import INVERSE, Mention, describe
from nextstep_jax.data.shapes.newcomer import NEWCOMER_CATEGORIES, draw_newcomer_prompt
from nextstep_jax.data.shapes.scene import (
    BACKGROUNDS,
    CANVAS,
    CANVASES,
    COLORS,
    GLYPHS,
    SHAPES,
    SQUARE,
    WORDS,
    Scene,
    in_region,
    relation,
    render,
)
from nextstep_jax.data.shapes.stories import MAX_STORY, closing, inventory_in_words, parse_beginning, story
from nextstep_jax.data.shapes.thinking import table, thinking_text
from nextstep_jax.errors import InputError

_PAIRS = {"pair": SQUARE} | {f"pair_{width}x{height}": (width, height) for width, height in CANVASES}
KINDS = (*_PAIRS, "pair_newcomer", "caption", "edit", "thinking", "interleaved", "story", "text", "table", "letters")
SPLITS = ("train", "heldout")
PROMPT_CATEGORIES = (*CATEGORIES, "edits", "captions")  # of the benchmark
EXTRA_CATEGORIES = ("stories", *NEWCOMER_CATEGORIES)  # asked for by name

_OLD_KINDS = {"plan": "thinking"}
# The seeds of some names' random streams: published scores refer to the prompts that these draw.
_STREAMS = {"colors": "colours", "thinking": "plan"}

# What a caption of each category says, as arguments of `describe`.
_CAPTION_DETAIL: dict[str, dict[str, float]] = {
    "single object": {"colors": 0, "sizes": 0.5, "background": 0.5},
    "two objects": {"colors": 0, "sizes": 0.3, "background": 0.5, "relations": 0.2},
    "counting": {"colors": 0.9},
    "colors": {},
    "position": {"relations": 1},
    "attribute binding": {"relations": 0},
    "words": {"colors": 0.9, "relations": 1},
}
# What a prompt must mention so that its held-out combination is asked for.
_PROMPT_DETAIL: dict[str, dict[str, float]] = {
    "single object": {"sizes": 1, "background": 1},
    "two objects": {"background": 1, "relations": 0},
    "counting": {"colors": 1},
    "colors": {"background": 1},
    "words": {"colors": 1},
}


Response = np.ndarray | str | list[np.ndarray | str]  # an image, a caption, or a story


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, and the truth to judge the response by.

    Attributes:
      text: what to say to the model; empty for "captions"; for "stories" the first sentence.
      category: one of PROMPT_CATEGORIES or EXTRA_CATEGORIES.
      truth: the meaning of the text, a Description or an Edit; for "captions" None, since there the scene decides.
      scene: the Scene to show with it (`render` draws it): the source of an edit, the image to caption.
    """

    text: str
    category: str
    truth: Any = None
    scene: Any = None


def sample(kind: str, index: int, *, split: str = "train", seed: int = 0) -> Sample:
    """Sample `index` of a kind; training never holds a held-out combination (holdout.py).

    In the split "heldout" edits and the scenes of pairs and captions contain one; stories, sentences and tables merely differ.
    """
    require_known(kind, split)
    rng = _generator(f"{_STREAMS.get(kind, kind)}/{index}", split, seed)
    parts: tuple[TextPart | ImagePart, ...]
    if kind in _PAIRS:
        category = random_category(rng)
        scene = random_scene(category, rng, split, _PAIRS[kind])
        parts = (TextPart(realize(describe(scene, rng, **_CAPTION_DETAIL[category]), rng)), _image(scene))
    elif kind == "pair_newcomer":
        text, _, scene = draw_newcomer_prompt(rng.choice(NEWCOMER_CATEGORIES), rng, split)
        parts = (TextPart(text), _image(scene))
    elif kind == "caption":
        scene = random_scene(random_category(rng), rng, split)
        parts = (_image(scene, loss=False), TextPart(caption(scene, rng)))
    elif kind in ("edit", "thinking"):
        before, edit, after = _random_change(rng.choice(OPERATIONS), rng, split)
        source, instruction = _image(before, loss=False), TextPart(instruct(edit, rng), loss=False)
        if kind == "edit":
            parts = (source, instruction, _image(after))
        else:
            parts = (instruction, source, _thoughts(before, after), _image(after))
    elif kind == "interleaved":
        parts = _told(story(rng, (3, 4)))
    elif kind == "story":
        steps = story(rng, range(2, MAX_STORY + 1))
        parts = (*_told(steps, thinking=True), TextPart(closing(steps[-1][1], rng)))
    elif kind == "table":
        first, again = table(rng)
        parts = (TextPart(first, loss=False), TextPart(again))
    elif kind == "letters":
        parts = (_image(_letters(rng)),)
    else:
        parts = (TextPart(_sentences(rng)),)
    others = {"caption": "pair", "letters": "pair", "thinking": "edit", "story": "interleaved", "table": "text"}
    stored_as = "pair" if kind.startswith("pair") else others.get(kind, kind)
    return Sample(parts, stored_as, f"shapes/{split}/{seed}/{kind}/{index}")


def require_known(kind: str, split: str) -> None:
    """InputError unless there is such a kind of sample and such a split."""
    for what, value, known in (("kind", kind, KINDS), ("split", split, SPLITS)):
        if value not in known:
            renamed = f" (called {_OLD_KINDS[value]!r} now)" if value in _OLD_KINDS else ""
            raise InputError(f"{what} of shapes must be one of {', '.join(known)}, found {value!r}{renamed}")


def sample_scene(index: int, *, split: str = "train", seed: int = 0) -> Scene:
    """Scene `index`, in the mixture of categories of the pairs: images alone, for the image tokenizer."""
    rng = _generator(f"scene/{index}", split, seed)
    return random_scene(random_category(rng), rng, split)


def prompts(split: str, category: str, n: int, *, seed: int = 0, canvas: tuple[int, int] = SQUARE) -> list[Prompt]:
    """`n` different prompts of a category; those of "heldout" ask for held-out combinations. For "captions", n scenes.

    Args:
      canvas: (width, height) in pixels of the images asked for, with room for what they ask for. Edits, captions and stories
        are of squares.

    Raises:
      InputError: an unknown category or split, too few different prompts, or another canvas for what is of squares.
    """
    if category not in (*PROMPT_CATEGORIES, *EXTRA_CATEGORIES):
        raise InputError(f"no such category: {category!r}; there are {', '.join((*PROMPT_CATEGORIES, *EXTRA_CATEGORIES))}")
    if canvas != SQUARE and (category in ("edits", "captions", "stories") or canvas not in CANVASES):
        sizes = ", ".join(f"{width}x{height}" for width, height in (SQUARE, *CANVASES))
        raise InputError(
            f"{category} can't be asked for on {canvas[0]}x{canvas[1]} pixels (expected {sizes}; edits, captions "
            f"and stories are of {CANVAS}x{CANVAS})"
        )
    stream = _STREAMS.get(category, category) + ("" if canvas == SQUARE else f"/{canvas[0]}x{canvas[1]}")
    found: dict[tuple, Prompt] = {}
    index = misses = 0
    while len(found) < n:
        if misses > 1000:
            raise InputError(f"expected {n} different prompts of the category {category!r}, found only {len(found)}")
        rng = _generator(f"prompt/{stream}/{index}", split, seed)
        if category == "edits":
            before, edit, _ = _random_change(OPERATIONS[len(found) % len(OPERATIONS)], rng, split)
            prompt = Prompt(instruct(edit, rng), category, edit, before)
        elif category == "captions":
            prompt = Prompt("", category, None, random_scene(CATEGORIES[len(found) % len(CATEGORIES)], rng, split))
        elif category == "stories":
            text = story(rng, (2,))[0][0]
            prompt = Prompt(text, category, parse_beginning(text))
        elif category in NEWCOMER_CATEGORIES:
            text, truth, _ = draw_newcomer_prompt(category, rng, split, canvas)
            prompt = Prompt(text, category, truth)
        else:
            scene = random_scene(category, rng, split, canvas)
            truth = describe(scene, rng, **(_CAPTION_DETAIL[category] | _PROMPT_DETAIL.get(category, {})))
            prompt = Prompt(realize(truth, rng), category, truth)
        misses = misses + 1 if (prompt.text, prompt.scene) in found else 0
        found.setdefault((prompt.text, prompt.scene), prompt)
        index += 1
    return list(found.values())


def understand(text: str, seed: int = 0) -> Prompt:
    """A prompt or an instruction in the dataset's language, with its truth; an instruction gets a random image it suits.

    Raises:
      InputError: says at which word the text leaves the language.
    """
    if split_words(text)[:1] in [[verb] for verb in EDIT_VERBS]:
        edit = parse_edit(text)
        return Prompt(text, "edits", edit, _suitable_scene(edit, _generator(text, "heldout", seed)))
    truth = parse(text)
    mentions = truth.mentions
    if any(mention.shape is None for mention in mentions):
        category = "words"
    elif truth.relation:
        category = "position"
    elif any(mention.count > 1 for mention in mentions):
        category = "counting"
    else:
        colored = any(mention.color for mention in mentions)
        one, several = ("colors", "attribute binding") if colored else ("single object", "two objects")
        category = several if len(mentions) > 1 else one
    return Prompt(text, category, truth)


def vocabulary_words() -> tuple[str, ...]:
    """Every word and punctuation mark the dataset's language can hold, sorted."""
    names = (*COLORS, *BACKGROUNDS, *SHAPES, *PLURALS.values(), *NUMBERS, *WORDS, *INTRODUCTIONS, *BACKGROUND_FORMS)
    synonyms = [form for table in (RELATION_WORDS, REGION_WORDS, SIZE_WORDS) for forms in table.values() for form in forms]
    return tuple(sorted({word for text in (*names, *synonyms, _REST) for word in split_words(text.replace("{}", ""))}))


# Words that are written out in language.py, edits.py and below, and the numbers of positions.
_REST = """
    a an the is are and , . " word written next to beside there empty background
    make paint change color of remove delete take away add put place move shift larger bigger smaller turn into replace with
    start first draw then now finally after that next so than shapes nothing
    1 2 3 4 5 6 7 8 9
"""


# --- pieces -----------------------------------------------------------------------------------------------------------


def _generator(what: str, split: str, seed: int) -> random.Random:
    if split not in SPLITS:
        raise InputError(f"no such split: {split!r}; there are {', '.join(SPLITS)}")
    digest = hashlib.blake2b(f"{what}/{split}/{seed}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def _told(steps: list[tuple[str, Scene]], *, thinking: bool = False) -> tuple[TextPart | ImagePart, ...]:
    """Sentence and image of each step in turn; with `thinking` what leads from one scene to the next stands between them."""
    parts: list[TextPart | ImagePart] = []
    for number, (text, scene) in enumerate(steps):
        parts.append(TextPart(text))
        if thinking and number:
            parts.append(_thoughts(steps[number - 1][1], scene))
        parts.append(_image(scene))
    return tuple(parts)


def _thoughts(before: Scene, after: Scene) -> TextPart:
    return TextPart(f"<|begin_of_thinking|>{thinking_text(before, after)}<|end_of_thinking|>")


def _image(scene: Scene, loss: bool = True) -> ImagePart:
    return ImagePart.from_pixels(render(scene), loss=loss)


def _random_change(operation: str, rng: random.Random, split: str) -> tuple[Scene, Edit, Scene]:
    """A scene of one to three objects, an edit of it, and the scene afterwards.

    Training sees neither held-out scenes nor held-out edits; the other split's edits are all held out, its scenes free.
    """
    while True:
        kinds = [random_kind(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
        objects = scatter(kinds, rng)
        if objects is None or len({kind[:2] for kind in kinds}) < len(kinds):
            continue
        before = Scene(objects, rng.choice(tuple(BACKGROUNDS)))
        after, edit = random_change(before, operation, rng)
        if after is None or edit is None:
            continue
        held = edit_held_out(edit, before, after)
        if held if split == "heldout" else not (held or held_out_in(before) or held_out_in(after)):
            return before, edit, after


def _suitable_scene(edit: Edit, rng: random.Random) -> Scene:
    """A scene of one to three objects that an edit applies to and changes."""
    for _ in range(10_000):
        kinds = [random_kind(rng) for _ in range(rng.choice((1, 2, 3)))]
        if edit.target is not None and edit.operation != "add":
            shape, color, size = kinds[0]
            kinds[0] = (edit.target.shape, edit.target.color or color, edit.target.size or size)
        objects = scatter(kinds, rng)
        if objects is None or len({kind[:2] for kind in kinds}) < len(kinds):
            continue
        scene = Scene(objects, rng.choice(tuple(BACKGROUNDS)))
        if edit.target is not None and sum(edit.target.fits(thing) for thing in objects) != (edit.operation != "add"):
            continue
        if edit.operation == "move" and in_region(objects[find(scene, edit.target)].center, edit.value, slack=8):
            continue
        after = apply_edit(edit, scene, rng)
        if after is not None and after != scene:
            return scene
    raise InputError("no scene was found that this edit applies to")


def _letters(rng: random.Random) -> Scene:
    """A scene of a word, with two to four other letters in its place, in any color."""
    scene, text = random_scene("words", rng), WORDS[0]
    while text in WORDS:
        text = "".join(rng.choices(tuple(GLYPHS), k=rng.choice((2, 3, 4))))
    assert scene.word is not None  # as every scene of the category
    return dataclasses.replace(scene, word=dataclasses.replace(scene.word, text=text, color=rng.choice(tuple(COLORS))))


def _sentences(rng: random.Random) -> str:
    """A true sentence about scenes fit for training: a caption, a converse, a sum, a comparison, or an edit in words."""
    form = rng.choice(("caption", "converse", "sum", "comparison", "edit"))
    if form == "caption":
        return caption(random_scene(random_category(rng), rng), rng) + "."
    if form == "converse":
        scene = random_scene("position", rng)
        a, b = scene.objects
        name = relation(a, b)
        assert name is not None  # as in every scene of the category
        first, second = Mention(a.shape, a.color), Mention(b.shape, b.color)
        said = f"{noun_phrase(first, rng)} is {rng.choice(RELATION_WORDS[name])} {noun_phrase(second, rng)}"
        back = rng.choice(RELATION_WORDS[INVERSE[name]])
        return f"{said}, so {noun_phrase(second, rng, 'the')} is {back} {noun_phrase(first, rng, 'the')}."
    if form == "sum":
        scene = random_scene(rng.choice(("attribute binding", "counting")), rng)
        return f"{inventory_in_words(scene, rng)} are {NUMBERS[len(scene.objects) - 1]} shapes."
    if form == "comparison":
        shape, other = rng.choice(SHAPES), rng.choice(SHAPES)
        if rng.random() < 0.5:
            return f"a {rng.choice(SIZE_WORDS['large'])} {shape} is bigger than a {rng.choice(SIZE_WORDS['small'])} {other}."
        return f"a {rng.choice(SIZE_WORDS['small'])} {shape} is smaller than a {rng.choice(SIZE_WORDS['large'])} {other}."
    before, edit, after = _random_change(rng.choice(OPERATIONS[:-1]), rng, "train")
    return f"there is {inventory_in_words(before, rng)}. {instruct(edit, rng)}. now there is {inventory_in_words(after, rng)}."
