"""Small files of the forms of the official ones, in words of our own."""

import json
import pathlib

WISE_IDS = {"wise": (400, 567, 700, 800, 900, 1000), "wise-verified": (400, 520, 640, 760, 880, 1000)}
WISE_FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")


def write_all(folder: pathlib.Path) -> None:
    wise(folder / "wise")


def write(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


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
