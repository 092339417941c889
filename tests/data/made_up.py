"""A vocabulary whose word "w12" has the id 12, and small sources, for tests of sequences and mixtures."""

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.source import Unused
from nextstep_jax.data.vocabulary import Vocabulary, with_special_tokens

CHANNELS, PATCH = 64, 2


def vocabulary() -> Vocabulary:
    """Ids as in the golden sequences: digits 480 to 489, "*" 490, end of text 499, [PAD] 500, <|image_area|> 501, ..."""
    words = [f"w{id}" for id in range(480)] + [*"0123456789*"] + [f"unused{id}" for id in range(491, 499)]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="unused491"))
    split = pre_tokenizers.Split(Regex("w[0-9]+|[0-9*]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    return Vocabulary.from_bytes(with_special_tokens(tokenizer.to_str().encode()))


def text(ids, loss: bool = True) -> TextPart:
    return TextPart(" ".join(f"w{id}" for id in ids), loss)


def image(h: int, w: int, number: float, loss: bool = True) -> ImagePart:
    """h*w tokens whose numbers all are `number`."""
    return ImagePart.from_latents(np.full((h * PATCH, w * PATCH, 16), number, np.float32), h * 16, w * 16, loss)


class ListSource:
    """A source of samples held in a list."""

    def __init__(self, samples: list[Sample], name: str = "list"):
        self.samples, self.name, self.unused = samples, name, Unused()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def fingerprint(self, start: int, stop: int) -> str:
        return repr([sample.key for sample in self.samples[start:stop]])

    def identity(self) -> str:
        return self.fingerprint(0, len(self))


_KINDS = {"image_text_pair": "pair", "nlp": "text", "image_editing": "edit", "interleave": "interleaved"}


def golden_source(samples: list[dict], kind: str) -> ListSource:
    """The samples of a golden example; every number of an image's tokens is the image's number."""
    made = []
    for sample in samples:
        numbers = iter(sample["image_numbers"])
        parts = tuple(text(p["text"]) if "text" in p else image(*p["image"], next(numbers)) for p in sample["pieces"])
        # An edit that has lost its source in an augmentation is, to everything after it, a pair.
        one_image = len(sample["image_numbers"]) == 1
        made.append(Sample(parts, "pair" if kind == "image_editing" and one_image else _KINDS[kind], str(sample["index"])))
    return ListSource(made, kind)
