"""Signals of texts: length, language, the statistics of Gopher's quality filters, MinHash signatures."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from nextstep_jax.data.curation.stages import Measure, Values, require_package
from nextstep_jax.data.records import Sample

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’-][^\W_\u3400-\u9fff]+)*")
_BULLET = re.compile(r"\s*[-*•●▪‣·]\s")
# English words of which running text has some (Rae et al. 2021, appendix A1).
_STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])


def text_of(sample: Sample) -> str:
    """All texts of a sample, one after the other."""
    return "\n".join(part.text for part in sample.texts)


def words_of(text: str) -> list[str]:
    """Words in lower case; a Chinese character counts as one."""
    return _WORD.findall(text.lower())


@dataclasses.dataclass(frozen=True)
class TextQuality:
    """Numbers that running text has in narrow ranges (Rae et al. 2021, appendix A1, gives the usual thresholds):

    words; mean_word_length; stop_words (how many of eight English ones occur); fractions: symbols ("#", "…" and "..." a word),
    bullet_lines, ellipsis_lines, alphabetic_words, duplicate_lines (characters in lines seen before), top_2gram .. top_4gram
    (characters in the most frequent n-gram), duplicate_5grams .. duplicate_10grams (characters in repeated n-grams).
    """

    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        return lambda sample: text_quality(text_of(sample))


def text_quality(text: str) -> Values:
    """The numbers that `TextQuality` names, of one text; only {"words": 0} if it has none."""
    words, lines = words_of(text), [line for line in text.splitlines() if line.strip()]
    if not words:
        return {"words": 0}
    tokens, letters = text.split(), sum(map(len, words))
    found: dict[str, float] = {
        "mean_word_length": letters / len(words),
        "symbols": (text.count("#") + text.count("…") + text.count("...")) / len(words),
        "bullet_lines": sum(bool(_BULLET.match(line)) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("…", "...")) for line in lines) / len(lines),
        "alphabetic_words": sum(any(c.isalpha() for c in token) for token in tokens) / len(tokens),
        "duplicate_lines": _repeated(lines),
    }
    found |= {f"top_{n}gram": _top_ngram(words, n) / letters for n in (2, 3, 4)}
    found |= {f"duplicate_{n}grams": _duplicate_ngrams(words, n) / letters for n in (5, 6, 7, 8, 9, 10)}
    exact = {"words": len(words), "stop_words": len(_STOP_WORDS.intersection(words))}
    return exact | {name: round(value, 4) for name, value in found.items()}


def _repeated(lines: Sequence[str]) -> float:
    """Fraction of the characters that are in lines seen before."""
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated / sum(map(len, lines))


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _top_ngram(words: Sequence[str], n: int) -> int:
    """Characters in all occurrences of the n-gram that takes most of them; 0 if none occurs twice."""
    counts = collections.Counter(_ngrams(words, n))
    return max((count * sum(map(len, ngram)) for ngram, count in counts.items() if count > 1), default=0)


def _duplicate_ngrams(words: Sequence[str], n: int) -> int:
    """Characters of the words that are in an n-gram seen before, each counted once."""
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for start, ngram in enumerate(_ngrams(words, n)):
        if ngram in seen:
            covered.update(range(start, start + n))
        seen.add(ngram)
    return sum(len(words[i]) for i in covered)


@dataclasses.dataclass(frozen=True)
class Language:
    """ "code" (ISO 639-1) and "probability" of the language that a sample's texts are in, by py3langid."""

    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        module = require_package("py3langid.langid", "py3langid", "signal language")
        identifier = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)

        def measure(sample: Sample) -> Values:
            text = text_of(sample)
            if not text.strip():
                return {}
            code, probability = identifier.classify(text)
            return {"code": code, "probability": round(float(probability), 4)}

        return measure


@dataclasses.dataclass(frozen=True)
class MinHash:
    """ "signature": `hashes` numbers of which two texts share as large a fraction as their sets of `ngram`-word sequences do
    (Jaccard similarity; Broder 1997). Empty for a text without words.
    """

    ngram: int = 5
    hashes: int = 112
    version: ClassVar[int] = 1

    def prepare(self) -> Measure:
        return lambda sample: {"signature": minhash(words_of(text_of(sample)), self.ngram, self.hashes)}


def minhash(words: Sequence[str], ngram: int, hashes: int) -> list[int]:
    """The smallest of the values of each of `hashes` hash functions over the words' n-grams (the whole text if shorter)."""
    if not words:
        return []
    shingles = {" ".join(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}
    values = np.asarray(
        [int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest(), "big") for s in shingles], np.uint64
    )
    # Multiply-shift hashing (Dietzfelbinger et al. 1997), the same functions for every text. Products wrap around on purpose.
    factors, offsets = np.random.default_rng(0).integers(0, 1 << 64, (2, hashes, 1), np.uint64)
    return [int(value) for value in (((factors | 1) * values + offsets) >> 32).min(axis=1)]
