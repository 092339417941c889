"""Signals by embeddings of a model that the user brings: alignment of text and image, aesthetics (paper section 5.1.2)."""

import dataclasses
import pathlib
from typing import Annotated, ClassVar

import numpy as np

from nextstep_jax.data.curation.embedders import OnnxModel, embedder_files, open_embedder
from nextstep_jax.data.curation.stages import Measure, Values
from nextstep_jax.data.curation.text_signals import text_of
from nextstep_jax.data.records import Sample
from nextstep_jax.errors import InputError
from nextstep_jax.schema import at_least


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Cosine of the embeddings of a sample's text and its image ("score"); of several images, the lowest.

    Attributes:
      embedder: onnx:FOLDER or openai:URL#MODEL, see `embedders`.
      concurrency: samples embedded at once by one worker, for an endpoint.
    """

    embedder: str = ""
    concurrency: Annotated[int, at_least(1)] = 1
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        if not self.embedder:
            raise InputError("embedder of an alignment is not set (expected onnx:FOLDER or openai:URL#MODEL)")
        embedder = open_embedder(self.embedder, texts=True)

        def measure(sample: Sample) -> Values:
            said = text_of(sample).strip()
            if not said or not sample.images:
                return {}
            text = embedder.text(said)
            images = [embedder.image(part.pixels(sample.key)) for part in sample.images]
            cosines = [None if text is None or image is None else float(text @ image) for image in images]
            return {"score": None if None in cosines else round(min(cosine for cosine in cosines if cosine is not None), 4)}

        return measure

    def model_files(self) -> list[pathlib.Path]:
        return embedder_files(self.embedder)


@dataclasses.dataclass(frozen=True)
class Aesthetics:
    """What a head says of an image's embedding ("score", on the scale that the head has); of several images, the lowest.

    Attributes:
      embedder: onnx:FOLDER or openai:URL#MODEL, see `embedders`.
      head: an ONNX file from unit vectors [1, D] to one number, such as an aesthetic predictor for this embedder.
      concurrency: samples embedded at once by one worker, for an endpoint.
    """

    embedder: str = ""
    head: str = ""
    concurrency: Annotated[int, at_least(1)] = 1
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        if not self.embedder:
            raise InputError("embedder of aesthetics is not set (expected onnx:FOLDER or openai:URL#MODEL)")
        if not self.head:
            raise InputError("head of aesthetics is not set (expected an ONNX file from embeddings to scores)")
        head = OnnxModel(pathlib.Path(self.head), "a head")
        embedder = open_embedder(self.embedder, texts=False)

        def score(pixels: np.ndarray) -> float | None:
            vector = embedder.image(pixels)
            if vector is None:
                return None
            found = head({head.inputs[0]: vector[None].astype(np.float32)})
            if found.size != 1 or not np.isfinite(found).all():
                raise InputError(f"{self.head}: expected one finite number, found shape {list(found.shape)}")
            return float(found.reshape(()))

        if score(np.full((64, 64, 3), 127, np.uint8)) is None:
            raise InputError(f"{self.embedder}: no answer to an image")

        def measure(sample: Sample) -> Values:
            scores = [score(part.pixels(sample.key)) for part in sample.images]
            if not scores:
                return {}
            return {"score": None if None in scores else round(min(score for score in scores if score is not None), 4)}

        return measure

    def model_files(self) -> list[pathlib.Path]:
        head = pathlib.Path(self.head)
        return [*embedder_files(self.embedder), *([head] if head.is_file() else [])]
