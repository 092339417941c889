"""From a sample's parts to one sequence: `{text}<|image_area|>h*w<|begin_of_image|>{image}<|end_of_image|>`.

Images come as latents, encoded beforehand with `nextstep-jax data encode`: the image tokenizer is frozen while the transformer
trains, so encoding once costs less than encoding in every step; input noise is added in the training step. Pixels are refused.
Generation builds its prompts with the same functions.

Letters: C channels of one image token, n positions of a sequence, m image tokens among them, h, w sides of an image in tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nextstep_jax.data.augment import Augmentation, Parts, arrange, arrange_preference
from nextstep_jax.data.records import KINDS, ImagePart, Sample, TextPart
from nextstep_jax.data.source import Source
from nextstep_jax.data.vocabulary import OPTIONAL, SPECIAL_TOKENS, SpecialIds, Vocabulary
from nextstep_jax.errors import InputError

KIND_IDS = {kind: id for id, kind in enumerate(KINDS, 1)}  # 0 is padding
Sizes = tuple[int, ...]  # what something takes, or has room for: positions, then whatever else is limited


class TextIds(NamedTuple):
    """A stretch of text: ids [n] int32, and whether they are targets."""

    ids: np.ndarray
    loss: bool = True


class ImageTokens(NamedTuple):
    """An image: tokens [h * w, C] float32 in raster order, and whether they are targets."""

    tokens: np.ndarray
    h: int
    w: int
    loss: bool = True


@dataclasses.dataclass(frozen=True)
class Segment:
    """One sequence, not yet packed with others.

    Attributes:
      text_ids: [n] int32; the placeholder at image positions.
      is_image: [n] bool.
      image_tokens: [m, C] float32, of the image positions only.
      text_weight, image_weight: [n] float32 weights of each position as a target.
    """

    text_ids: np.ndarray
    is_image: np.ndarray
    image_tokens: np.ndarray
    text_weight: np.ndarray
    image_weight: np.ndarray

    def __len__(self) -> int:
        return len(self.text_ids)

    @property
    def sizes(self) -> Sizes:
        """Positions, text targets and image targets: what it takes of a row."""
        return len(self), int(np.count_nonzero(self.text_weight)), int(np.count_nonzero(self.image_weight))


def patchify(latents: Float[np.ndarray, "height width c"], patch: int) -> Float[np.ndarray, "n C"]:
    """Latents [h * patch, w * patch, c] to tokens [h * w, c * patch**2] float32, ordered (channel, row, column) inside."""
    height, width, channels = latents.shape
    if height % patch or width % patch:
        raise InputError(f"latents of {height}x{width} cannot be cut into patches of {patch}x{patch}")
    tokens = latents.reshape(height // patch, patch, width // patch, patch, channels).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tokens.reshape(-1, channels * patch * patch), np.float32)


def image_prefix(special: SpecialIds, h: int, w: int) -> list[int]:
    """What comes before an image of h*w tokens: `<|image_area|>h*w<|begin_of_image|>`."""
    return [*special.area_ids(h, w), special.begin_of_image]


class SegmentPair(NamedTuple):
    """The two sequences of a preference."""

    winner: Segment
    loser: Segment

    @property
    def sizes(self) -> Sizes:
        """What the larger takes: the room of both, each in a row of its own."""
        return tuple(map(max, zip(self.winner.sizes, self.loser.sizes, strict=True)))


def frame(parts: Sequence[TextIds | ImageTokens], special: SpecialIds, channels: int, area_targets: bool = True) -> Segment:
    """Parts in order, images framed by their area and markers, no end of text.

    All text counts as a target unless its part says otherwise, areas and `<|end_of_image|>` do (those of source images too)
    unless not `area_targets`, `<|begin_of_image|>` never: the program writes it.
    """
    ids, is_image, tokens, text_weight, image_weight = [], [], [], [], []
    for part in parts:
        if isinstance(part, TextIds):
            ids += list(part.ids)
            text_weight += [float(part.loss)] * len(part.ids)
            is_image += [False] * len(part.ids)
            image_weight += [0.0] * len(part.ids)
            continue
        count = part.h * part.w
        if part.tokens.shape != (count, channels):
            raise InputError(f"an image of {part.h}*{part.w} tokens must be {(count, channels)}, found {part.tokens.shape}")
        prefix = image_prefix(special, part.h, part.w)
        ids += [*prefix, *[special.image_placeholder] * count, special.end_of_image]
        area = float(area_targets)
        text_weight += [area] * (len(prefix) - 1) + [0.0] * (1 + count) + [area]
        is_image += [False] * len(prefix) + [True] * count + [False]
        image_weight += [0.0] * len(prefix) + [float(part.loss)] * count + [0.0]
        tokens.append(part.tokens)
    return Segment(
        np.asarray(ids, np.int32),
        np.asarray(is_image, bool),
        np.concatenate([np.zeros((0, channels), np.float32), *tokens], dtype=np.float32),
        np.asarray(text_weight, np.float32),
        np.asarray(image_weight, np.float32),
    )


def training_segment(
    parts: Sequence[TextIds | ImageTokens], special: SpecialIds, channels: int, area_targets: bool = True
) -> Segment:
    """The framed parts and the end of text, which is a target only after a text that is one."""
    last = parts[-1] if parts else None
    eos = TextIds(np.asarray([special.eos], np.int32), isinstance(last, TextIds) and last.loss)
    return frame([*parts, eos], special, channels, area_targets)


def cut_text(segment: Segment, length: int) -> list[Segment]:
    """Pieces of at most `length` positions of a segment without images."""
    names = ("text_ids", "is_image", "text_weight", "image_weight")
    pieces = [slice(start, start + length) for start in range(0, len(segment), length)]
    return [dataclasses.replace(segment, **{name: getattr(segment, name)[piece] for name in names}) for piece in pieces]


# --- from a stored sample ---------------------------------------------------------------------------------------------


class TokenizedSample(NamedTuple):
    """A sample ready to be framed: what reader processes hand over.

    Attributes:
      index: position in the repeated data set.
      key, kind: of the sample.
      parts: a list of TextIds and ImageTokens; of a preference the preferred sequence's.
      other: of a preference the other sequence's, else None.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks this for
    key: str
    kind: str
    parts: list
    other: list | None = None


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """How samples of one source become parts. Called as (index, sample); can be pickled into reader processes.

    Attributes:
      name: of the source, for errors.
      patch, channels: side of an image token in latent pixels, and C.
      pairs: samples are preferences, each of which gives two sequences.
      thinking: the source's texts may spell the thinking and prompt-refinement tokens (chain-of-thought data).
    """

    name: str
    vocabulary: Vocabulary
    augmentation: Augmentation
    seed: int
    patch: int
    channels: int
    thinking: bool = False
    pairs: bool = False

    def __call__(self, index: int, sample: Sample) -> TokenizedSample:
        try:
            preferences = self.pairs or self.augmentation.preferred_only
            if preferences != (sample.kind == "preference"):
                wanted = "preferences" if preferences else "no preferences"
                raise InputError(f"this training takes {wanted}, found a sample of kind {sample.kind!r}")
            if preferences and not self.thinking:
                _require_no_thoughts(sample)
            if not self.pairs:
                parts = self._encode_all(arrange(sample, self.augmentation, self.seed, index))
                return TokenizedSample(index, sample.key, sample.kind, parts)
            winner, loser = map(self._encode_all, arrange_preference(sample, self.augmentation, self.seed, index))
            _require_one_size(winner[-1], loser[-1])
            return TokenizedSample(index, sample.key, sample.kind, winner, loser)
        except InputError as error:
            raise InputError(f"{self.name}: sample {sample.key!r}: {error}") from error

    def _encode_all(self, parts: Parts) -> list[TextIds | ImageTokens]:
        return [self._encode(part) for part in parts]

    def _encode(self, part: TextPart | ImagePart) -> TextIds | ImageTokens:
        if not isinstance(part, ImagePart):
            ids = self.vocabulary.encode(part.text, special=OPTIONAL if self.thinking else ())
            return TextIds(np.asarray(ids, np.int32), part.loss)
        latents, patch = part.latents(), self.patch
        if latents.shape[-1] * patch**2 != self.channels:
            raise InputError(f"latents {latents.shape} in patches of {patch} are not image tokens of {self.channels} numbers")
        return ImageTokens(patchify(latents, patch), latents.shape[0] // patch, latents.shape[1] // patch, part.loss)


def _require_no_thoughts(sample: Sample) -> None:
    """InputError for a preference that spells thinking tokens: a model made it, and meant them."""
    spelled = [SPECIAL_TOKENS[name] for name in OPTIONAL if any(SPECIAL_TOKENS[name] in part.text for part in sample.texts)]
    if spelled:
        raise InputError(f"it spells {', '.join(spelled)}, but the source's thinking is off: they would be read as letters")


def _require_one_size(winner: TextIds | ImageTokens, loser: TextIds | ImageTokens) -> None:
    """InputError unless both are images of one size: they share their noise, token by token."""
    assert isinstance(winner, ImageTokens) and isinstance(loser, ImageTokens)
    if (winner.h, winner.w) != (loser.h, loser.w):
        raise InputError(f"the images of a preference must have one size, found {winner.h}*{winner.w} and {loser.h}*{loser.w}")


class Unusable(NamedTuple):
    """In place of a sample that cannot be used: why."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks this for
    reason: str


@dataclasses.dataclass(frozen=True)
class ReadSample:
    """From the index of a source's sample to its parts. Called as (index in the repeated data set, index in the source)."""

    source: Source
    tokenize: Tokenize

    def __call__(self, index: int, source_index: int) -> TokenizedSample | Unusable:
        try:
            return self.tokenize(index, self.source[source_index])
        except InputError as error:
            return Unusable(index, str(error))


# --- within the limits of a row ---------------------------------------------------------------------------------------


def added(*sizes: Sizes) -> Sizes:
    """Sizes of several items together."""
    return tuple(map(sum, zip(*sizes, strict=True)))


def fits(sizes: Sizes, limits: Sizes) -> bool:
    """Whether none is above its limit."""
    return all(size <= limit for size, limit in zip(sizes, limits, strict=True))


def segments(sample: TokenizedSample, special: SpecialIds, channels: int, limits: Sizes) -> Sequence[Segment | SegmentPair]:
    """The sequences of one sample, none with `sizes` above the limits of a row. Those of a preference are a pair, in which
    areas are no targets: of its text only what is preferred is one.

    A sample that fits is one sequence. Of those that do not, a text is cut into pieces, and an interleaved sample after images,
    so that every image keeps the text before it; where that is too long between any two parts, and inside a text only where it
    alone is longer than a row. Nothing of a cut sample is lost. The end of text follows its last piece only.

    Returns:
      No sequence if the sample cannot be cut (a pair, an edit, an image longer than a row): it is oversized.
    """
    if sample.other is not None:
        both = (training_segment(parts, special, channels, area_targets=False) for parts in (sample.parts, sample.other))
        pair = SegmentPair(*both)
        return [pair] if fits(pair.sizes, limits) else []
    whole = training_segment(sample.parts, special, channels)
    if fits(whole.sizes, limits):
        return [whole]
    seq_len, max_text_targets, _ = limits
    if sample.kind == "text":
        return cut_text(whole, min(seq_len, max_text_targets))
    if sample.kind == "interleaved":
        return _cut_between_parts(sample.parts, special, channels, limits)
    return []


def _cut_between_parts(
    parts: Sequence[TextIds | ImageTokens], special: SpecialIds, channels: int, limits: Sizes
) -> list[Segment]:
    seq_len, max_text_targets, max_image_targets = limits
    limits = seq_len - 1, max_text_targets - 1, max_image_targets  # room for the end of text

    def sizes(parts: Sequence[TextIds | ImageTokens]) -> Sizes:
        return frame(parts, special, channels).sizes

    units: list[Sequence[TextIds | ImageTokens]] = []  # what stays together if it can: an image and the text before it
    start = 0
    for stop, part in enumerate(parts, 1):
        if isinstance(part, TextIds) and stop < len(parts):
            continue
        unit, start = parts[start:stop], stop
        if fits(sizes(unit), limits):
            units.append(unit)
            continue
        for member in unit:
            longest = max(1, min(limits[:2]))
            if isinstance(member, TextIds):
                units += [[TextIds(member.ids[i : i + longest], member.loss)] for i in range(0, len(member.ids), longest)]
            elif fits(sizes([member]), limits):
                units.append([member])
            else:
                return []
    pieces: list[list[TextIds | ImageTokens]] = []
    used: Sizes = ()
    for unit in units:
        if pieces and fits(together := added(used, sizes(unit)), limits):
            pieces[-1] += unit
            used = together
        else:
            pieces.append(list(unit))
            used = sizes(unit)
    return [*(frame(piece, special, channels) for piece in pieces[:-1]), training_segment(pieces[-1], special, channels)]
