"""The random choices between a stored sample and its sequence: caption, order, and what is left out.

Every choice is a function of (seed, index), so that any sample can be built again at any time. `index` counts samples over all
epochs (epoch * length + index in the source): the first epoch puts images first where the February 2026 training release does,
later epochs draw anew. The names in `draws` are part of the order of the data and do not follow the settings' names.

What trains guidance: an image that follows nothing but its area prefix is the unconditional branch. `image_first` makes
such images (and trains captioning with the caption that follows), `caption_dropout` makes them without a caption. For edits,
`source_dropout` and `two_source_dropout` leave out a source image or the instruction, for the branches of three-way guidance.
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence

from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError

_PROBABILITIES = (
    "image_first",
    "caption_dropout",
    "capitalize",
    "sources_last",
    "source_dropout",
    "two_source_dropout",
    "preference_flip",
)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Probabilities, and the caption variants to draw from. The defaults are the February 2026 release's.

    Attributes:
      image_first: a pair's image comes before its caption (the release calls it drop_text_prob).
      caption_dropout: a pair loses its caption.
      caption_variants: weights of a sample's caption variants by name; "" is the stored text. Names a sample does not have are
        passed over; without any, the stored text is taken.
      templates: frames of a caption or instruction, one drawn evenly; "{text}" stands for it.
      capitalize: a caption or instruction starts with a capital.
      sources_last: an edit's source images follow the instruction instead of standing where they were.
      source_dropout: an edit with one source loses the source or the instruction (evenly).
      two_source_dropout: an edit with two sources loses the first (3 in 10) or the second.
      preference_flip: the two images of a preference change places. A control: at 0.5 there is nothing to learn from which is
        preferred, at 1 a model learns the opposite.
      preferred_only: of a preference the preferred sequence alone is left: a pair to fine-tune on (rejection sampling).
    """

    image_first: float = 0.3
    caption_dropout: float = 0.0
    caption_variants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    templates: tuple[str, ...] = ("{text}",)
    capitalize: float = 0.5
    sources_last: float = 0.1
    source_dropout: float = 0.2
    two_source_dropout: float = 0.3
    preference_flip: float = 0.0
    preferred_only: bool = False

    def __post_init__(self):
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be a probability, found {getattr(self, name)!r}")
        if any(weight < 0 for weight in self.caption_variants.values()):
            raise InputError(f"caption_variants must have weights of 0 or more, found {dict(self.caption_variants)}")
        if not self.templates or not all("{text}" in template for template in self.templates):
            raise InputError(f"every template must contain {{text}}, found {self.templates}")


Parts = list[TextPart | ImagePart]

AS_STORED = Augmentation(image_first=0, capitalize=0, sources_last=0, source_dropout=0, two_source_dropout=0)


def make_seed(*values: int | str) -> int:
    """The release's seed: s = (31 s + value) mod 2^31 over the values, a string counting as the seed of its characters."""
    seed = 0
    for value in values:
        number = make_seed(*map(ord, value)) if isinstance(value, str) else value
        seed = (31 * seed + number) % 2**31
    return seed


def draws(*values: int | str) -> random.Random:
    """A generator of its own for one choice; a string among the values names the choice, and every bit of a number counts."""
    return random.Random(make_seed(*(digit for value in values for digit in _digits(value))))


def _digits(value: int | str) -> list[int | str]:
    """A number's digits to the base 2^31, below which `make_seed` loses nothing; a string as it is."""
    return [value] if isinstance(value, str) or value < 2**31 else [*_digits(value >> 31), value % 2**31]


def arrange(sample: Sample, augmentation: Augmentation, seed: int, index: int) -> Parts:
    """The sample's parts as the model will see them. Only the last image of an edit keeps its loss; of a preference the
    preferred sequence is left.
    """
    if sample.kind == "preference":
        shared, winner, _ = _choose(sample, augmentation, seed, index)
        return [*shared, *winner]
    sample = _reworded(sample, augmentation, seed, index)
    if sample.kind == "pair":
        return _arrange_pair(_apply_template(sample.parts, augmentation, seed, index), augmentation, seed, index)
    if sample.kind == "edit":
        return _arrange_edit(_apply_template(sample.parts, augmentation, seed, index), augmentation, seed, index)
    return list(sample.parts)


def _reworded(sample: Sample, augmentation: Augmentation, seed: int, index: int) -> Sample:
    """The sample with one of its caption variants."""
    names = [name for name in augmentation.caption_variants if name == "" or name in sample.caption_variants]
    weights = [augmentation.caption_variants[name] for name in names]
    if sum(weights) > 0:
        name = draws("wording", seed, index).choices(names, weights)[0]
        return sample.with_caption(name) if name else sample
    return sample


def _apply_template(
    parts: Sequence[TextPart | ImagePart], augmentation: Augmentation, seed: int, index: int
) -> list[TextPart | ImagePart]:
    """Put each text into a template, and capitalize it by chance."""
    draw = draws("dress", seed, index)
    dressed = []
    for part in parts:
        if isinstance(part, TextPart):
            text = draw.choice(augmentation.templates).replace("{text}", part.text)
            if draw.random() < augmentation.capitalize:
                text = text[:1].upper() + text[1:]
            part = dataclasses.replace(part, text=text)
        dressed.append(part)
    return dressed


