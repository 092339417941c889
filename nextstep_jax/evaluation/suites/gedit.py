"""GEdit-Bench (Liu et al., 2025; stepfun-ai/Step1X-Edit): 606 edits in English or Chinese, 11 tasks, one image each.

Criteria, as VIEScore has them, 0 to 10: "semantics", the smaller of how well the edit succeeds and how little else changed, and
"quality", the smaller of naturalness and freedom from artifacts; overall sqrt(semantics * quality). A number is the mean over
tasks of the task's mean. The official script guesses a number where it cannot read a reply; here it is left out.

The user's folder holds the parquet files of stepfun-ai/GEdit-Bench, or `gedit_edit.json`, a list of the English instructions in
UniWorld's repository, and the source images as `TASK/en/KEY_SRCIMG.png` or `TASK/en/KEY.png` below `fullset`.
"""

import functools
import io
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from PIL import Image

from nextstep_jax.chat import Answer, Question
from nextstep_jax.data import files, images
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Report, is_number, sha256, unweighted
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
    samples_of,
    table,
    table_number,
)
from nextstep_jax.evaluation.suites.wise import read_rubric
from nextstep_jax.untrusted import check_inside

TASKS = {
    "background_change": 40,
    "color_alter": 40,
    "material_alter": 40,
    "motion_change": 40,
    "ps_human": 70,
    "style_change": 60,
    "subject-add": 60,
    "subject-remove": 57,
    "subject-replace": 60,
    "text_change": 99,
    "tone_transfer": 40,
}
SOURCE = "get stepfun-ai/GEdit-Bench from the hub"
JSON_COUNT, JSON_SHA256 = 604, "9d34f6fc8741b840c9ebd28b699b17823536b8adc65dbfb153059208a6d5bf24"
CRITERIA = ("semantics", "quality")
MAX_TOKENS = 1400
RUBRICS = {  # in the user's folder: used instead of those below
    "semantics": "rubric_semantics.txt",
    "quality": "rubric_quality.txt",
}
SEMANTICS = """Two images follow: one before and one after an edit by an AI. Rate the edit by two numbers from 0 to 10.
First: does the second image follow the instruction? 0 not at all, 10 completely.
Second: is everything that the instruction does not name as it was? 0 another image, 10 nothing else changed.
Instruction: <instruction>
Answer with JSON alone, with a short reason: {"score": [first, second], "reasoning": "..."}"""
QUALITY = """An image made by an AI follows. Rate it by two numbers from 0 to 10.
First: does it look natural, with plausible distances, light and shadows? 0 not at all, 10 completely.
Second: is it free of artifacts such as distortions, seams, blur, and odd bodies or objects? 0 full of them, 10 free of them.
Answer with JSON alone, with a short reason: {"score": [first, second], "reasoning": "..."}"""


