"""WISE (Niu et al., 2025; PKU-YuanGroup/WISE): world knowledge in 1,000 prompts, one image each.

Two editions that are not comparable: `Wise`, which the paper reports (now WISE_legacy), and `WiseVerified` (April 2026, other
prompts, a binary verdict, other weights). Images are drawn from "Prompt" alone; the judge is told the explanation.

Criteria: "consistency", "realism" and "aesthetic_quality" from 0 to 2, of which WiScore is (0.7 C + 0.2 R + 0.1 A) / 2; of the
verified edition "correct", 0 or 1. The overall score weighs the six categories by their share of the prompts.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from nextstep_jax.chat import Answer, Question
from nextstep_jax.data import files
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Report, is_number, parse_lines, unweighted, weighted
from nextstep_jax.evaluation.suites.suite import (
    MAX_FILE,
    Ask,
    Item,
    OfficialFiles,
    Scores,
    Suite,
    by_group,
    json_list,
    require_fields,
    require_folder,
    require_unique,
    samples_of,
)

SOURCE = "get the data folder of PKU-YuanGroup/WISE (WISE_legacy/data or data_verified)"
RUBRIC = "rubric.txt"  # in the user's folder, with <prompt> and <explanation>: used instead of the rubric below
CRITERIA = ("consistency", "realism", "aesthetic_quality")
SYSTEM = "You judge images strictly and by the given rules alone."
LEGACY_RUBRIC = """An image was generated from a prompt that needs knowledge of the world. Rate it by three criteria:
Consistency: does it show what the prompt means, as the explanation says? 0 no, 1 in part, 2 completely.
Realism: materials, light, physics and proportions. 0 implausible, 1 small faults, 2 like a photograph.
Aesthetic Quality: composition, colors, finish. 0 poor, 1 fair, 2 outstanding.
Be strict: in doubt, give the lower number. A 2 is rare.
PROMPT: <prompt>
EXPLANATION: <explanation>
Answer with these three lines alone, n being a number:
Consistency: n
Realism: n
Aesthetic Quality: n"""
VERIFIED_RUBRIC = """An image was generated from a prompt that needs knowledge of the world. Decide whether it shows what the
prompt means, as the explanation says: 1 if all of it is there and nothing contradicts it, else 0. Style does not count.
PROMPT: <prompt>
EXPLANATION: <explanation>
Answer with this line alone, n being 0 or 1:
Score: n"""


class Wise(Suite):
    """The edition that the paper reports."""

    name, title = "wise", "WISE"
    parts: ClassVar[Mapping[str, tuple[int, str]]] = {  # file: prompts, sha256
        "cultural_common_sense.json": (400, "7a59216c768698280cea37caa574b52f3faf054d73b398b9bb6b3161baf8e3aa"),
        "spatio-temporal_reasoning.json": (300, "e27d797885ad86e64d857d0cc93d33e04be572a8dcae95692a2c7e7876233f9a"),
        "natural_science.json": (300, "b262fae58e413c7a4bd3c3d5a089f8c6529feac227e4b6606be261a949035544"),
    }
    categories: ClassVar[Mapping[str, tuple[int, float]]] = {  # last id, weight
        "culture": (400, 0.4),
        "time": (567, 0.167),
        "space": (700, 0.133),
        "biology": (800, 0.1),
        "physics": (900, 0.1),
        "chemistry": (1000, 0.1),
    }
    rubric = LEGACY_RUBRIC
    max_tokens = 2000

    def __init__(self, data: pathlib.Path | None, unofficial: bool = False):
        data = require_folder(data, self.name)
        self.files = OfficialFiles(data, SOURCE, unofficial)
        items: list[Item] = []
        fields = ("Prompt", "Explanation", "prompt_id")
        for name, (count, digest) in self.parts.items():
            for record in self.files.read(name, json_list(*fields), count, digest, "prompts"):
                items.append(self._item(record, self.files.folder / name))
        self.items = require_unique(items, data)
        if (data / RUBRIC).exists():
            self.rubric = read_rubric(data / RUBRIC, "<prompt>", "<explanation>")

    def _item(self, record: dict[str, Any], path: pathlib.Path) -> Item:
        number = record["prompt_id"]
        category = next(
            (name for name, (last, _) in self.categories.items() if type(number) is int and 0 < number <= last), None
        )
        if category is None or not isinstance(record["Prompt"], str) or not record["Prompt"].strip():
            raise InputError(f"{path}: expected a Prompt and a prompt_id from 1 to 1000, found {record!r:.200}")
        return Item(str(number), record["Prompt"], (f"{number}.png",), (category,), record)

    def criteria(self, item: Item) -> tuple[str, ...]:
        return CRITERIA

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        text = self.rubric.replace("<prompt>", item.prompt).replace("<explanation>", str(item.record["Explanation"]))
        return [Ask(tuple(self.criteria(item)), Question(text, [image], SYSTEM), self.parse, self.max_tokens)]

    def parse(self, answer: Answer) -> list[float] | None:
        """The scores of a reply, one for each criterion."""
        return parse_three(answer.text or "")

    def value(self, of_image: Mapping[str, float | None]) -> float | None:
        """The score of an image; None unless all criteria have one."""
        found = [of_image.get(criterion) for criterion in CRITERIA]
        numbers = [score for score in found if score is not None]
        return None if len(numbers) < len(found) else wiscore(*numbers)

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        values = {key: self.value(of_image) for key, of_image in samples_of(scores).items()}
        groups = by_group(self.items, {key: value for key, value in values.items() if value is not None})
        metrics = {"overall": weighted(groups, {name: weight for name, (_, weight) in self.categories.items()})}
        return Report(metrics | {name: unweighted(groups, [name]) for name in self.categories}, groups)

    def read_official(self, data: bytes, name: str) -> Scores:
        """The lines of gpt_eval.py's scores file: prompt_id and the criteria. 999 there means that there is no score."""
        known = {item.id: item for item in self.items}
        scores: dict[tuple[str, int, str], float | None] = {}
        for number, value in enumerate(parse_lines(data, name), 1):
            place = f"{name}, line {number}"
            entry = require_fields(value, ("prompt_id", *self.official_fields), place)
            if str(entry["prompt_id"]) not in known:
                raise InputError(f"{place}: {self.name} has no prompt {entry['prompt_id']!r:.50}")
            for field, criterion in self.official_fields.items():
                score, best = entry[field], 2 if criterion in CRITERIA else 1
                if not is_number(score) or not (0 <= score <= best or score == 999):
                    raise InputError(f"{place}: {field} must be a number from 0 to {best}, found {score!r:.50}")
                scores[str(entry["prompt_id"]), 0, criterion] = None if score == 999 else float(score)
        return scores

    official_fields: ClassVar[Mapping[str, str]] = {name: name for name in CRITERIA}