def _arrange_pair(parts: Parts, augmentation: Augmentation, seed: int, index: int) -> list[TextPart | ImagePart]:
    if draws(seed, index).random() < augmentation.image_first:
        parts = sorted(parts, key=lambda part: isinstance(part, TextPart))
    if draws("drop_text", seed, index).random() < augmentation.caption_dropout:
        parts = [part for part in parts if isinstance(part, ImagePart)]
    return parts


def _arrange_edit(parts: Parts, augmentation: Augmentation, seed: int, index: int) -> list[TextPart | ImagePart]:
    target = max(number for number, part in enumerate(parts) if isinstance(part, ImagePart))
    before = [dataclasses.replace(part, loss=False) if isinstance(part, ImagePart) else part for part in parts[:target]]
    sources = [part for part in before if isinstance(part, ImagePart)]
    draw = draws("edit", seed, index)
    if draw.random() < augmentation.sources_last:
        before.sort(key=lambda part: isinstance(part, ImagePart))
    chance, which = draw.random(), draw.random()
    if len(sources) == 1 and chance < augmentation.source_dropout:
        unwanted = ImagePart if which < 0.5 else TextPart
        before = [part for part in before if not isinstance(part, unwanted)]
    if len(sources) == 2 and chance < augmentation.two_source_dropout:
        dropped = sources[0] if which < 0.3 else sources[1]
        before = [part for part in before if part is not dropped]
    return [*before, *parts[target:]]


def arrange_preference(sample: Sample, augmentation: Augmentation, seed: int, index: int) -> tuple[Parts, Parts]:
    """The parts of a preference's two sequences, the preferred one first: what its candidates share, which is no target, and
    what is each one's own.

    Raises:
      InputError: see `split_preference`, `require_scores` and `choose_pair`.
    """
    shared, winner, loser = _choose(sample, augmentation, seed, index)
    shared = [dataclasses.replace(part, loss=False) for part in shared]
    return [*shared, *winner], [*shared, *loser]


def _choose(sample: Sample, augmentation: Augmentation, seed: int, index: int) -> tuple[Parts, Parts, Parts]:
    """What the candidates of a preference share, and the own parts of one of them and of another that it is preferred to."""
    shared, candidates = split_preference(_reworded(sample, augmentation, seed, index))
    winner, loser = choose_pair(require_scores(sample, len(candidates)), draws("preference", seed, index))
    if draws("preference flip", seed, index).random() < augmentation.preference_flip:
        winner, loser = loser, winner
    return shared, candidates[winner], candidates[loser]


def split_preference(sample: Sample) -> tuple[Parts, list[Parts]]:
    """What the candidates of a preference share, and each candidate's own parts: an image that is a target, after a text of its
    own where it has one (what the model thought before it drew that image).

    A text is an image's own if it is a target, stands right before it, and so does one before every other candidate. All else
    is shared: the prompt, thoughts about it that came once, images that are no targets (what an instruction is about).

    Raises:
      InputError: fewer than two candidates, or only some of them with a text of their own.
    """
    places = [i for i, part in enumerate(sample.parts) if isinstance(part, ImagePart) and part.loss]
    if len(places) < 2:
        raise InputError(f"a preference needs at least 2 images that are targets, found {len(places)}")
    own = [i > 0 and isinstance(sample.parts[i - 1], TextPart) and sample.parts[i - 1].loss for i in places]
    if any(own[1:]) and not all(own):
        raise InputError(
            f"{sum(own)} of the {len(own)} images of a preference come after a text of their own, expected all or none"
        )
    length = 2 if all(own) else 1
    candidates = [list(sample.parts[i + 1 - length : i + 1]) for i in places]
    taken = {j for i in places for j in range(i + 1 - length, i + 1)}
    return [part for i, part in enumerate(sample.parts) if i not in taken], candidates


def require_scores(sample: Sample, count: int) -> list[float]:
    """A preference's scores, one for each of its `count` candidates. InputError if they are not there."""
    scores = sample.metadata.get("scores")
    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != count:
        raise InputError(f"a preference of {count} images needs as many scores, found {scores!r:.100}")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise InputError(f"scores must be numbers, found {scores!r:.100}")
    return list(scores)


def choose_pair(scores: Sequence[float], draw: random.Random) -> tuple[int, int]:
    """Which image is preferred to which: one of the best quarter to one of the others that has a lower score (the paper's top 4
    and other 12 of 16 candidates).

    Raises:
      InputError: all scores are equal.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    best = max(1, len(scores) // 4)
    winners = [i for i in order[:best] if scores[i] > scores[order[-1]]]
    if not winners:
        raise InputError("all images have the same score: none is preferred")
    winner = draw.choice(winners)
    return winner, draw.choice([i for i in order[best:] if scores[i] < scores[winner]])