class GEdit(Suite):
    """The English instructions."""

    name, title = "gedit-en", "GEdit-Bench EN"
    language: ClassVar[str] = "en"

    def __init__(self, data: pathlib.Path | None, unofficial: bool = False):
        folder = require_folder(data, self.name)
        self.files = OfficialFiles(folder, SOURCE, unofficial)
        parquet = sorted(folder.glob("**/*.parquet"))
        if not parquet and self.language != "en":
            raise InputError(f"{folder}: no parquet file; {SOURCE}")
        rows = _parquet_rows(parquet, self.language) if parquet else self._json_rows(folder)
        counts = Counter(task for task, *_ in rows)
        if parquet:
            listed = [[task, key, instruction, bool(both)] for task, key, instruction, both, _ in rows]
            self.files.digests[f"instructions ({self.language})"] = sha256(json.dumps(listed).encode())
            if counts != TASKS:
                self.files.differ(folder, f"{sum(TASKS.values())} edits of 11 tasks", f"{len(rows)} of {len(counts)} tasks")
        seen: Counter[str] = Counter()
        self.items = []
        for task, key, instruction, both, source in rows:
            if task not in TASKS or not instruction.strip():
                raise InputError(f"{folder}: {key}: expected an instruction of {', '.join(TASKS)}, found {task!r:.50}")
            seen[safe_name(key, str(folder))] += 1
            id = key if seen[key] == 1 else f"{key}-{seen[key]}"  # two keys occur twice, and files are called by their keys
            path = f"{MODEL}/fullset/{task}/{self.language}/{id}.png"
            self.items.append(Item(id, instruction, (path,), (task,), {"intersection": both}, source))
        texts = {"semantics": SEMANTICS, "quality": QUALITY}
        for criterion, name in RUBRICS.items():
            if (folder / name).exists():
                texts[criterion] = read_rubric(folder / name, *(["<instruction>"] if criterion == "semantics" else []))
        self.rubrics = texts

    def _json_rows(self, folder: pathlib.Path) -> list[tuple[str, str, str, bool | None, Callable[[], bytes]]]:
        entries = self.files.read("gedit_edit.json", json_object("prompt", "edit_type"), JSON_COUNT, JSON_SHA256, "edits")
        rows: list[tuple[str, str, str, bool | None, Callable[[], bytes]]] = []
        for key, entry in entries.items():
            task = safe_name(entry["edit_type"], f"{folder / 'gedit_edit.json'}, {key}")
            stem = folder / "fullset" / task / self.language / safe_name(key, str(folder))
            rows.append((task, key, str(entry["prompt"]), None, _file_source(folder, f"{stem}_SRCIMG.png", f"{stem}.png")))
        return rows

    def beside(self, item: Item) -> dict[str, bytes]:
        return {item.files[0].replace(".png", "_SRCIMG.png"): png_file(source_of(item))}

    def criteria(self, item: Item) -> tuple[str, ...]:
        return CRITERIA

    def asks(self, item: Item, image: bytes) -> list[Ask]:
        source, edited = images.load(source_of(item)), images.load(image)
        before, after = jpeg_file(source), jpeg_file(edited.resize(source.size, Image.Resampling.LANCZOS))
        text = self.rubrics["semantics"].replace("<instruction>", item.prompt)
        return [
            Ask(("semantics",), Question(text, [before, after]), parse_pair, MAX_TOKENS),
            Ask(("quality",), Question(self.rubrics["quality"], [after]), parse_pair, MAX_TOKENS),
        ]

    def score(self, scores: Scores, quirks: bool = False) -> Report:
        by_id, metrics = {item.id: item for item in self.items}, {}
        groups: dict[str, dict[str, list[float]]] = {}
        values: dict[str, dict[tuple[str, int], float]] = {"G_SC": {}, "G_PQ": {}, "G_O": {}}
        for key, found in samples_of(scores).items():
            semantics, quality = (found.get(name) for name in CRITERIA)
            values["G_SC"] |= {} if semantics is None else {key: semantics}
            values["G_PQ"] |= {} if quality is None else {key: quality}
            if semantics is not None and quality is not None:
                values["G_O"][key] = math.sqrt(semantics * quality)
        both = {id for id, item in by_id.items() if item.record["intersection"]}
        for name, of_images in values.items():
            for suffix, chosen in (("", by_id.keys()), (" (intersection)", both)):
                if not chosen:
                    continue
                found_groups = by_group(self.items, {key: v for key, v in of_images.items() if key[0] in chosen})
                groups |= {f"{name}{suffix}: {task}": found for task, found in found_groups.items()}
                metrics[name + suffix] = unweighted(groups, [f"{name}{suffix}: {task}" for task in TASKS])
        metrics |= {f"G_O: {task}": unweighted(groups, [f"G_O: {task}"]) for task in TASKS}
        return Report(metrics, groups)

    def read_official(self, data: bytes, name: str) -> Scores:
        """A task's CSV of VIEScore: edited_image (…/fullset/TASK/LANGUAGE/KEY.png), sementics_score, quality_score."""
        rows = table("edited_image", "sementics_score", "quality_score")(data, pathlib.Path(name))
        known = {item.id for item in self.items}
        scores: dict[tuple[str, int, str], float | None] = {}
        for number, row in enumerate(rows, 1):
            place = f"{name}, row {number}"
            match = re.search(r"([\w-]+)[/\\](en|cn)[/\\]([^/\\]+)\.png$", row["edited_image"])
            if match is not None and match[2] != self.language:
                continue
            if match is None or match[3] not in known:
                raise InputError(f"{place}: expected an image of {self.title}, found {row['edited_image']!r:.100}")
            for criterion, column in zip(CRITERIA, ("sementics_score", "quality_score"), strict=True):
                empty = row[column].strip().lower() in ("", "nan")
                scores[match[3], 0, criterion] = None if empty else table_number(row[column], 10, place)
        return scores


