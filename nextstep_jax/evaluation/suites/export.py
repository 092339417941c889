"""Drawing a suite's images in the layout of its official scorer.

Every image depends on its prompt, the seed and its number alone. Prompts are dealt into batches before the batches are dealt to
processes, so the images are the same bit for bit for any number of processes, interrupted or not; another batch size changes
them by rounding only.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import nextstep_jax
from nextstep_jax.chat import ChatEndpoint
from nextstep_jax.data import files
from nextstep_jax.data.image_output import encode_image, output_format
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.suites.results import Lines, parse_lines
from nextstep_jax.evaluation.suites.suite import Item, Suite
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.generation.pipeline import MAX_BATCH, Pipeline
from nextstep_jax.generation.rewriting import rewrite_prompts
from nextstep_jax.seeds import prompt_seed

RECORD, IMAGES = "nextstep.json", "images"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
      suite, items: the benchmark, and which of its prompts.
      settings: of generation; `edit` ones for items with a source.
      height, width: pixels; None: the settings' size, of an edit its source's.
      seed: of the whole export.
      checkpoint: {"name", "digest"}.
      rewriter: makes the prompts richer first; None for none.
    """

    suite: Suite
    items: Sequence[Item]
    settings: GenerationConfig
    checkpoint: Mapping[str, str]
    height: int | None = None
    width: int | None = None
    seed: int = 0
    dtype: str | None = None
    rewriter: ChatEndpoint | None = None

    def record(self) -> dict[str, Any]:
        """What `nextstep.json` says: all that is needed to draw the images again."""
        return {
            "format": 1,
            "version": nextstep_jax.__version__,
            "suite": self.suite.name,
            "files": dict(self.suite.files.digests),
            "official": self.suite.files.official and len(self.items) == len(self.suite.items),
            "checkpoint": dict(self.checkpoint),
            "dtype": self.dtype,
            "settings": dataclasses.asdict(self.settings),
            "height": self.height,
            "width": self.width,
            "seed": self.seed,
            "samples": self.suite.samples,
            "grid": self.suite.grid,
            "rewritten_by": None if self.rewriter is None else self.rewriter.name,
            "prompts": [
                {
                    "id": item.id,
                    "prompt": item.prompt,
                    "groups": list(item.groups),
                    "files": list(item.files),
                    "seed": prompt_seed(self.seed, item.id),
                }
                for item in self.items
            ],
        }


def select(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """`limit` prompts, evenly spaced, so that every category has its share; all of them for None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def export(
    pipeline: Pipeline,
    plan: Plan,
    out: pathlib.Path,
    *,
    batch: int | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Draw what is not there yet.

    Args:
      batch: prompts drawn at once; None: as many as fill a device batch. Edits are drawn one by one.
      shard: (i, n): this process draws part i of n.
      progress: called with (prompts done, prompts of this process).

    Returns:
      {"drawn", "kept"}: image files written by this call, and those that were there.

    Raises:
      InputError: `out` holds an export made otherwise, or cannot be written; a prompt or setting that cannot be used.
      NextStepError: a prompt was not rewritten.
    """
    index, count = shard
    record = plan.record()
    _agree(out, record, write=index == 0)
    size = batch or max(1, MAX_BATCH // plan.suite.samples)
    if any(item.source for item in plan.items):
        size = 1
    batches = [plan.items[first : first + size] for first in range(0, len(plan.items), size)][index::count]
    prompts = _prompts(plan, out, [item for part in batches for item in part], shard)
    drawn = kept = done = 0
    total = sum(map(len, batches))
    for part in batches:
        missing = {name for item in part for name in item.files if not is_whole(out / IMAGES / name)}
        images = _draw(pipeline, plan, part, prompts) if missing else []
        for i, item in enumerate(part):
            mine = images[i * plan.suite.samples : (i + 1) * plan.suite.samples]
            if not missing.isdisjoint(item.files):  # written before the images: where these are whole, so are they
                for name, data in plan.suite.beside(item).items():
                    _write(out / IMAGES / name, data)
            for name, image in zip(item.files, _by_file(mine, plan.suite.grid), strict=False):
                if name in missing:
                    _write(out / IMAGES / name, _encode(name, item, image))
                    drawn += 1
            kept += sum(name not in missing for name in item.files)
        done += len(part)
        progress(done, total)
    _agree(out, record, write=False)
    return {"drawn": drawn, "kept": kept}


def read_record(out: pathlib.Path, suite: Suite) -> dict[str, Any] | None:
    """What an export says of itself; None if there is no `nextstep.json`.

    Raises:
      InputError: it is of another suite, or was made from other files than the suite's.
    """
    path = out / RECORD
    if not path.exists():
        return None
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("prompts"), list):
        raise InputError(f"{path}: not the record of an export")
    if record.get("suite") != suite.name:
        raise InputError(f"{path}: expected an export of {suite.name}, found {record.get('suite')!r}")
    drawn_from = record.get("files")
    if not isinstance(drawn_from, dict) or not drawn_from.items() <= suite.files.digests.items():
        raise InputError(f"{path}: the images were drawn from other files than those in {suite.files.folder}")
    return record


def exported_items(record: Mapping[str, Any] | None, suite: Suite) -> Sequence[Item]:
    """The prompts of an export, all of the suite's without a record. InputError for one that the suite does not have."""
    if record is None:
        return suite.items
    by_id = {item.id: item for item in suite.items}
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in record["prompts"]]
    unknown = [id for id in ids if id not in by_id]
    if unknown:
        raise InputError(f"{RECORD}: {suite.name} has no prompt {unknown[0]!r}")
    return [by_id[str(id)] for id in ids]


