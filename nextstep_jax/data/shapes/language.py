"""The dataset's English: captions from descriptions, and descriptions back from captions.

Lower case, a closed vocabulary, and punctuation that stands between spaces or words, never two marks in a row.
The plain form of a caption is the shortest: "a red circle left of a blue square".
"""

import random
import re
from collections.abc import Collection, Iterable

from nextstep_jax.data.shapes.meaning import Description, Mention, describe
from nextstep_jax.data.shapes.scene import BACKGROUNDS, COLORS, SHAPES, WORDS, Scene
from nextstep_jax.errors import InputError

NUMBERS = ("one", "two", "three", "four")
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
REGION_WORDS = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", "in the center"),
}
INTRODUCTIONS = ("a picture of", "an image of", "a drawing of", "draw", "show")
BACKGROUND_FORMS = ("on a {} background", "against a {} background", "with a {} background")
PAIR_FORMS = ("{} and {}", "{} next to {}", "{} beside {}")

_PLURAL_SHAPE = {plural: shape for shape, plural in PLURALS.items()}
_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
# Longest first, so that no shorter form matches a part of "to the left of".
_RELATION_PHRASES = sorted(((w, r) for r, words in RELATION_WORDS.items() for w in words), key=lambda pair: -len(pair[0]))
_REGION_PHRASES = [(words, region) for region, forms in REGION_WORDS.items() for words in forms]
_BACKGROUND_PHRASES = [(form.format(name), name) for form in BACKGROUND_FORMS for name in BACKGROUNDS]


def caption(scene: Scene, rng: random.Random) -> str:
    """A true caption of any scene, with colors and sometimes sizes, relation, region and background."""
    return realize(describe(scene, rng), rng)


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


# --- from meaning to words --------------------------------------------------------------------------------------------


def realize(description: Description, rng: random.Random, *, introduced: bool = False) -> str:
    """Put a description into words. `parse` gives it back, whichever of the forms was chosen.

    Args:
      introduced: begin with one of INTRODUCTIONS; otherwise the form is a random one.
    """
    phrases = [noun_phrase(mention, rng) for mention in description.mentions]
    plain = not introduced and rng.random() < 0.5
    form = "plain" if plain else "introduced" if introduced else rng.choice(("introduced", "there", "fronted"))
    verb = "is" if not description.mentions or description.mentions[0].count == 1 else "are"
    background = None
    if description.background:
        background = (BACKGROUND_FORMS[0] if plain else rng.choice(BACKGROUND_FORMS)).format(description.background)

    if not phrases:
        text = f"an empty {description.background} background"
        return f"{rng.choice(INTRODUCTIONS)} {text}" if form == "introduced" else text
    if description.relation:
        words = RELATION_WORDS[description.relation]
        place = words[0] if plain else rng.choice(words)
        fronted = f"{place} {phrases[1]} is {phrases[0]}"
        direct = f"{phrases[0]} {place} {phrases[1]}"
        if form == "there" and rng.random() < 0.5:
            form, direct = "plain", f"{phrases[0]} is {place} {phrases[1]}"
    elif description.region:
        place = rng.choice(REGION_WORDS[description.region])
        fronted = f"{place} is {phrases[0]}"
        direct = f"{phrases[0]} {place}"
    else:
        fronted = direct = enumerate_phrases(phrases, PAIR_FORMS[0] if plain else rng.choice(PAIR_FORMS))
        # Only the background could come first.
        form = form if form != "fronted" else "plain"
    text = {
        "plain": direct,
        "introduced": f"{rng.choice(INTRODUCTIONS)} {direct}",
        "there": f"there {verb} {direct}",
        "fronted": fronted,
    }[form]
    if background is None:
        return text
    if form in ("plain", "there") and not plain and background.startswith("on") and rng.random() < 0.5:
        return f"{background}, {text}"
    return f"{text} {background}"


def noun_phrase(mention: Mention, rng: random.Random, article: str | None = None) -> str:
    """ "a small red circle", "three stars", 'the word "cat" in red'; `article` stands in for a, an or the number."""
    if mention.shape is None:
        color = mention.color
        if color is None:
            return f'the word "{mention.text}"'
        return rng.choice(('the word "{}" in {}', '"{}" written in {}')).format(mention.text, color)
    noun = mention.shape if mention.count == 1 else PLURALS[mention.shape]
    size = rng.choice(SIZE_WORDS[mention.size]) if mention.size else None
    words = [word for word in (size, mention.color, noun) if word]
    if article is None:
        if mention.count > 1:
            article = NUMBERS[mention.count - 1]
        else:
            article = "one" if rng.random() < 0.04 else "an" if words[0] == "orange" else "a"
    return " ".join((article, *words))