class GEditChinese(GEdit):
    """The Chinese instructions."""

    name, title = "gedit-cn", "GEdit-Bench CN"
    language = "cn"


def parse_pair(answer: Answer) -> list[float] | None:
    """[the smaller of a reply's two scores]: JSON with "score", or a list alone, of one or two numbers from 0 to 10."""
    text = answer.text or ""
    begin, end = text.find("{"), text.rfind("}")
    try:
        value: Any = json.loads(text[begin : end + 1] if 0 <= begin < end else text)
    except (ValueError, RecursionError):
        return None
    score = value.get("score") if isinstance(value, dict) else value
    numbers: list[Any] = score if isinstance(score, list) else [score]
    if not 1 <= len(numbers) <= 2 or not all(is_number(n) and 0 <= n <= 10 for n in numbers):
        return None
    return [float(min(numbers))]


def source_of(item: Item) -> bytes:
    """The image that an item edits."""
    if item.source is None:
        raise InputError(f"{item.id}: has no image to edit")
    return item.source()


def png_file(data: bytes) -> bytes:
    """An image file as a PNG file; one that is a PNG stays as it is."""
    return data if data.startswith(b"\x89PNG") else _file(images.load(data), "PNG")


def jpeg_file(image: Image.Image) -> bytes:
    """An image as a JPEG file, with Pillow's default quality as the official script has it."""
    return _file(image, "JPEG")


def _file(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, format)
    return file.getvalue()


def _file_source(folder: pathlib.Path, *paths: str) -> Callable[[], bytes]:
    """Reads the first of some files that is there."""

    def read() -> bytes:
        path = next((path for path in paths if pathlib.Path(path).is_file()), None)
        if path is None:
            raise InputError(f"{paths[0]}: not there; {SOURCE}")
        check_inside(path, folder)
        return files.read_bytes(path, images.MAX_FILE_BYTES)

    return read


def _parquet_rows(paths: list[pathlib.Path], language: str) -> list[tuple[str, str, str, bool | None, Callable[[], bytes]]]:
    """(task, key, instruction, whether it is in the intersection, source) of the rows in a language."""
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise InputError("GEdit-Bench's parquet files need the package pyarrow: pip install pyarrow") from error
    columns = ["task_type", "key", "instruction", "instruction_language", "Intersection_exist"]
    rows: list[tuple[str, str, str, bool | None, Callable[[], bytes]]] = []
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            missing = [name for name in (*columns, "input_image") if name not in file.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{path}: expected the columns {', '.join(columns)}, input_image, found no {', '.join(missing)}"
                )
            for group in range(file.num_row_groups):
                for i, row in enumerate(file.read_row_group(group, columns).to_pylist()):
                    if row["instruction_language"] == language:
                        source = _parquet_source(path, group, i)
                        task, key, text = (str(row[name]) for name in ("task_type", "key", "instruction"))
                        rows.append((task, key, text, bool(row["Intersection_exist"]), source))
        except (ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as parquet ({error})") from error
    return rows


def _parquet_source(path: pathlib.Path, group: int, index: int) -> Callable[[], bytes]:
    def read() -> bytes:
        value: Mapping[str, Any] | None = _parquet_images(path, group)[index].as_py()
        data = value.get("bytes") if isinstance(value, Mapping) else None
        if not isinstance(data, bytes):
            raise InputError(f"{path}: row {index} of group {group} has no image")
        return data

    return read


@functools.lru_cache(maxsize=1)
def _parquet_images(path: pathlib.Path, group: int) -> Any:
    """The images of a group of rows, which are stored together."""
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path).read_row_group(group, ["input_image"])[0]
