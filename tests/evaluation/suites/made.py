"""Small files of the forms of the official ones, in words of our own."""

import csv
import json
import pathlib

import numpy as np
from PIL import Image

WISE_IDS = {"wise": (400, 567, 700, 800, 900, 1000), "wise-verified": (400, 520, 640, 760, 880, 1000)}
WISE_FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
GEDIT_TASKS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
IMGEDIT_TYPES = ("add", "adjust", "extract", "replace", "remove", "background", "style", "compose", "action")


def write_all(folder: pathlib.Path) -> None:
    wise(folder / "wise")
    genai(folder / "genai-bench")
    dpg(folder / "dpg-bench")
    oneig(folder / "oneig")
    gedit(folder / "gedit")
    imgedit(folder / "imgedit")


def write(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def write_table(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_image(path: pathlib.Path, shade: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(path)


def wise(folder: pathlib.Path) -> None:
    """Both editions: the last prompt of each category."""
    for edition, ids in WISE_IDS.items():
        suffix = "_verified" if edition == "wise-verified" else ""
        for name, part in zip(WISE_FILES, (ids[:1], ids[1:3], ids[3:]), strict=True):
            records = [
                {
                    "Prompt": f"what number {i} stands for",
                    "Explanation": f"It stands for {i}.",
                    "Category": "made",
                    "Subcategory": "made",
                    "prompt_id": i,
                }
                for i in part
            ]
            write(folder / f"{name}{suffix}.json", records)


def genai(folder: pathlib.Path) -> None:
    """Four prompts: two basic, one advanced, one without a skill."""
    images = {f"{i:05d}": {"id": f"{i:05d}", "prompt": f"a red square, number {i}", "models": {}} for i in range(4)}
    write(folder / "genai_image.json", images)
    write(folder / "genai_skills.json", {"basic": [0, 1], "advanced": [2], "attribute": [0, 1, 2], "counting": [2]})


def dpg(folder: pathlib.Path) -> None:
    """Questions about two prompts; of the first prompt's, the third depends on the second and that on the first."""
    rows = []
    for id, dependencies in (("226", ("0", "1", "2", "0")), ("partiprompts155", ("0", "1"))):
        for number, dependency in enumerate(dependencies, 1):
            rows.append(
                {
                    "item_id": id,
                    "text": "a text",
                    "keywords": "",
                    "proposition_id": number,
                    "dependency": dependency,
                    "category_broad": "entity",
                    "category_detailed": "whole",
                    "tuple": "entity - whole (thing)" if number == 1 else f"attribute - kind (thing, {number})",
                    "question_natural_language": f"Is part {number} of {id} there?",
                }
            )
    write_table(folder / "dpg_bench.csv", rows)


def oneig(folder: pathlib.Path) -> None:
    """A prompt of each class, in both languages; three questions, of which the third depends on the second."""
    classes = ("Anime_Stylization", "Portrait", "General_Object", "Text_Rendering", "Knowledge_Reasoning")
    questions = {"question": json.dumps({"1": "Is it red", "2": "Is it blue", "3": "Is it dark blue"})}
    questions["dependency"] = json.dumps({"1": [0], "2": [1], "3": [2]})
    for suffix, column, kinds, text in (
        ("", "prompt_en", classes, "['Hello, World', '2025']"),
        ("-ZH", "prompt_cn", (*classes, "Multilingualism"), "['你好', 'A1']"),
    ):
        rows = [
            {"category": kind, "id": "000", column: f"a square of {kind.lower().partition('_')[0]}", "class": ""}
            for kind in kinds
        ]
        write_table(folder / f"OneIG-Bench{suffix}.csv", rows)
        small = suffix.lower().replace("-", "_")
        for kind in ("anime", "human", "object", *(("multilingualism",) if suffix else ())):
            write(folder / "scripts" / "alignment" / "Q_D" / f"{kind}{small}.json", {"000": questions})
        rows = [{"": "0", "id": "000", column: "a text", "text_content": text}]
        write_table(folder / "scripts" / "text" / f"text_content{small}.csv", rows)


def gedit(folder: pathlib.Path) -> None:
    """An edit of each task, as the list of the English instructions has them, with gray sources."""
    entries = {
        f"{i:032x}": {"prompt": f"make it {task.replace('_', ' ')}", "id": "", "edit_type": task}
        for i, task in enumerate(GEDIT_TASKS)
    }
    write(folder / "gedit_edit.json", entries)
    for i, (key, entry) in enumerate(entries.items()):
        write_image(folder / "fullset" / entry["edit_type"] / "en" / f"{key}_SRCIMG.png", 10 * i)


def imgedit(folder: pathlib.Path) -> None:
    """An edit of each type."""
    entries = {
        str(i): {"id": f"made/{i}.png", "prompt": f"edit {i}", "edit_type": kind} for i, kind in enumerate(IMGEDIT_TYPES)
    }
    write(folder / "basic_edit.json", entries)
    write(folder / "prompts.json", {kind: f"Rate this {kind}: <edit_prompt>." for kind in IMGEDIT_TYPES})
    for i in range(len(entries)):
        write_image(folder / "singleturn" / "made" / f"{i}.png", 10 * i)
