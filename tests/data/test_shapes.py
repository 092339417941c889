"""The built-in dataset: scenes, captions, edits, stories, what is held out, and that all of it is a function of its index."""

import hashlib
import itertools
import random
import re

import numpy as np
import pytest

from nextstep_jax.data import images, records, shapes
from nextstep_jax.data.shapes import edits, holdout, language, layout, meaning, samples, scene, stories, thinking
from nextstep_jax.errors import InputError

COUNT = 400


@pytest.fixture(scope="module")
def drawn():
    """Training samples of every kind with the scenes they were drawn from, [(kind, sample, scenes)]; all images a blank one."""
    blank, scenes = samples.ImagePart.from_pixels(np.zeros((64, 64, 3), np.uint8)), []

    def record(thing, loss=True):
        scenes.append(thing)
        return blank

    patch = pytest.MonkeyPatch()
    patch.setattr(samples, "_image", record)
    found = []
    for kind, index in itertools.product(shapes.KINDS, range(COUNT)):
        scenes.clear()
        found.append((kind, shapes.sample(kind, index), tuple(scenes)))
    patch.undo()
    return found


# --- images -----------------------------------------------------------------------------------------------------------


def test_render_paints_the_palette_and_softens_only_edges():
    thing = shapes.Object("square", "red", "small", (32, 32))
    image = shapes.render(shapes.Scene((thing,), "navy"))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[32, 32]) == shapes.COLORS["red"] and tuple(image[0, 0]) == shapes.BACKGROUNDS["navy"]
    painted = (image != shapes.BACKGROUNDS["navy"]).any(-1)
    assert painted.sum() == 18 * 18 and painted[23:41, 23:41].all()

    circle = shapes.render(shapes.Scene((shapes.Object("circle", "blue", "large", (20.5, 40.25)),), "white")).astype(float)
    ground, blue = np.array(shapes.BACKGROUNDS["white"]), np.array(shapes.COLORS["blue"])
    cover = ((ground - circle) / (ground - blue)).mean(-1)
    assert cover.sum() == pytest.approx(np.pi * 14**2, rel=0.01)
    steps = np.arange(64) + 0.5
    assert (cover * steps).sum() / cover.sum() == pytest.approx(20.5, abs=0.05)
    assert (cover * steps[:, None]).sum() / cover.sum() == pytest.approx(40.25, abs=0.05)


def test_render_cuts_off_what_sticks_out_and_lets_later_objects_cover_earlier_ones():
    corner = shapes.Object("square", "green", "large", (0, 64))
    image = shapes.render(shapes.Scene((corner, shapes.Object("circle", "pink", "small", (10, 54)))))
    assert tuple(image[63, 0]) == shapes.COLORS["green"] and tuple(image[54, 10]) == shapes.COLORS["pink"]
    assert tuple(image[0, 63]) == shapes.BACKGROUNDS["white"]


@pytest.mark.parametrize("word", shapes.WORDS)
def test_words_fit_into_the_picture_and_their_letters_into_latent_cells(word):
    image = shapes.render(shapes.Scene((), "black", shapes.Word(word, "yellow", (32, 24))))
    rows, columns = np.nonzero((image != shapes.BACKGROUNDS["black"]).any(-1))
    assert rows.min() == 16 and rows.max() == 30 and columns.min() >= 2 and columns.max() <= 61


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (shapes.Scene((), "mauve"), "mauve"),
        (shapes.Scene((shapes.Object("circle", "mauve", "small", (9, 9)),)), "mauve"),
        (shapes.Scene((shapes.Object("blob", "red", "small", (9, 9)),)), "blob"),
        (shapes.Scene((shapes.Object("circle", "red", "huge", (9, 9)),)), "huge"),
        (shapes.Scene((), "white", shapes.Word("x9", "red", (32, 32))), "x9"),
    ],
)
def test_names_outside_the_palette_are_refused(bad, named):
    with pytest.raises(InputError, match=named):
        shapes.render(bad)