def is_whole(path: pathlib.Path) -> bool:
    """Whether an image file is there to its end, told from its first and last bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            size = file.seek(0, 2)
            file.seek(max(0, size - 12))
            tail = file.read()
    except OSError:
        return False
    if head.startswith(b"\x89PNG"):
        return tail[4:8] == b"IEND"
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 == size
    return head.startswith(b"\xff\xd8") and tail.endswith(b"\xff\xd9")


def _agree(out: pathlib.Path, record: Mapping[str, Any], write: bool) -> None:
    """Compare with the export that is there, or begin one."""
    path = out / RECORD
    if path.exists():
        found = files.read_json(path)
        known = found if isinstance(found, dict) else {}
        for name, value in record.items():
            there = known.get(name)
            if name == "version" or there == value:
                continue
            if isinstance(value, dict) and isinstance(there, dict):
                part = next(part for part in {**value, **there} if value.get(part) != there.get(part))
                name, value, there = f"{name}: {part}", value.get(part), there.get(part)
            if name == "prompts":
                raise InputError(f"{path}: an export of other prompts or of another seed; choose another folder")
            raise InputError(f"{path}: an export with another {name} (this one: {value}, found {there}); choose another folder")
    elif write:
        files.make_directory(out)
        files.write_json(path, record)


def _prompts(plan: Plan, out: pathlib.Path, items: Sequence[Item], shard: tuple[int, int]) -> dict[str, str]:
    """{id: what is drawn}: the prompts, or what the rewriter made of them, kept in OUT/rewritten-*.jsonl."""
    if plan.rewriter is None:
        return {item.id: item.prompt for item in items}
    known: dict[str, str] = {}
    with Lines(out / f"rewritten-{shard[0]}-of-{shard[1]}.jsonl") as lines:
        for path in sorted(out.glob("rewritten-*.jsonl")):
            data = files.read_bytes(path, 1 << 30)
            for value in parse_lines(data[: data.rfind(b"\n") + 1], path):
                known.setdefault(str(value.get("id")), str(value.get("rewritten")))
        missing = [item for item in items if item.id not in known]
        for first in range(0, len(missing), plan.rewriter.concurrency):
            part = missing[first : first + plan.rewriter.concurrency]
            texts = rewrite_prompts([item.prompt for item in part], plan.rewriter)
            lines.append([{"id": item.id, "prompt": item.prompt, "rewritten": t} for item, t in zip(part, texts, strict=True)])
            known |= {item.id: text for item, text in zip(part, texts, strict=True)}
    return known


def _draw(pipeline: Pipeline, plan: Plan, items: Sequence[Item], prompts: Mapping[str, str]) -> list[GeneratedImage]:
    """The images of some prompts: `samples` of each, prompt by prompt."""
    seeds = [prompt_seed(plan.seed, item.id) for item in items]
    options: dict[str, Any] = {"n": plan.suite.samples, "settings": plan.settings, "height": plan.height, "width": plan.width}
    if items[0].source is None:
        return pipeline.generate([prompts[item.id] for item in items], seed=seeds, **options)
    return [
        image
        for item, seed in zip(items, seeds, strict=True)
        if item.source is not None
        for image in pipeline.edit([item.source()], prompts[item.id], seed=seed, **options)
    ]


def _by_file(images: Sequence[GeneratedImage], grid: bool) -> list[GeneratedImage]:
    """An image for each file: as they are, or four as one."""
    if not grid or not images:
        return list(images)
    first, second, third, fourth = (image.pixels for image in images)
    pixels = np.concatenate([np.concatenate([first, second], 1), np.concatenate([third, fourth], 1)])
    return [dataclasses.replace(images[0], pixels=pixels)]


def _encode(name: str, item: Item, image: GeneratedImage) -> bytes:
    record = image.record | {"suite_id": item.id, "original_prompt": item.prompt}
    return encode_image(image.pixels, output_format(name), record, lossless=True)


def _write(path: pathlib.Path, data: bytes) -> None:
    """Write a file, whole or not at all; what a killed process left of it is removed."""
    files.make_directory(path.parent)
    for leftover in path.parent.glob(f".{path.name}.tmp-*"):
        leftover.unlink(missing_ok=True)
    files.write_bytes(path, data)
