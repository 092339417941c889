"""Character-centered sequences of the keyframes of videos (paper section 5.1.4): who appears again, and a check list for it."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

import numpy as np

from nextstep_jax.chat import Question
from nextstep_jax.data.curation.faces import cluster, open_face_finder
from nextstep_jax.data.curation.model_signals import parse_answer
from nextstep_jax.data.curation.questions import Asks
from nextstep_jax.data.curation.stages import Dropped, Make, Values
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from nextstep_jax.schema import Probability, at_least


@dataclasses.dataclass(frozen=True)
class Characters:
    """An interleaved sample becomes a sequence for each person who is in at least `min_images` of its images: those images,
    each after its text. `metadata["character"]` has the person's number and boxes, [x, y, width, height] in each image.

    Attributes:
      detector, recognizer: files, see `faces.open_face_finder`.
      min_confidence: of a face.
      min_face: pixels of a face's shorter side.
      min_cosine: between a face and the mean of a person's; SFace's authors take 0.363 for the same person.
      min_images, max_images: of a sequence; someone in more has several sequences.
    """

    detector: str = ""
    recognizer: str = ""
    min_confidence: Probability = 0.8
    min_face: Annotated[int, at_least(1)] = 32
    min_cosine: Probability = 0.363
    min_images: Annotated[int, at_least(2)] = 3
    max_images: Annotated[int, at_least(2)] = 8
    version: ClassVar[int] = 1

    def __post_init__(self):
        if self.min_images > self.max_images:
            raise InputError(f"min_images is over max_images, {self.min_images} > {self.max_images}")

    def prepare(self) -> Make:
        find = open_face_finder(self.detector, self.recognizer, self.min_confidence, self.min_face)

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            frames = _frames(sample)
            faces = [find(image.pixels(sample.key)) for _, image in frames]
            made = []
            for person, places in enumerate(cluster(faces, self.min_cosine)):
                for first in range(0, len(places), self.max_images):
                    chosen = places[first : first + self.max_images]
                    if len(chosen) < self.min_images:
                        continue
                    parts: list[TextPart | ImagePart] = []
                    for frame, _ in chosen:
                        texts, image = frames[frame]
                        parts += [*texts, image]
                    boxes = [list(faces[frame][number].box) for frame, number in chosen]
                    metadata = {**sample.metadata, "character": {"number": person, "boxes": boxes}}
                    made.append(Sample(tuple(parts), "interleaved", f"{sample.key}#p{person}.{first}", {}, metadata))
            if not made:
                raise Dropped("no character", f"{sample.key}: nobody is in at least {self.min_images} images")
            return made

        return make

    def model_files(self) -> list[pathlib.Path]:
        return [path for path in map(pathlib.Path, (self.detector, self.recognizer)) if path.is_file()]


def _frames(sample: Sample) -> list[tuple[list[TextPart], ImagePart]]:
    """Each image with the texts before it; texts behind the last image are left out."""
    frames: list[tuple[list[TextPart], ImagePart]] = []
    texts: list[TextPart] = []
    for part in sample.parts:
        if isinstance(part, TextPart):
            texts.append(part)
        else:
            frames.append((texts, part))
            texts = []
    return frames


QUESTIONS = (
    "Is the same person in all of these images?",
    "Does each text describe the image after it?",
    "Is the same person called by the same words in all texts?",
    "Are the texts, one after the other, a story that makes sense?",
)


@dataclasses.dataclass(frozen=True)
class CheckList(Asks):
    """A sample stays only if a model with vision says yes to every question about it; the first that it does not say yes to
    is the reason. It sees all images, and the texts with the images' numbers.

    Attributes:
      questions: to be answered with yes or no.
      endpoint: openai:URL#MODEL, any endpoint that speaks OpenAI's chat completions.
    """

    questions: tuple[str, ...] = QUESTIONS
    endpoint: str = ""
    version: ClassVar[int] = 1

    def __post_init__(self):
        if not self.questions:
            raise InputError("questions of a check list must be one or more")

    def prepare(self) -> Make:
        ask = self.open(self.endpoint, "check list")

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            images = [part.pixels(sample.key) for part in sample.images]
            asked = [
                Question(f"{_written(sample)}\n{question}\nAnswer with yes or no only.", images) for question in self.questions
            ]
            for question, reply in zip(self.questions, ask(asked, 16), strict=True):
                verdict = None if reply is None else parse_answer(reply, "yes_no")
                if verdict is None:
                    raise Dropped("check list not answered", f"{sample.key}: {question} ({reply!r:.100})")
                if not verdict:
                    raise Dropped(f"check list: {question}", f"{sample.key}: {question} no")
            return [sample]

        return make


def _written(sample: Sample) -> str:
    """The texts, and where the images stand between them."""
    lines, number = [], 0
    for part in sample.parts:
        if isinstance(part, ImagePart):
            number += 1
        lines.append(f"[image {number}]" if isinstance(part, ImagePart) else part.text)
    return "\n".join(lines)