def enumerate_phrases(phrases: list[str], pair_form: str = PAIR_FORMS[0]) -> str:
    """ "a", "a and b" (or another form for two), "a, b and c"."""
    if len(phrases) == 1:
        return phrases[0]
    if len(phrases) == 2:
        return pair_form.format(*phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


# --- from words to meaning --------------------------------------------------------------------------------------------


def parse(text: str) -> Description:
    """What a caption says. InputError names the word at which it leaves the dataset's language."""
    reader = Reader(text)
    background = reader.one_of(_BACKGROUND_PHRASES)
    if background:
        reader.expect(",")
    if not reader.take("there is") and not reader.take("there are"):
        reader.take_any(INTRODUCTIONS)
    if reader.take("an empty"):
        name = reader.choice(BACKGROUNDS, "a background")
        reader.expect("background")
        reader.finish()
        return Description((), background=name)
    place = reader.one_of(_RELATION_PHRASES)
    region = None if place else reader.one_of(_REGION_PHRASES)
    if place:
        second = reader.noun_phrase()
        reader.expect("is")
        mentions = [reader.noun_phrase(), second]
    elif region:
        reader.expect("is")
        mentions = [reader.noun_phrase()]
    else:
        mentions = [reader.noun_phrase()]
        linked = reader.take("is")
        place = reader.one_of(_RELATION_PHRASES)
        region = None if place else reader.one_of(_REGION_PHRASES)
        if place:
            mentions.append(reader.noun_phrase())
        elif linked and not region:
            raise reader.error("a place")
        while not (place or region) and (reader.take_any((",", "and", "next to", "beside"))):
            mentions.append(reader.noun_phrase())
    background = background or reader.one_of(_BACKGROUND_PHRASES)
    reader.finish()
    if (place and any(mention.count > 1 for mention in mentions)) or (region and mentions[0].count > 1):
        raise InputError(f'cannot read "{text}": only a single object has a place')
    if sum(mention.count for mention in mentions) > 4:
        raise InputError(f'cannot read "{text}": an image holds at most four objects')
    return Description(tuple(mentions), place, region, background)


class Reader:
    """A cursor over the words of a text. What does not match is an InputError that says what was expected, and where."""

    def __init__(self, text: str):
        self.text, self.words, self.at = text, split_words(text), 0

    def error(self, expected: str) -> InputError:
        found = repr(self.words[self.at]) if self.at < len(self.words) else "the end"
        return InputError(f'cannot read "{self.text}": expected {expected}, found {found} (word {self.at + 1})')

    def take(self, phrase: str) -> bool:
        """Consume a phrase if it comes next."""
        words = split_words(phrase)
        if self.words[self.at : self.at + len(words)] != words:
            return False
        self.at += len(words)
        return True

    def take_any(self, phrases: Iterable[str]) -> bool:
        return any(self.take(phrase) for phrase in phrases)

    def one_of(self, pairs: Iterable[tuple[str, str]]) -> str | None:
        """The meaning of the first phrase that comes next, from (phrase, meaning) pairs, or None."""
        return next((meaning for phrase, meaning in pairs if self.take(phrase)), None)

    def expect(self, phrase: str) -> None:
        if not self.take(phrase):
            raise self.error(f'"{phrase}"')

    def choice(self, names: Collection[str], what: str) -> str:
        if self.at < len(self.words) and self.words[self.at] in names:
            self.at += 1
            return self.words[self.at - 1]
        raise self.error(what)

    def maybe(self, names: Collection[str]) -> str | None:
        return self.choice(names, "") if self.at < len(self.words) and self.words[self.at] in names else None

    def finish(self) -> None:
        self.take(".")
        if self.at < len(self.words):
            raise self.error("the end")

    def reference(self) -> Mention:
        """ "the red circle" """
        return self.noun_phrase(("the",))

    def noun_phrase(self, articles: tuple[str, ...] = ("a", "an", *NUMBERS)) -> Mention:
        """What `noun_phrase` writes, words in quotes included."""
        if "a" in articles and (self.take('the word "') or self.take('"')):
            text = self.choice(WORDS, f"one of the words {', '.join(WORDS)}")
            self.expect('"')
            color = self.choice(COLORS, "a color") if self.take("written in") or self.take("in") else None
            return Mention(color=color, text=text)
        number = self.choice(articles, " or ".join(map(repr, articles)))
        count = NUMBERS.index(number) + 1 if number in NUMBERS else 1
        size = self.maybe(_SIZE_OF)
        color = self.maybe(COLORS)
        noun = self.choice(SHAPES if count == 1 else _PLURAL_SHAPE, "a shape" if count == 1 else "shapes")
        return Mention(_PLURAL_SHAPE.get(noun, noun), color, _SIZE_OF[size] if size else None, count)
