"""Words asked for against words in the image, read by an OCR model that its package ships."""

import re
from collections.abc import Sequence

from nextstep_jax.data.ocr import open_reader
from nextstep_jax.rewards.protocol import RewardRequest, Score

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|「([^」]+)」")


def wanted_text(request: RewardRequest) -> str:
    """What is to be read: `metadata["text"]`, else whatever the prompt has in quotation marks, in order."""
    if "text" in request.metadata:
        return str(request.metadata["text"])
    return " ".join(next(filter(None, groups)) for groups in _QUOTED.findall(request.prompt))


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn a into b."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (letter != other))
    return row[-1]


def text_score(found: str, wanted: str) -> float:
    """1 - edit distance / length of what was wanted, at least 0; blanks and case do not count."""
    found, wanted = ("".join(text.casefold().split()) for text in (found, wanted))
    return max(0.0, 1 - edit_distance(found, wanted) / len(wanted))


class OcrReward:
    """{"reward": `text_score` of what RapidOCR reads}; None for a request that asks for no text.

    Raises:
      InputError: the package is not installed.
    """

    name = "ocr-1"

    def __init__(self):
        self._read = open_reader("reward ocr")

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        return [self._score(request) for request in requests]

    def _score(self, request: RewardRequest) -> Score | None:
        wanted = wanted_text(request)
        if not wanted.strip():
            return None
        return {"reward": text_score(" ".join(line.text for line in self._read(request.image)), wanted)}
