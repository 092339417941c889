"""Captioning anew by a language model with vision, in several languages and styles (paper section 5.1.2)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from nextstep_jax.chat import Question
from nextstep_jax.data.curation.questions import Asks
from nextstep_jax.data.curation.stages import Dropped, Make, Values
from nextstep_jax.data.records import Sample
from nextstep_jax.errors import InputError

LANGUAGES = {"en": "English", "zh": "Chinese"}
STYLES = {
    "short": "in one short sentence",
    "dense": "in detail in one paragraph: subjects, attributes, positions, text in the image, style, light, background",
    "tags": "as a comma-separated list of at most fifteen tags",
}
MAX_TOKENS = 400


@dataclasses.dataclass(frozen=True)
class Recaption(Asks):
    """A pair gets the captions STYLE.LANGUAGE as caption variants; the first of them takes the place of its caption, which
    stays as the variant "original". A caption that the model does not give leaves the sample out.

    Attributes:
      endpoint: openai:URL#MODEL, any endpoint that speaks OpenAI's chat completions.
      languages, styles: of `LANGUAGES` and `STYLES`.
      show_original: whether the model is told the caption that the image came with.
    """

    endpoint: str = ""
    languages: tuple[str, ...] = ("en", "zh")
    styles: tuple[str, ...] = ("dense", "short")
    show_original: bool = True
    version: ClassVar[int] = 1

    def __post_init__(self):
        for name, given, known in (("languages", self.languages, LANGUAGES), ("styles", self.styles, STYLES)):
            if not given or set(given) - set(known):
                raise InputError(f"{name} must be some of {', '.join(known)}, found {', '.join(given) or 'none'}")

    def prepare(self) -> Make:
        ask = self.open(self.endpoint, "recaption")

        def make(sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
            if sample.kind != "pair":
                raise Dropped("not a pair", f"{sample.key}: captions are made for pairs, found kind {sample.kind!r}")
            original = "".join(part.text for part in sample.texts).strip()
            image = sample.images[0].pixels(sample.key)
            wanted = [(style, language) for style in self.styles for language in self.languages]
            questions = [Question(self._question(style, language, original), [image]) for style, language in wanted]
            found = {}
            for (style, language), reply in zip(wanted, ask(questions, MAX_TOKENS), strict=True):
                if not reply or not reply.strip():
                    raise Dropped("no caption", f"{sample.key}: the model gave no {style} caption in {LANGUAGES[language]}")
                found[f"{style}.{language}"] = reply.strip()
            first = next(iter(found))
            recaptioned = dataclasses.replace(sample, caption_variants={first: found[first]}).with_caption(first)
            kept = {name: caption for name, caption in found.items() if name != first}
            return [dataclasses.replace(recaptioned, caption_variants=kept | ({"original": original} if original else {}))]

        return make

    def _question(self, style: str, language: str, original: str) -> str:
        known = f' It was published with this text, which may be wrong or beside the point: "{original}".'
        return (
            f"Describe this image in {LANGUAGES[language]}, {STYLES[style]}. Say only what can be seen."
            f"{known if self.show_original and original else ''} Answer with the description alone."
        )
