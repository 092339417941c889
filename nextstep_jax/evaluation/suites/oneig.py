"""OneIG-Bench (Chang et al., 2025; OneIG-Bench/OneIG-Benchmark): 1,120 English or 1,320 Chinese prompts, four images each in a
grid of two by two.

Five dimensions, of which the overall score is the mean. A judge behind an endpoint decides two:

    alignment   criteria: a question's number ("1", "2", …), 0 or 1. In an image a question counts as 0 if one that it directly
                depends on is answered with no. Mean over questions, images, then prompts.
    text        criteria: "edit_distance", "matched_words" and "target_words" of the text read in an image. The score is
                1 - min(M, ED) (1 - CR) (1 - WAC) / M: ED mean edit distance, CR share of images without an error, WAC matched
                words over target words, M 100 (EN) or 50 (ZH).

Reasoning, style and diversity need the official scorer's networks; `score` reads its files `*_prompt_score_*.csv`. It leaves
images out that are wholly black, which stand for missing ones; exports have no such images.
"""

import ast
import dataclasses
import json
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nextstep_jax.chat import Answer, Question
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Metric, Report, is_number, unweighted
from nextstep_jax.evaluation.suites.suite import (
    MODEL,
    Ask,
    Item,
    OfficialFiles,
    Scores,
    Suite,
    json_object,
    require_folder,
    safe_name,
    samples_of,
    table,
    yes_or_no,
)
from nextstep_jax.rewards.text import edit_distance

CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
DIMENSIONS = ("alignment", "text", "reasoning", "style", "diversity")
TEXT_CRITERIA = ("edit_distance", "matched_words", "target_words")
INSTRUCTION = ". Please answer 'Yes' or 'No' only."
NO_TEXT = "No text recognized."
READ = f"Write down all text in the image, line by line, without comments. If there is none, write: {NO_TEXT}"
LONG_TEXT = 60  # words
_KEPT = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüÿçÀÂÄÉÈÊËÎÏÔÖÙÛÜŸÇ]")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Form:
    """The files of a language: (count, sha256) of the prompts, of the questions of each class and of the texts."""

    prompts: tuple[str, str, int, str]  # file, column, count, sha256
    questions: Mapping[str, tuple[str, int, str]]  # class: file, count, sha256
    texts: tuple[str, str]  # file, sha256
    max_distance: int