def test_palette_is_well_separated():
    colors = [np.array(rgb) for rgb in (*shapes.COLORS.values(),)]
    grounds = [np.array(rgb) for rgb in shapes.BACKGROUNDS.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2)) > 75
    assert min(np.linalg.norm(a - b) for a, b in itertools.product(colors, grounds)) > 75
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(grounds, 2)) > 60


# --- scenes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", shapes.CATEGORIES)
@pytest.mark.parametrize("split", shapes.SPLITS)
def test_scenes_are_well_formed(category, split):
    rng = random.Random(category)
    for _ in range(60):
        drawn = layout.random_scene(category, rng, split)
        assert 1 <= len(drawn.items) <= 4 and (drawn.word is not None) == (category == "words")
        assert not any(scene.overlap(a, b) for a, b in itertools.combinations(drawn.items, 2))
        for thing in drawn.objects:
            assert thing.center in layout.CENTERS
            assert all(scene.RADII[thing.size] < c < 64 - scene.RADII[thing.size] for c in thing.center)
        if category == "position":
            assert scene.clearly_related(*drawn.objects)
        held = shapes.held_out_in(drawn)
        assert category in held if split == "heldout" else not held


def test_relation_needs_distance_along_its_axis():
    def name(x, y, size="small"):
        return scene.relation(
            shapes.Object("star", "red", size, (32 + x, 32 + y)), shapes.Object("star", "blue", size, (32, 32))
        )

    assert [name(-20, 5), name(20, -5), name(3, -20), name(-3, 20)] == ["left of", "right of", "above", "below"]
    assert name(20, 20) is None and name(14, 0) is None and name(15, 0) == "right of"
    assert name(20, 0, "large") is None and name(21, 0, "large") == "right of"


def test_regions_do_not_meet():
    for x, y in itertools.product(range(10, 55), repeat=2):
        found = sum(scene.in_region((x, y), region) for region in scene.REGIONS)
        assert found <= (2 if abs(x - 32) == abs(y - 32) else 1)
    assert scene.in_region((20, 30), "left") and not scene.in_region((21, 30), "left")
    assert scene.in_region((24, 30), "left", slack=4)


def test_no_training_scene_holds_a_held_out_combination(drawn):
    relations = set(shapes.held_out_relations())
    assert 15 <= len(relations) <= 20
    for part in range(3):
        assert len({combination[part] for combination in relations}) >= 4
    seen = set()
    for kind, sample, scenes in drawn:
        for one in scenes:
            assert not shapes.held_out_in(one), (kind, sample.key)
            for a, b in itertools.permutations(one.objects, 2):
                if (a.shape, a.color) != (b.shape, b.color) and scene.relation(a, b):
                    seen.add((a.shape, a.color, scene.relation(a, b)))
    assert not seen & relations
    # Hardly anything else is missing: what is held out is held out on purpose.
    everything = set(itertools.product(shapes.SHAPES, shapes.COLORS, scene.RELATIONS))
    assert len(everything - relations - seen) <= 2


def test_no_training_text_speaks_of_a_held_out_relation(drawn):
    spoken = 0
    for _, sample, _ in drawn:
        for part in sample.texts:
            for sentence in re.split(r"\.|, so", part.text):
                try:
                    said = shapes.parse(sentence)
                except InputError:
                    continue
                if said.relation and all(mention.color and mention.shape for mention in said.mentions):
                    spoken += 1
                    a, b = said.mentions
                    assert (a.shape, a.color, said.relation) not in shapes.held_out_relations()
                    assert (b.shape, b.color, meaning.INVERSE[said.relation]) not in shapes.held_out_relations()
    assert spoken > COUNT / 4


def test_held_out_relations_match_the_rule_for_scenes():
    for shape, color, name in shapes.held_out_relations():
        place = {"left of": (12, 32), "right of": (52, 32), "above": (32, 12), "below": (32, 52)}[name]
        other = shapes.Object(
            "cross" if shape != "cross" else "star", "purple" if color != "purple" else "red", "small", (32, 32)
        )
        one = shapes.Object(shape, color, "small", place)
        assert "position" in shapes.held_out_in(shapes.Scene((one, other)))
        alike = shapes.Object(shape, color, "small", (32, 32))
        assert "position" not in shapes.held_out_in(shapes.Scene((one, alike)))


