"""Interleaved sequences of the keyframes of videos: near-equal frames dropped, lengths limited, words added (section 5.1.4)."""

import dataclasses
from collections.abc import Iterable, Mapping, Set
from typing import Annotated, ClassVar

import numpy as np

from nextstep_jax.chat import Question
from nextstep_jax.data.curation.image_signals import gray, perceptual_hash
from nextstep_jax.data.curation.questions import Asks
from nextstep_jax.data.curation.stages import Dropped, Make, Values
from nextstep_jax.data.curation.text_signals import words_of
from nextstep_jax.data.ocr import open_reader
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from nextstep_jax.schema import NonNegative, at_least

Parts = list[TextPart | ImagePart]


@dataclasses.dataclass(frozen=True)
class DistinctFrames:
    """An interleaved sample without images that are near-equal to the one kept before, or all of one color; cut into sequences
    of at most `max_images`. Text before a dropped image goes on to the next one, or stays at the end.

    Attributes:
      max_distance: bits of 64 in which perceptual hashes of near-equal images may differ.
      min_contrast: standard deviation of gray below which an image shows nothing.
      min_images: sequences with fewer are dropped.
    """

    max_distance: NonNegative = 8
    min_contrast: float = 4.0
    min_images: Annotated[int, at_least(1)] = 2
    max_images: Annotated[int, at_least(1)] = 8
    version: ClassVar[int] = 1

    def __post_init__(self):
        if self.min_images > self.max_images:
            raise InputError(f"min_images is over max_images, {self.min_images} > {self.max_images}")

    def prepare(self) -> Make:
        return self._make

    def _make(self, sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
        sequences: list[Parts] = [[]]
        count, previous = 0, None
        for part in sample.parts:
            if isinstance(part, ImagePart):
                luma = gray(part.pixels(sample.key))
                value = perceptual_hash(luma)
                near = previous is not None and (value ^ previous).bit_count() <= self.max_distance
                if near or luma.std() < self.min_contrast:
                    continue
                if count == self.max_images:  # the text before this image begins the next sequence with it
                    last = sequences[-1]
                    moved = last.pop() if isinstance(last[-1], TextPart) else None
                    sequences.append([] if moved is None else [moved])
                    count = 0
                count, previous = count + 1, value
            _append(sequences[-1], part)
        made = [parts for parts in sequences if sum(isinstance(part, ImagePart) for part in parts) >= self.min_images]
        if not made:
            raise Dropped("too few distinct frames", f"{sample.key}: under {self.min_images} distinct frames")
        return [Sample(tuple(parts), "interleaved", f"{sample.key}#{n}", {}, sample.metadata) for n, parts in enumerate(made)]


def _append(parts: Parts, part: TextPart | ImagePart) -> None:
    """Add a part; two texts in a row become one."""
    last = parts[-1] if parts else None
    if isinstance(part, TextPart) and isinstance(last, TextPart):
        parts[-1] = TextPart(f"{last.text} {part.text}", part.loss)
    else:
        parts.append(part)


@dataclasses.dataclass(frozen=True)
class ScreenText:
    """What OCR reads on each image of an interleaved sample, and the text before it does not say yet, is put behind that text.

    Attributes:
      min_confidence: lines that the reader is less sure of do not count.
      new_words: fraction of a line's words that the text must lack.
    """

    min_confidence: float = 0.8
    new_words: float = 0.5
    version: ClassVar[int] = 1

    def prepare(self) -> Make:
        read = open_reader("transform screen_text")

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            parts: Parts = []
            for part in sample.parts:
                if isinstance(part, ImagePart):
                    said = set(words_of(parts[-1].text)) if parts and isinstance(parts[-1], TextPart) else set()
                    for line in read(part.pixels(sample.key)):
                        words = words_of(line.text)
                        new = [word for word in words if not _consists_of(word, said)]
                        if line.confidence >= self.min_confidence and words and len(new) >= self.new_words * len(words):
                            _append(parts, TextPart(line.text))
                            said.update(words)
                parts.append(part)
            return [dataclasses.replace(sample, parts=tuple(parts))]

        return make


def _consists_of(word: str, known: Set[str]) -> bool:
    """Whether a word is one of some, or several of them in a row: OCR loses blanks."""
    reached = {0}
    for end in range(1, len(word) + 1):
        if any(word[start:end] in known for start in reached):
            reached.add(end)
    return len(word) in reached


@dataclasses.dataclass(frozen=True)
class Storyline(Asks):
    """Every image of an interleaved sample gets a caption in front of it that goes on from those before; what was said there
    (subtitles) is shown to the model. An image whose caption is not given drops the sample.

    Attributes:
      endpoint: openai:URL#MODEL, any endpoint that speaks OpenAI's chat completions.
      language: in which the captions are written.
      context: captions before, shown to the model.
    """

    endpoint: str = ""
    language: str = "English"
    context: NonNegative = 4
    version: ClassVar[int] = 1

    def prepare(self) -> Make:
        ask = self.open(self.endpoint, "storyline")

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            captions: list[str] = []
            parts: Parts = []
            said = ""
            for part in sample.parts:
                if isinstance(part, TextPart):
                    said = part.text
                    continue
                question = Question(self._question(captions, said), [part.pixels(sample.key)])
                reply = ask([question], 200)[0]
                if not reply or not reply.strip():
                    raise Dropped("no caption", f"{sample.key}: the model gave no caption for image {len(captions)}")
                captions.append(reply.strip())
                parts += [TextPart(captions[-1]), part]
                said = ""
            return [dataclasses.replace(sample, parts=tuple(parts))]

        return make

    def _question(self, captions: list[str], said: str) -> str:
        before = captions[len(captions) - self.context :] if self.context else []
        lines = [
            f"This is a frame of a video. Describe it in {self.language} in one or two sentences that go on from the captions",
            "of the frames before; call the same person or thing by the same words. Answer with the description alone.",
            *(["Captions before:", *before] if before else []),
            *([f"What is said: {said}"] if said else []),
        ]
        return "\n".join(lines)
