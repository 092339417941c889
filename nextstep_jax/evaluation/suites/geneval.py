"""GenEval (Ghosh et al., 2023; djghosh13/geneval): objects, counts, colors and places in 553 prompts, 4 images each.

The official scorer detects objects (Mask2Former) and runs elsewhere; `score` reads its results file. A judge behind an endpoint
is asked instead whether an image is exactly what its prompt demands.

Criterion: "correct", 0 or 1. A task's score is the mean over its images, the overall score the mean over the six tasks.
"""

import json
import pathlib
import re
from typing import Any

from nextstep_jax.chat import Question
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Metric, Report, group_mean, parse_lines, unweighted
from nextstep_jax.evaluation.suites.suite import (
    Ask,
    Item,
    OfficialFiles,
    Scores,
    Suite,
    by_group,
    require_fields,
    yes_or_no,
)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PROMPTS = 553
SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
SHIPPED = pathlib.Path(__file__).parent / "data" / "geneval"
QUESTION = (
    "Look at the image and check each of these statements:\n{statements}\nAre all of them true? Answer with yes or no alone."
)


class GenEval(Suite):
    """See the module."""

    name, title, samples = "geneval", "GenEval", 4

    def __init__(self, data: pathlib.Path | None = None, unofficial: bool = False):
        """`data` None: the prompts that the package ships; else a folder with evaluation_metadata.jsonl."""
        self.files = OfficialFiles(data or SHIPPED, "without data, the prompts in the package are taken", unofficial)
        self.items = self.files.read("evaluation_metadata.jsonl", _items, PROMPTS, SHA256, "prompts")

    def beside(self, item: Item) -> dict[str, bytes]:
        return {f"{item.id}/metadata.jsonl": (json.dumps(item.record) + "\n").encode()}

    def criteria(self, item: Item) -> tuple[str, ...]:
        return ("correct",)

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        text = QUESTION.format(statements="\n".join(f"- {statement}" for statement in statements(item.record)))
        return [Ask(("correct",), Question(text, [image]), yes_or_no, max_tokens=8)]

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        values = {(id, sample): score for (id, sample, _), score in scores.items() if score is not None}
        groups = by_group(self.items, values)
        metrics = {"overall": unweighted(groups, TASKS)}
        metrics |= {task: unweighted(groups, [task]) for task in TASKS}
        images = {item.id: groups[item.groups[0]].get(item.id, ()) for item in self.items}
        return Report(metrics | {"mean over images": Metric(group_mean(images))}, groups)

    def read_official(self, data: bytes, name: str) -> Scores:
        """The results file of evaluate_images.py: lines with "filename" (…/00000/samples/00000.png), "prompt" and "correct"."""
        prompts = {item.id: item.prompt for item in self.items}
        scores: dict[tuple[str, int, str], float | None] = {}
        for number, value in enumerate(parse_lines(data, name), 1):
            place = f"{name}, line {number}"
            entry = require_fields(value, ("filename", "prompt", "correct"), place)
            match = re.search(r"(\d+)[/\\]samples[/\\](\d+)\.png$", str(entry["filename"]))
            if match is None or f"{int(match[1]):05d}" not in prompts or not isinstance(entry["correct"], bool):
                found = f"{entry['filename']!r:.100}, {entry['correct']!r:.20}"
                raise InputError(f"{place}: expected a file INDEX/samples/K.png and true or false, found {found}")
            id = f"{int(match[1]):05d}"
            if entry["prompt"] != prompts[id]:
                raise InputError(f"{place}: expected the prompt {prompts[id]!r}, found {entry['prompt']!r:.100}")
            scores[id, int(match[2]), "correct"] = float(entry["correct"])
        return scores


def statements(record: Any) -> list[str]:
    """What must be true of an image, in words: objects with their number and color, places, what must not be there."""
    include, found = record["include"], []
    for entry in include:
        kind = f"{entry['color']} {entry['class']}" if "color" in entry else entry["class"]
        found.append(f"The number of objects of the kind '{kind}' that can be seen is at least {entry['count']}.")
        if "position" in entry:
            relation, target = entry["position"]
            found.append(f"The {entry['class']} is {relation} the {include[target]['class']}.")
    for entry in record.get("exclude", ()):
        found.append(f"The number of objects of the kind '{entry['class']}' that can be seen is less than {entry['count']}.")
    return found


def _items(data: bytes, path: pathlib.Path) -> list[Item]:
    items = []
    for i, value in enumerate(parse_lines(data, path)):
        place = f"{path}, line {i + 1}"
        record = require_fields(value, ("tag", "prompt", "include"), place)
        if record["tag"] not in TASKS:
            raise InputError(f"{place}: tag must be one of {', '.join(TASKS)}, found {record['tag']!r:.50}")
        try:
            statements(record)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"{place}: expected include and exclude with class and count, found {record!r:.200}") from error
        names = tuple(f"{i:05d}/samples/{k:05d}.png" for k in range(GenEval.samples))
        items.append(Item(f"{i:05d}", str(record["prompt"]), names, (record["tag"],), record))
    return items