# --- language ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_captions_say_what_they_mean_and_are_true(category):
    rng = random.Random(category)
    for _ in range(80):
        drawn = layout.random_scene(category, rng)
        said = meaning.describe(drawn, rng, colors=rng.random(), sizes=0.5, background=0.5)
        text = language.realize(said, rng)
        assert shapes.parse(text) == said, text
        assert shapes.contradiction(said, drawn) is None, text
        assert shapes.parse(shapes.caption(drawn, rng) + ".")


def test_the_plain_form_comes_first():
    said = shapes.parse("a red circle left of a blue square")
    assert said == shapes.Description((shapes.Mention("circle", "red"), shapes.Mention("square", "blue")), "left of")
    plain = language.realize(said, random.Random(1))
    assert "a red circle left of a blue square" in {language.realize(said, random.Random(i)) for i in range(10)}, plain
    assert shapes.parse("to the left of a blue square is a red circle") == said
    readme = shapes.Scene(
        (shapes.Object("circle", "red", "large", (16, 32)), shapes.Object("square", "blue", "large", (48, 32)))
    )
    assert not shapes.held_out_in(readme) and shapes.contradiction(said, readme) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "three small red circles on a black background",
            meaning.Description((shapes.Mention("circle", "red", "small", 3),), None, None, "black"),
        ),
        (
            "on a navy background, there is one big star",
            meaning.Description((shapes.Mention("star", size="large"),), None, None, "navy"),
        ),
        (
            '"cat" written in red above a cross',
            meaning.Description((shapes.Mention(color="red", text="cat"), shapes.Mention("cross")), "above"),
        ),
        ("draw an orange star in the center", meaning.Description((shapes.Mention("star", "orange"),), None, "middle")),
        (
            "a star, two pink crosses and a circle",
            meaning.Description((shapes.Mention("star"), shapes.Mention("cross", "pink", None, 2), shapes.Mention("circle"))),
        ),
        ("an empty white background", meaning.Description((), background="white")),
    ],
)
def test_parse(text, said):
    assert shapes.parse(text) == said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red blob", "found 'blob'"),
        ("a red circle near a star", "found 'near'"),
        ("red circle", "found 'red'"),
        ("", "found the end"),
        ("a red circle is", "found the end"),
        ("two red circles left of a star", "only a single object"),
        ("three stars and two crosses", "at most four"),
        ('the word "dinosaur"', "found 'dinosaur'"),
        ("a red circle on a red background", "found 'on'"),
        ("a three circles", "found 'three'"),
        ("two circle", "found 'circle'"),
    ],
)
def test_parse_says_where_a_text_leaves_the_language(text, found):
    with pytest.raises(InputError, match=re.escape(found)):
        shapes.parse(text)


def test_contradictions_are_found():
    red = shapes.Object("circle", "red", "small", (16, 32))
    blue = shapes.Object("square", "blue", "large", (44, 32))
    truth, both = shapes.parse("a small red circle left of a big blue square on a white background"), shapes.Scene((red, blue))
    assert shapes.contradiction(truth, both) is None
    swapped = (shapes.Object("circle", "red", "small", (48, 32)), shapes.Object("square", "blue", "large", (16, 32)))
    for wrong in (
        shapes.Scene((red, blue), "gray"),
        shapes.Scene((red,)),
        shapes.Scene((red, blue, blue)),
        shapes.Scene((red, blue), word=shapes.Word("hi", "red", (32, 52))),
        shapes.Scene(swapped),
        shapes.Scene((shapes.Object("circle", "blue", "small", (16, 32)), shapes.Object("square", "red", "large", (44, 32)))),
        shapes.Scene((shapes.Object("circle", "red", "large", (16, 32)), blue)),
        shapes.Scene((shapes.Object("star", "red", "small", (16, 32)), blue)),
    ):
        assert shapes.contradiction(truth, wrong)
    # Two ways to match the mentions: one of them true is enough.
    stars = shapes.Scene((shapes.Object("star", "red", "small", (12, 32)), shapes.Object("star", "blue", "small", (52, 32))))
    assert shapes.contradiction(shapes.parse("a star left of a star"), stars) is None
    assert shapes.contradiction(shapes.parse("a star above a star"), stars)


