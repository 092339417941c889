"""GenAI-Bench (Li et al., 2024; linzhiqiu/t2v_metrics): composition in 1,600 prompts, one image each.

Criterion: "vqa", the probability that a judge answers yes to whether the image shows the prompt (VQAScore), which needs an
endpoint that gives the log-probabilities of its first token. "basic" and "advanced" are means over the prompts with that tag,
"all" over those with any tag (1,593).
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from nextstep_jax.chat import Answer, Question
from nextstep_jax.data import files
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Report, is_number, unweighted
from nextstep_jax.evaluation.suites.suite import (
    MODEL,
    Ask,
    Item,
    OfficialFiles,
    Scores,
    Suite,
    by_group,
    json_object,
    require_folder,
    safe_name,
)

SOURCE = "get genai_image.json and genai_skills.json of GenAI-Bench-1600"
PROMPTS, SKILLS = 1600, 12
IMAGE_SHA256 = "a7e15e46786b64f5d3518d3450b2b5a86438f2b946e8d093dcaf0d5c5c094b1e"
SKILLS_SHA256 = "8df390cb89d0584389747c69acecd03615ffc229c1db71a90e4abd3d12d9a3d2"
QUESTION = 'Does this figure show "{prompt}"? Please answer Yes or No.'
TOP_LOGPROBS = 20


class GenAIBench(Suite):
    """See the module."""

    name, title = "genai-bench", "GenAI-Bench"
    skills: Mapping[str, Any]
    names: ClassVar[tuple[str, str]] = ("genai_image.json", "genai_skills.json")

    def __init__(self, data: pathlib.Path | None, unofficial: bool = False):
        folder = require_folder(data, self.name)
        self.files = OfficialFiles(folder, SOURCE, unofficial)
        images, skills = (_name(folder, name) for name in self.names)
        records = self.files.read(images, json_object("prompt"), PROMPTS, IMAGE_SHA256, "prompts")
        self.skills = self.files.read(skills, json_object(), SKILLS, SKILLS_SHA256, "skills")
        self.items = [self._item(id, record, folder / images) for id, record in records.items()]
        known = {item.id for item in self.items}
        for skill, members in self.skills.items():
            if not isinstance(members, list) or any(type(i) is not int or f"{i:05d}" not in known for i in members):
                raise InputError(f"{folder / skills}: {skill}: expected a list of prompts by number, found {members!r:.100}")

    def _item(self, id: str, record: dict[str, Any], path: pathlib.Path) -> Item:
        name = safe_name(id, str(path))
        groups = [skill for skill, members in self.skills.items() if isinstance(members, list) and _number(id) in members]
        return Item(id, str(record["prompt"]), (f"{MODEL}/{name}.jpeg",), (*groups, "all") if groups else (), record)

    def criteria(self, item: Item) -> tuple[str, ...]:
        return ("vqa",)

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        question = Question(QUESTION.format(prompt=item.prompt), [image])
        return [Ask(("vqa",), question, yes_probability, max_tokens=1, top_logprobs=TOP_LOGPROBS)]

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        groups = by_group(self.items, {(id, sample): score for (id, sample, _), score in scores.items() if score is not None})
        names = sorted(groups, key=lambda name: (name not in ("basic", "advanced"), name != "all"))
        return Report({name: unweighted(groups, [name]) for name in names}, groups)

    def read_official(self, data: bytes, name: str) -> Scores:
        """A JSON object {id: VQAScore}; the official scorer keeps its scores as a tensor in the order of the ids."""
        value = files.parse_json(data, name)
        if not isinstance(value, dict) or not all(is_number(score) and 0 <= score <= 1 for score in value.values()):
            raise InputError(f"{name}: expected an object of scores from 0 to 1 by id")
        unknown = sorted(value.keys() - {item.id for item in self.items})
        if unknown:
            raise InputError(f"{name}: GenAI-Bench has no prompt {unknown[0]!r:.50}")
        return {(id, 0, "vqa"): float(score) for id, score in value.items()}


def yes_probability(answer: Answer) -> list[float] | None:
    """[P(yes)] by the first token's candidates: of "yes" itself, else 1 - P(no). None without either."""
    for word in ("yes", "no"):
        for token, logprob in answer.candidates or ():
            if token.strip().lower() == word and logprob <= 1e-6:
                probability = min(1.0, math.exp(logprob))
                return [probability if word == "yes" else 1 - probability]
    return None


def _number(id: str) -> int | None:
    return int(id) if id.isascii() and id.isdigit() else None


def _name(folder: pathlib.Path, name: str) -> str:
    """The file's name in the user's folder; copies carry the number of prompts in it."""
    numbered = name.replace(".json", f"_{PROMPTS}.json")
    return numbered if not (folder / name).exists() and (folder / numbered).exists() else name
