"""DPG-Bench (Hu et al., 2024; TencentQQGYLab/ELLA): 1,065 long prompts, four images each in a grid of two by two.

The prompts are in the package; the questions, `dpg_bench.csv`, are read from the user's folder to judge and to score images.

Criteria: a question's number within its prompt ("1", "2", …), 0 or 1. In an image a question counts as 0 if one that it depends
on does, in the order of the questions. An image's score is the mean over its questions, a prompt's over its images, the total
100 times the mean over prompts. Categories take the verdicts without the rule of dependence.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from nextstep_jax.chat import Question
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Report, weighted
from nextstep_jax.evaluation.suites.suite import (
    Ask,
    Item,
    OfficialFiles,
    Scores,
    Suite,
    json_object,
    lines_of,
    safe_name,
    samples_of,
    table,
    table_number,
    yes_or_no,
)

SHIPPED = pathlib.Path(__file__).parent / "data" / "dpg_bench"
PROMPTS, QUESTIONS = "dpgbench_prompts.json", "dpg_bench.csv"
COUNT, SHA256 = 1065, "de8ee634eac21f7f55e65c847cb5719d5e50a3af4a5658d16e690b5142c2b5a2"
QUESTIONS_GIT_ID = "98457fc9901943f51ff9a30367250fc292533bed"
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
INSTRUCTION = " Answer with yes or no alone."


@dataclasses.dataclass(frozen=True)
class Proposition:
    """A question, the numbers of those it depends on, and its category such as "entity - whole"."""

    number: str
    text: str
    parents: tuple[str, ...]
    category: str


class DPGBench(Suite):
    """See the module."""

    name, title, samples, grid = "dpg-bench", "DPG-Bench", 4, True
    quirks = {
        "first row": "the first question is skipped; its prompt is left out if another question depends on it",
        "last image": "categories are those of the last image of each grid",
        "unreadable as no": "a reply that is not yes counts as no",
    }

    def __init__(self, data: pathlib.Path | None = None, unofficial: bool = False):
        self.files = OfficialFiles(SHIPPED, "the package is incomplete")
        prompts = self.files.read(PROMPTS, json_object(), COUNT, SHA256, "prompts")
        self.items = [_item(name.removesuffix(".txt"), str(prompt)) for name, prompt in prompts.items()]
        self.questions: dict[str, list[Proposition]] | None = None
        self.first: tuple[str, str] | None = None  # prompt and number of the first question
        if data is not None:
            questions = OfficialFiles(data, "get dpg_bench.csv of TencentQQGYLab/ELLA", unofficial)
            rows = questions.read(QUESTIONS, table(*COLUMNS), None, QUESTIONS_GIT_ID, "questions")
            self.files.digests |= questions.digests
            self.files.official = questions.official
            self.questions = _propositions(rows, data / QUESTIONS, {item.id for item in self.items})
            self.first = next(((id, part[0].number) for id, part in self.questions.items()), None)
            if unofficial:
                self.items = [item for item in self.items if item.id in self.questions]

    def criteria(self, item: Item) -> list[str]:
        return [proposition.number for proposition in self.propositions(item.id)]

    def propositions(self, id: str) -> Sequence[Proposition]:
        """The questions about a prompt. InputError without the file of questions, or for a prompt without any."""
        if self.questions is None:
            raise InputError(f"dpg-bench: data must name the folder of {QUESTIONS}, which the package does not have")
        if id not in self.questions:
            raise InputError(f"{QUESTIONS}: has no question about prompt {id!r}")
        return self.questions[id]

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        return [
            Ask((proposition.number,), Question(proposition.text + INSTRUCTION, [image]), yes_or_no, max_tokens=8)
            for proposition in self.propositions(item.id)
        ]

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        total: dict[str, list[float]] = {}
        categories: dict[str, dict[str, list[float]]] = {}
        for (id, sample), verdicts in sorted(samples_of(scores).items()):
            if "image" in verdicts:  # of the official results, which hold no single verdict
                value = verdicts["image"]
                total.setdefault(id, []).extend([] if value is None else [value])
                continue
            found = [(p, verdicts[p.number]) for p in self._counted(id, quirks) if p.number in verdicts]
            known = [(p, 0.0 if v is None and quirks else v) for p, v in found]
            answers = {p.number: v for p, v in known if v is not None}
            parts = [p for p, v in known if v is not None]
            if not parts:
                continue
            after = dependent(parts, answers)
            total.setdefault(id, []).append(sum(after.values()) / len(after))
            if not quirks or sample == self.samples - 1:
                for part in parts:
                    for name in {part.category, part.category.split("-")[0].strip()}:
                        categories.setdefault(name, {}).setdefault(id, []).append(answers[part.number])
        groups = {"all": {id: [sum(values) / len(values)] for id, values in total.items() if values}} | categories
        metrics = {"total": weighted(groups, {"all": 100.0})}
        metrics |= {name: weighted(groups, {name: 100.0}) for name in sorted(categories)}
        return Report(metrics, groups, list(self.quirks.values()) if quirks else ())

    def _counted(self, id: str, quirks: bool) -> list[Proposition]:
        """The questions that count; with the official quirks not the very first one, nor its prompt if others depend on it."""
        propositions = list(self.propositions(id))
        if quirks and self.first is not None and self.first[0] == id:
            propositions = [p for p in propositions if p.number != self.first[1]]
            if any(self.first[1] in p.parents for p in propositions):
                return []
        return propositions

    def read_official(self, data: bytes, name: str) -> Scores:
        """What compute_dpg_bench.py writes: `…_detail.txt` with every answer, or the results with a score for each image."""
        known = {item.id for item in self.items}
        scores: dict[tuple[str, int, str], float | None] = {}
        for number, line in lines_of(data, name):
            if line.startswith("Model: "):
                break
            detail = re.fullmatch(r"(.+), \((\d+), (\d+), \d+, \d+\), (.+), (.*)", line)
            whole = re.fullmatch(r"(.+?\.\w+)((?:, \d[\d.eE+-]*){2,5})", line)
            match = detail or whole
            id = re.split(r"[/\\]", match[1])[-1].split(".")[0] if match else ""
            if match is None or id not in known:
                raise InputError(f"{name}, line {number}: expected an image of DPG-Bench and its scores, found {line!r:.100}")
            if detail is not None:
                sample = 2 * (int(detail[3]) > 0) + (int(detail[2]) > 0)
                numbers = [p.number for p in self.propositions(id) if p.text == detail[4]]
                if not numbers:
                    raise InputError(f"{name}, line {number}: {QUESTIONS} has no question {detail[4]!r:.100} about {id}")
                scores |= {(id, sample, n): float(detail[5] == "yes") for n in numbers}
            elif whole is not None:
                texts = whole[2].split(", ")[1:-1]  # the last is their mean
                scores |= {(id, k, "image"): table_number(text, 1, f"{name}, line {number}") for k, text in enumerate(texts)}
        return scores


def dependent(propositions: Sequence[Proposition], answers: Mapping[str, float]) -> dict[str, float]:
    """Answers after the rule of dependence: 0 for a question of which a parent is 0, in the order of the questions."""
    after = dict(answers)
    for proposition in propositions:
        if any(after.get(parent) == 0 for parent in proposition.parents):
            after[proposition.number] = 0.0
    return after


def _item(id: str, prompt: str) -> Item:
    return Item(id, prompt, (f"{safe_name(id, PROMPTS)}.png",))


def _propositions(rows: Sequence[Mapping[str, str]], path: pathlib.Path, known: set[str]) -> dict[str, list[Proposition]]:
    found: dict[str, list[Proposition]] = {}
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        if row["item_id"] not in known:
            raise InputError(f"{place}: DPG-Bench has no prompt {row['item_id']!r:.50}")
        own, *parents = _whole_numbers([row["proposition_id"], *row["dependency"].split(",")], place)
        category = row["tuple"].split("(")[0].strip()
        parents = [parent for parent in parents if parent != "0"]
        found.setdefault(row["item_id"], []).append(
            Proposition(own, row["question_natural_language"].strip(), tuple(parents), category)
        )
    return found


def _whole_numbers(texts: Sequence[str], place: str) -> Iterator[str]:
    for text in texts:
        try:
            yield str(int(text))
        except ValueError as error:
            raise InputError(f"{place}: expected proposition_id and dependency as whole numbers, found {text!r:.50}") from error