def test_vocabulary_is_closed_small_and_all_used(drawn):
    words = shapes.vocabulary_words()
    assert len(words) == len(set(words)) and list(words) == sorted(words) and 100 <= len(words) <= 200
    texts = [re.sub(r"<\|(begin|end)_of_thinking\|>", "", part.text) for _, sample, _ in drawn for part in sample.texts]
    assert {word for text in texts for word in language.split_words(text)} == set(words)
    for text in texts:
        assert text == text.lower() and not re.search(r"[^\w\s]{2}|\s\s|^\s|\s$", text), text


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", edits.OPERATIONS)
def test_edits_mean_what_they_say_and_do_it(operation):
    rng = random.Random(operation)
    for _ in range(60):
        before, edit, after = samples._random_change(operation, rng, "train")
        text = edits.instruct(edit, rng)
        assert shapes.parse_edit(text) == edit, text
        assert before != after
        kept = set(before.objects) & set(after.objects)
        if operation == "background":
            assert after.background == edit.value != before.background and before.objects == after.objects
        else:
            assert after.background == before.background
            changes = {"remove": -1, "add": 1}.get(operation, 0)
            assert len(after.objects) - len(before.objects) == changes
            assert len(kept) == len(before.objects) - (operation != "add")
        if operation == "move":
            (moved,) = set(after.objects) - kept
            assert scene.in_region(moved.center, edit.value)
        assert not any(scene.overlap(a, b) for a, b in itertools.combinations(after.objects, 2))


def test_edit_with_no_room_or_no_object():
    star = shapes.Object("star", "red", "small", (16, 16))
    alone = shapes.Scene((star,))
    hemmed_in = shapes.Scene((star, shapes.Object("circle", "red", "small", (40, 16))))
    assert shapes.apply_edit(shapes.parse_edit("make the star larger"), hemmed_in, random.Random(0)) is None
    with pytest.raises(InputError, match="0 objects"):
        shapes.apply_edit(shapes.parse_edit("remove the circle"), alone, random.Random(0))
    moved = shapes.apply_edit(shapes.parse_edit("move the red star to the right"), alone, random.Random(0))
    assert moved.objects[0].center[0] >= 44


@pytest.mark.parametrize(
    "text", ["make the circle", "add a star", "eat the star", "remove a star", "move the star up", 'remove the word "cat"']
)
def test_unknown_instructions_are_refused(text):
    with pytest.raises(InputError, match="cannot read"):
        shapes.parse_edit(text)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_functions_of_kind_index_seed_and_split():
    for kind in shapes.KINDS:
        stored = records.pack(shapes.sample(kind, 7))
        random.seed(0)
        np.random.seed(0)
        assert records.pack(shapes.sample(kind, 7)) == stored
        others = [shapes.sample(kind, 8), shapes.sample(kind, 7, seed=1), shapes.sample(kind, 7, split="heldout")]
        assert len({stored, *map(records.pack, others)}) == 4


def test_letters_spell_no_word_and_come_in_every_color(drawn):
    words = [scenes[0].word for kind, _, scenes in drawn if kind == "letters"]
    assert {len(word.text) for word in words} == {2, 3, 4}
    assert not {word.text for word in words} & set(shapes.WORDS)
    seen = {(letter, word.color) for word in words for letter in word.text}
    assert len(seen) > 0.95 * len(scene.GLYPHS) * len(shapes.COLORS)