class OneIG(Suite):
    """The English prompts."""

    name, title, samples, grid = "oneig-en", "OneIG-Bench EN", 4, True
    quirks = {"unreadable as no": "a reply that is not yes counts as no"}
    form: ClassVar[Form] = Form(
        ("OneIG-Bench.csv", "prompt_en", 1120, "e06c65b32252d82406fb1a27f13022b38d432c899a2486eb49ab0c100f83b3e1"),
        {
            "anime": ("anime.json", 245, "21ea3d0360e69d72bc5f4cbb93b203d293d16f5c2f626634a52b990119e0a6e3"),
            "human": ("human.json", 244, "0e92b25c6bc4091cac05fa0f4269b3b37465a7cd43ca2768f55f56149cdbf13b"),
            "object": ("object.json", 206, "350dfdf72c2da143c78a7544d4c554faf6698c1ba4fcd27c7a9cc9199d487e0e"),
        },
        ("text_content.csv", "ffbf0b588c617b77caf1e9a733496ff5b4704b6534df5fba13201a83f21e0512"),
        100,
    )

    def __init__(self, data: pathlib.Path | None, unofficial: bool = False):
        folder = require_folder(data, self.name)
        self.files = OfficialFiles(folder, "get the prompts and scripts/ of OneIG-Bench/OneIG-Benchmark", unofficial)
        scripts = "scripts/" if (folder / "scripts").is_dir() else ""
        name, column, count, digest = self.form.prompts
        rows = self.files.read(name, table("category", "id", column), count, digest, "prompts")
        self.items = [_item(row, column, f"{folder / name}, row {i}") for i, row in enumerate(rows, 1)]
        self.questions: dict[str, dict[str, tuple[str, list[str]]]] = {}
        for kind, (name, count, digest) in self.form.questions.items():
            path = f"{scripts}alignment/Q_D/{name}"
            entries = self.files.read(path, json_object("question", "dependency"), count, digest, "prompts")
            for id, entry in entries.items():
                self.questions[f"{kind}_{id}"] = _questions(entry, f"{folder / path}, {id}")
        name, digest = self.form.texts
        rows = self.files.read(f"{scripts}text/{name}", table("id", "text_content"), 200, digest, "texts")
        self.texts = {f"text_{row['id']}": row["text_content"] for row in rows}
        for item in self.items:
            if item.groups[0] in self.form.questions and item.id not in self.questions:
                raise InputError(f"{folder}: no questions about prompt {item.id}")
            if item.groups[0] == "text" and item.id not in self.texts:
                raise InputError(f"{folder / scripts / 'text' / name}: no text of prompt {item.id}")

    def criteria(self, item: Item) -> list[str]:
        if item.id in self.texts:
            return list(TEXT_CRITERIA)
        return list(self.questions.get(item.id, ()))

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        if (target := self.texts.get(item.id)) is not None:
            tokens = 256 if len(target.split()) > LONG_TEXT else 128

            def read(answer: Answer) -> list[float]:
                return compare_text(answer.text or "", target)

            return [Ask(TEXT_CRITERIA, Question(READ, [image]), read, tokens)]
        return [
            Ask((number,), Question(text + INSTRUCTION, [image]), yes_or_no, max_tokens=8)
            for number, (text, _) in self.questions.get(item.id, {}).items()
        ]

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        groups: dict[str, dict[str, list[float]]] = {name: {} for name in DIMENSIONS if name != "text"}
        read: list[tuple[float, float, float, float]] = []  # of each image: distance, whether it is 0, matched, target words
        for (id, _), found in sorted(samples_of(scores).items()):
            for name in groups:
                if (value := found.get(name)) is not None:  # of the official scorer, one for each prompt
                    groups[name][id] = [value]
            if id in self.questions and not groups.keys() & found.keys():
                value = self._aligned(id, found, quirks)
                groups["alignment"].setdefault(id, []).extend([] if value is None else [value])
            if id in self.texts:
                read += _text_numbers(found, self.texts[id])
        groups["alignment"] = {id: [sum(values) / len(values)] for id, values in groups["alignment"].items() if values}
        metrics = {name: unweighted(groups, [name]) for name in groups} | {"text": self._text(read)}
        values = [metrics[name].value for name in DIMENSIONS]
        known = [value for value in values if value is not None]
        overall = Metric(sum(known) / len(values) if len(known) == len(values) else None)
        parts = _text_parts(read)
        metrics = {"overall": overall} | {name: metrics[name] for name in DIMENSIONS} | parts
        return Report(metrics, groups, list(self.quirks.values()) if quirks else ())

    def _aligned(self, id: str, found: Mapping[str, float | None], quirks: bool) -> float | None:
        """An image's alignment: mean over its questions after the rule of dependence; None without any verdict."""
        raw = {n: 0.0 if quirks and found[n] is None else found[n] for n in self.questions[id] if n in found}
        values = []
        for number, (_, parents) in self.questions[id].items():
            value = raw.get(number)
            if value is not None:
                values.append(0.0 if any(raw.get(parent) == 0 for parent in parents) else value)
        return sum(values) / len(values) if values else None

    def _text(self, read: Sequence[tuple[float, float, float, float]]) -> Metric:
        if not read:
            return Metric(None)
        distance, right, words = _text_means(read)
        most = self.form.max_distance
        return Metric(1 - min(most, distance) * (1 - right) * (1 - words) / most)

    def read_official(self, data: bytes, name: str) -> Scores:
        """A file DIMENSION_prompt_score_*.csv: a row for each prompt and a column for each model."""
        path = pathlib.Path(name)
        dimension = path.name.split("_prompt_score")[0]
        if dimension not in DIMENSIONS or "_prompt_score" not in path.name:
            raise InputError(f"{name}: expected {'|'.join(DIMENSIONS)}_prompt_score_*.csv of the official scorer")
        rows = table()(data, path)
        models = [column for column in (rows[0] if rows else {}) if column]
        if len(models) != 1 and MODEL not in models:
            raise InputError(f"{name}: expected the scores of one model, found {', '.join(models) or 'none'}")
        model = MODEL if MODEL in models else models[0]
        known = {item.id for item in self.items}
        prefix = {"reasoning": "reasoning_", "style": "anime_", "text": "text_"}.get(dimension, "")
        scores: dict[tuple[str, int, str], float | None] = {}
        for number, row in enumerate(rows, 1):
            id, cell, place = prefix + row.get("", ""), row[model], f"{name}, row {number}"
            if id not in known:
                raise InputError(f"{place}: {self.title} has no prompt {id!r:.50}")
            names = ("ED", "CR", "WAC") if dimension == "text" else (dimension,)
            values = _cell(cell, len(names), place)
            scores |= {(id, 0, n): v for n, v in zip(names, values, strict=True)}
        return scores


