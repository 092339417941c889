"""ImgEdit-Bench, basic (Ye et al., 2025; PKU-YuanGroup/ImgEdit): 737 edits of nine types, one image each.

Criteria: "first", "second" and "third", 1 to 5, whose meaning depends on the type of edit; the judge's instructions are the
official ones, read from the user's folder. An image's score is their mean, the overall score the mean over the types.

The user's folder holds `basic_edit.json`, `prompts.json`, and the source images below `singleturn`.
"""

import pathlib
from typing import Any

from nextstep_jax.chat import Answer, Question
from nextstep_jax.data import files, images
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.gedit import source_of
from nextstep_jax.evaluation.suites.results import Report, is_number, unweighted
from nextstep_jax.evaluation.suites.suite import (
    Ask,
    Item,
    OfficialFiles,
    Scores,
    Suite,
    by_group,
    json_object,
    require_folder,
    safe_name,
    samples_of,
)
from nextstep_jax.untrusted import check_inside

TYPES = ("add", "adjust", "extract", "replace", "remove", "background", "style", "compose", "action")
CRITERIA = ("first", "second", "third")
COUNT, SHA256 = 737, "5ee9b7d61e918692416f79896300f738598c83adff8de737b25be4aaff72dc69"
PROMPTS_SHA256 = "f9468dc848776ee0a6c2e2c31e678c7224e9cb61b013747c8c52d4a05627b5a0"
MAX_TOKENS = 1000


class ImgEdit(Suite):
    """See the module."""

    name, title = "imgedit", "ImgEdit-Bench"
    quirks = {"rounded": "each image's score and each type's mean are rounded to two digits"}

    def __init__(self, data: pathlib.Path | None, unofficial: bool = False):
        folder = require_folder(data, self.name)
        self.files = OfficialFiles(
            folder, "get Benchmark/ of PKU-YuanGroup/ImgEdit and Benchmark.tar of sysuyy/ImgEdit", unofficial
        )
        entries = self.files.read("basic_edit.json", json_object("id", "prompt", "edit_type"), COUNT, SHA256, "edits")
        self.prompts = self.files.read("prompts.json", json_object(), len(TYPES), PROMPTS_SHA256, "instructions")
        for kind in TYPES:
            if not isinstance(self.prompts.get(kind), str) or "<edit_prompt>" not in self.prompts[kind]:
                raise InputError(f"{folder / 'prompts.json'}: expected instructions with <edit_prompt> for {kind}")
        self.items = [self._item(key, entry, folder) for key, entry in entries.items()]

    def _item(self, key: str, entry: dict[str, Any], folder: pathlib.Path) -> Item:
        place = f"{folder / 'basic_edit.json'}, {key}"
        if entry["edit_type"] not in TYPES:
            raise InputError(f"{place}: edit_type must be one of {', '.join(TYPES)}, found {entry['edit_type']!r:.50}")
        path = folder / "singleturn" / str(entry["id"])

        def source() -> bytes:
            check_inside(path, folder)
            return files.read_bytes(path, images.MAX_FILE_BYTES)

        return Item(key, str(entry["prompt"]), (f"{safe_name(key, place)}.png",), (entry["edit_type"],), entry, source)

    def criteria(self, item: Item) -> tuple[str, ...]:
        return CRITERIA

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        text = self.prompts[item.groups[0]].replace("<edit_prompt>", item.prompt)
        return [Ask(CRITERIA, Question(text, [source_of(item), image]), parse_scores, MAX_TOKENS)]

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        values: dict[tuple[str, int], float] = {}
        for key, found in samples_of(scores).items():
            numbers = [found.get("mean")] if "mean" in found else [found.get(name) for name in CRITERIA]
            known = [number for number in numbers if number is not None]
            if len(known) == len(numbers):
                values[key] = sum(known) / len(known)
        if quirks:
            values = {key: round(value, 2) for key, value in values.items()}
        groups = by_group(self.items, values)
        metrics = {kind: unweighted(groups, [kind]) for kind in TYPES}
        overall = unweighted(groups, TYPES)
        if quirks:
            metrics = {kind: _rounded(metric) for kind, metric in metrics.items()}
            means = [metric.value for metric in metrics.values() if metric.value is not None]
            overall = type(overall)(sum(means) / len(TYPES) if len(means) == len(TYPES) else None)
        return Report({"overall": overall} | metrics, groups, list(self.quirks.values()) if quirks else ())

    def read_official(self, data: bytes, name: str) -> Scores:
        """result.json, the judge's reply by key, or average_score.json, the mean score by key."""
        value = files.parse_json(data, name)
        if not isinstance(value, dict):
            raise InputError(f"{name}: expected an object by key, found {type(value).__name__}")
        unknown = sorted(value.keys() - {item.id for item in self.items})
        if unknown:
            raise InputError(f"{name}: ImgEdit-Bench has no edit {unknown[0]!r:.50}")
        scores: dict[tuple[str, int, str], float | None] = {}
        for key, entry in value.items():
            if is_number(entry) and 1 <= entry <= 5:
                scores[key, 0, "mean"] = float(entry)
            elif isinstance(entry, str | dict):
                found = _numbers(entry) if isinstance(entry, str) else []
                scores[key, 0, "mean"] = sum(found) / len(found) if found else None
            else:
                raise InputError(f"{name}: {key}: expected a reply or a score from 1 to 5, found {entry!r:.50}")
        return scores


def parse_scores(answer: Answer) -> list[float] | None:
    """The three scores of a reply, lines such as `Prompt Compliance: 4`; None if there are not three from 1 to 5."""
    numbers = _numbers(answer.text or "")
    return numbers if len(numbers) == 3 and all(1 <= number <= 5 for number in numbers) else None


def _numbers(reply: str) -> list[float]:
    """The digits after ": " of lines that have nothing else."""
    parts = (line.strip().split(": ") for line in reply.splitlines())
    return [float(part[1]) for part in parts if len(part) == 2 and part[1].isascii() and part[1].isdigit() and len(part[1]) < 4]


def _rounded(metric: Any) -> Any:
    return type(metric)(None if metric.value is None else round(metric.value, 2))