class WiseVerified(Wise):
    """The edition of April 2026."""

    name, title = "wise-verified", "WISE_Verified"
    parts = {
        "cultural_common_sense_verified.json": (400, "23482925266e2784b2ba24b75239fdc6691bf85ae253d2c4aa38b71b45fefa89"),
        "spatio-temporal_reasoning_verified.json": (240, "42c0b9d829365e392c2d4af283850dc76b1f922ab0c79198366de4f306eaf2b6"),
        "natural_science_verified.json": (360, "6f346c336f16f611e5c73e0fcacdccb336c200d534cf111526b22d50ea912555"),
    }
    categories = {
        "culture": (400, 0.4),
        "time": (520, 0.12),
        "space": (640, 0.12),
        "biology": (760, 0.12),
        "physics": (880, 0.12),
        "chemistry": (1000, 0.12),
    }
    rubric = VERIFIED_RUBRIC
    max_tokens = 500
    official_fields = {"score": "correct"}

    def parse(self, answer: Answer) -> list[float] | None:
        return parse_one(answer.text or "")

    def criteria(self, item: Item) -> tuple[str, ...]:
        return ("correct",)

    def value(self, of_image: Mapping[str, float | None]) -> float | None:
        return of_image.get("correct")


def wiscore(consistency: float, realism: float, aesthetic_quality: float) -> float:
    """WiScore in [0, 1] of three scores from 0 to 2."""
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic_quality) / 2


def parse_three(reply: str) -> list[float] | None:
    """The three scores of a reply: each named once with a number from 0 to 2, or three lines of one digit."""
    names = ("Consistency", "Realism", "Aesthetic Quality")
    pattern = r"\*{{0,2}}{}\*{{0,2}}\s*[:：]\s*\*{{0,2}}\s*([0-2])(?![\d.])"
    found = [re.findall(pattern.format(name), reply, re.IGNORECASE) for name in names]
    if all(len(set(of_name)) == 1 for of_name in found):
        return [float(of_name[0]) for of_name in found]
    bare = re.fullmatch(r"\s*([0-2])\s*\n\s*([0-2])\s*\n\s*([0-2])\s*", reply)
    return [float(digit) for digit in bare.groups()] if bare and not any(found) else None


def parse_one(reply: str) -> list[float] | None:
    """The verdict of a reply: `Score: 0` or `Score: 1`, once."""
    found = set(re.findall(r"\*{0,2}Score\*{0,2}\s*[:：]\s*\*{0,2}\s*([01])(?![\d.])", reply, re.IGNORECASE))
    return [float(found.pop())] if len(found) == 1 else None


def read_rubric(path: pathlib.Path, *placeholders: str) -> str:
    """A judge's instructions from a file. InputError if a placeholder is missing."""
    try:
        text = files.read_bytes(path, MAX_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    missing = [placeholder for placeholder in placeholders if placeholder not in text]
    if missing:
        raise InputError(f"{path}: expected instructions with {', '.join(placeholders)}, found no {', '.join(missing)}")
    return text