def test_the_dataset_has_not_changed_unnoticed(drawn):
    digests = {False: hashlib.blake2b(digest_size=8), True: hashlib.blake2b(digest_size=8)}
    for kind, sample, scenes in drawn:
        later = kind.startswith("pair_") or kind == "story"
        digests[later].update(repr((sample.key, [part.text for part in sample.texts], scenes)).encode())
    assert digests[False].hexdigest() == "38c44f61e153e29a"
    assert digests[True].hexdigest() == "6d6a6eaf204a0d5b"


def test_parts_and_losses_of_each_kind():
    def form(kind, index=0):
        sample = shapes.sample(kind, index)
        assert records.unpack(records.pack(sample)) == sample
        return sample.kind, [("text" if isinstance(part, records.TextPart) else "image", part.loss) for part in sample.parts]

    assert form("pair") == ("pair", [("text", True), ("image", True)])
    assert form("caption") == ("pair", [("image", False), ("text", True)])
    assert form("edit") == ("edit", [("image", False), ("text", False), ("image", True)])
    assert form("thinking") == ("edit", [("text", False), ("image", False), ("text", True), ("image", True)])
    assert form("text") == ("text", [("text", True)])
    assert form("table") == ("text", [("text", False), ("text", True)])
    for index in range(10):
        kind, parts = form("interleaved", index)
        assert kind == "interleaved" and len(parts) in (6, 8) and parts == [("text", True), ("image", True)] * (len(parts) // 2)
        kind, parts = form("story", index)
        count = len(parts) // 3
        assert kind == "interleaved" and count in (2, 3, 4, 5)
        sentence = thoughts = ("text", True)
        first, later = [sentence, ("image", True)], [sentence, thoughts, ("image", True)]
        assert parts == first + later * (count - 1) + [sentence]
    for width, height in shapes.CANVASES:
        assert form(f"pair_{width}x{height}") == form("pair")
        image = shapes.sample(f"pair_{width}x{height}", 0).images[0]
        assert images.load(image.data, "image").size == (width, height)


def test_stories_say_what_happens_and_then_what_there_is(drawn):
    """A step changes what it says and nothing else, and only the last says that it is."""
    for sample, scenes in [(sample, scenes) for kind, sample, scenes in drawn if kind == "story"]:
        first, *between, end = (part.text for part in sample.texts)
        steps, thoughts = between[::2], between[1::2]
        assert [text.removeprefix("<|begin_of_thinking|>").removesuffix("<|end_of_thinking|>") for text in thoughts] == [
            thinking.thinking_text(*change) for change in itertools.pairwise(scenes)
        ]
        assert shapes.contradiction(stories.parse_beginning(first), scenes[0]) is None
        assert shapes.contradiction(shapes.parse_closing(end), scenes[-1]) is None
        for number, (text, before, after) in enumerate(zip(steps, scenes[:-1], scenes[1:], strict=True), 1):
            edit, last = shapes.parse_step(text)
            assert last == (number == len(steps))
            changed = set(before.objects) ^ set(after.objects)
            limit = {"background": 0, "add": 1, "remove": 1}.get(edit.operation, 2)
            assert len(changed) == limit and (before.background == after.background) == (edit.operation != "background")
            if edit.operation != "add":
                assert shapes.apply_edit(edit, before, random.Random(0)) == after
    assert {len(scenes) for kind, _, scenes in drawn if kind == "story"} == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        (stories.parse_beginning, "draw a red circle.", "expected a beginning"),
        (shapes.parse_step, "make the circle smaller.", "expected a step"),
        (shapes.parse_step, "then make the circle happy.", "found 'happy'"),
        (shapes.parse_closing, "there is a red circle.", "expected a closing sentence"),
        (shapes.parse_closing, "now there is a red circle", "a full stop"),
        (shapes.parse_closing, "now there is a red.", "found '.'"),
    ],
)
def test_sentences_that_belong_in_no_story_are_refused(read, text, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        read(text)


@pytest.mark.parametrize("canvas", shapes.CANVASES)
def test_scenes_of_other_canvases_are_well_formed(canvas):
    rng, usual = random.Random(f"{canvas}"), 0
    width, height = canvas
    for number in range(140):
        category = shapes.CATEGORIES[number % len(shapes.CATEGORIES)]
        drawn = layout.random_scene(category, rng, shapes.SPLITS[number % 2], canvas)
        assert drawn.canvas == canvas
        for thing in drawn.items:
            (x, y), (w, h) = thing.center, thing.half_extent
            assert w <= x <= width - w and h <= y <= height - h
        assert all(x % 16 == y % 16 == 0 for x, y in (thing.center for thing in drawn.objects))
        assert not any(scene.overlap(a, b) for a, b in itertools.combinations(drawn.items, 2))
        if category == "position":
            usual += {thing.center for thing in drawn.objects} in [{*pair} for pair in layout.layouts(2, canvas)]
    assert usual >= 8
    middle = (width / 2, height / 2)
    assert scene.in_region(middle, "middle", canvas=canvas) and not scene.in_region(middle, "left", canvas=canvas)
    assert scene.in_region((16, height / 2), "left", 6, canvas) and scene.in_region((width / 2, 16), "top", 6, canvas)


def test_pictures_agree_with_their_captions(drawn):
    for kind, sample, scenes in drawn:
        if kind.startswith("pair") or kind == "caption":
            said = shapes.parse(sample.texts[0].text)
            assert shapes.contradiction(said, scenes[0]) is None, sample.texts[0].text
            if kind == "caption":
                assert all(mention.color for mention in said.mentions)
        if kind == "edit":
            edit = shapes.parse_edit(sample.texts[0].text)
            if edit.operation != "add":
                assert shapes.apply_edit(edit, scenes[0], random.Random(0)) == scenes[1]


def test_plans_tell_both_pictures_and_what_changes(drawn):
    nothing = "empty empty empty"
    for sample, (before, after) in [(sample, scenes) for kind, sample, scenes in drawn if kind == "thinking"]:
        instruction, plan = (part.text for part in sample.texts)
        edit = shapes.parse_edit(instruction)
        if edit.operation != "add":
            assert shapes.apply_edit(edit, before, random.Random(0)) == after
        found = re.fullmatch(r"<\|begin_of_thinking\|>(.+)\. (.+) then (.+)\. (.+)<\|end_of_thinking\|>", plan)
        first = re.findall(r"(\d) (\w+ \w+) (\d) (\w+)", found[1])
        assert [number for number, _, _, _ in first] == [place for _, _, place, _ in first]
        tables = [{number: f"{kind} {size}" for number, kind, _, size in first}]
        tables.append(dict(re.findall(r"(\d) (\w+ \w+ \w+)", found[4])))
        for table, image in zip(tables, (before, after), strict=True):
            things = {thing.center: f"{thing.shape} {thing.color} {thing.size}" for thing in image.objects}
            places = itertools.product((16, 32, 48), repeat=2)
            assert list(table.items()) == [(f"{n}", things.get((x, y), nothing)) for n, (y, x) in enumerate(places, 1)]
        if edit.operation == "background":
            assert found.group(2, 3) == (f"background {before.background}", f"background {after.background}")
            continue
        (old, place), (new, new_place) = ((re.sub(r"\d ", "", said), said.split()[2]) for said in found.group(2, 3))
        assert tables[0][place] == old
        assert tables[0] | {place: nothing} | {new_place: new} == tables[1]


def test_tables_are_looked_up_and_hold_nothing_held_out(drawn):
    for first, again in [[part.text for part in sample.texts] for kind, sample, _ in drawn if kind == "table"]:
        entries = [entry for entry in re.findall(r"\d (\w+ \w+ \d \w+)", first) if "empty" not in entry]
        assert sorted(again.split(" then ")) == sorted(entries)
        words = [(shape, color, size, int(place) - 1) for shape, color, place, size in map(str.split, entries)]
        things = [shapes.Object(*kind, (16 + place % 3 * 16, 16 + place // 3 * 16)) for *kind, place in words]
        assert not holdout.held_out_in(shapes.Scene(tuple(things)))


@pytest.mark.parametrize("category", shapes.PROMPT_CATEGORIES)
def test_prompts_are_fixed_different_and_true_to_their_category(category):
    found = shapes.prompts("heldout", category, 40)
    assert found == shapes.prompts("heldout", category, 50)[:40] != shapes.prompts("heldout", category, 40, seed=1)
    assert len({(prompt.text, prompt.scene) for prompt in found}) == 40
    for prompt in found:
        assert prompt.category == category
        if category == "captions":
            assert prompt.text == "" and shapes.held_out_in(prompt.scene)
        elif category == "edits":
            assert shapes.parse_edit(prompt.text) == prompt.truth
            assert shapes.apply_edit(prompt.truth, prompt.scene, random.Random(0))
        else:
            assert shapes.parse(prompt.text) == prompt.truth
            assert shapes.understand(prompt.text).category == category


def combinations_asked_for(truth):
    """The counts, pairs of kinds and colored words that a text names, as holdout.py writes them; its colors are all there."""
    shape_of, color_of = list(shapes.SHAPES).index, list(shapes.COLORS).index
    things = [m for m in truth.mentions if m.shape is not None]
    kinds = sorted((shape_of(m.shape), color_of(m.color)) for m in things)
    counts = {(m.count - 2, shape_of(m.shape), color_of(m.color)) for m in things if m.count > 1}
    words = {(shapes.WORDS.index(m.text), color_of(m.color)) for m in truth.mentions if m.shape is None}
    return counts | {a + b for a, b in itertools.combinations(kinds, 2)} | words


@pytest.mark.parametrize("category", shapes.NEWCOMER_CATEGORIES)
def test_prompts_of_newcomers_are_what_they_are_called_and_held_out(category):
    held_out = shapes.prompts("heldout", category, 200)
    trained = shapes.prompts("train", category, 400)
    assert held_out[:50] == shapes.prompts("heldout", category, 50) != shapes.prompts("heldout", category, 50, seed=1)
    assert len({prompt.text for prompt in held_out}) == 200
    for prompt in (*held_out, *trained):
        assert prompt.category == category and shapes.parse(prompt.text) == prompt.truth
        mentions = prompt.truth.mentions
        if category == "counted pairs":
            assert len({(m.shape, m.color) for m in mentions}) == 2 and max(m.count for m in mentions) > 1
        elif category == "introduced words":
            assert prompt.text.startswith(language.INTRODUCTIONS) and any(m.text for m in mentions)
        else:
            assert sorted(m.color == "pink" for m in mentions) == [False, True]
    sizes = [m.size for prompt in held_out for m in prompt.truth.mentions]
    assert category == "introduced words" or {None, "small", "large"} == set(sizes)
    # The rule decides, whatever else a text says.
    assert all(any(map(holdout.is_held_out, combinations_asked_for(prompt.truth))) for prompt in held_out)
    assert not any(any(map(holdout.is_held_out, combinations_asked_for(prompt.truth))) for prompt in trained)


def test_too_many_prompts_or_unknown_names_are_refused(monkeypatch):
    only = shapes.Scene((shapes.Object("star", "red", "small", (12, 12)),))
    monkeypatch.setattr(samples, "random_scene", lambda *_: only)
    for call in (
        lambda: shapes.sample("video", 0),
        lambda: shapes.sample("pair", 0, split="test"),
        lambda: shapes.prompts("heldout", "style", 3),
        lambda: shapes.prompts("heldout", "single object", 1000),
    ):
        with pytest.raises(InputError):
            call()


def test_instructions_get_a_picture_they_suit():
    for text in (
        "make the small star blue",
        "add a red square on the left",
        "move the circle to the top",
        "make the background gray",
    ):
        try:
            prompt = shapes.understand(text, 3)
        except InputError as error:
            pytest.fail(f"{text}: {error}")
        assert prompt.category == "edits" and prompt == shapes.understand(text, 3)
        assert shapes.apply_edit(prompt.truth, prompt.scene, random.Random(0)) not in (None, prompt.scene)