class OneIGChinese(OneIG):
    """The Chinese prompts."""

    name, title = "oneig-zh", "OneIG-Bench ZH"
    form = Form(
        ("OneIG-Bench-ZH.csv", "prompt_cn", 1320, "8fc4ae1403db32dbb1203cc457361c3215500b34e741194a53f5002c9d824700"),
        {
            "anime": ("anime_zh.json", 245, "171740d2d7158f0da2d907481b5cd97380398e4a45b53f0976ad4d91e01151d4"),
            "human": ("human_zh.json", 244, "819f13b1efab67bdfba9ca633a37e009013350d148323f5d65b2a467f1789c64"),
            "object": ("object_zh.json", 206, "19f69cfdf17119ff5400919341c930468a0de5ee06b9c91d8f16ba2365f51498"),
            "multilingualism": (
                "multilingualism_zh.json",
                200,
                "63614e72dbd86f1e56ed625a55f73d509323d34b68fb27d8fed0f87a49f69db9",
            ),
        },
        ("text_content_zh.csv", "6250b3be96e9c4fd4c9cb858dd36b5b2dc4fc8fccb8e4ed0317f5da392db9a1a"),
        50,
    )


# --- text -------------------------------------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """Chinese, letters and digits alone; words with single blanks between them, of Chinese text no blanks."""
    text = _KEPT.sub("", text)
    return "".join(text.split()) if _CHINESE.search(text) else " ".join(text.split())


def target_words(target: str) -> list[str]:
    """What is counted of a cleaned text: words, of Chinese text characters."""
    return list(target) if _CHINESE.search(target) else target.split()


def compare_text(reply: str, target: str) -> list[float]:
    """[edit distance, matched words, words of the target] of a text read against one that was asked for."""
    found, wanted = clean_text(reply.replace(NO_TEXT, " ")), clean_text(target)
    words = target_words(wanted)
    read = list(found) if _CHINESE.search(wanted) else found.split()
    matched = (Counter(words) & Counter(read)).total()
    return [float(edit_distance(found, wanted)), float(matched), float(len(words))]


def _text_numbers(found: Mapping[str, float | None], target: str) -> list[tuple[float, float, float, float]]:
    """(edit distance, whether it is 0, matched, target words) of an image; of a prompt's means in the official file."""
    if "ED" in found:
        distance, right, share = found["ED"], found["CR"], found["WAC"]
        words = float(len(target_words(clean_text(target))))
        return [] if distance is None or right is None or share is None else [(distance, right, share * words, words)]
    distance, matched, words_asked = (found.get(name) for name in TEXT_CRITERIA)
    if distance is None or matched is None or words_asked is None:
        return []
    return [(distance, float(distance == 0), matched, words_asked)]


def _text_means(read: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float]:
    """(ED, CR, WAC)."""
    distances, rights, matched, words = (sum(column) for column in zip(*read, strict=True))
    return distances / len(read), rights / len(read), matched / words if words else 0.0


def _text_parts(read: Sequence[tuple[float, float, float, float]]) -> dict[str, Metric]:
    names = ("text: edit distance", "text: without an error", "text: word accuracy")
    return {name: Metric(value) for name, value in zip(names, _text_means(read) if read else (None,) * 3, strict=True)}


# --- files ------------------------------------------------------------------------------------------------------------


def _item(row: Mapping[str, str], column: str, place: str) -> Item:
    if row["category"] not in CLASSES or not row[column].strip():
        raise InputError(f"{place}: expected a prompt of {', '.join(CLASSES)}, found {row['category']!r:.50}")
    kind, id = CLASSES[row["category"]], safe_name(row["id"], place)
    return Item(f"{kind}_{id}", row[column], (f"{kind}/{MODEL}/{id}.webp",), (kind,), dict(row))


def _questions(entry: Mapping[str, Any], place: str) -> dict[str, tuple[str, list[str]]]:
    """{number: (question, numbers of those it depends on)}."""
    try:
        texts, parents = (
            json.loads(entry[name]) if isinstance(entry[name], str) else entry[name] for name in ("question", "dependency")
        )
        return {str(int(n)): (str(text), [str(int(p)) for p in parents[n] if int(p)]) for n, text in texts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{place}: expected questions and what they depend on by number ({error})") from error


def _cell(cell: str, count: int, place: str) -> list[float | None]:
    """The numbers of a cell: none if it is empty, one, or several as a Python list."""
    if not cell.strip() or cell.strip().lower() in ("nan", "none"):
        return [None] * count
    try:
        value = ast.literal_eval(cell[:200])
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"{place}: expected {count} numbers, found {cell!r:.50}") from error
    values = value if isinstance(value, list) else [value]
    if len(values) != count or not all(map(is_number, values)):
        raise InputError(f"{place}: expected {count} numbers, found {cell!r:.50}")
    return [float(value) for value in values]
