"""What post-training changed in the built-in model: ShapeEval of several checkpoints on the same prompts with the same noise.

    python -m benchmarks.post_training --results DIR before=CHECKPOINT after=CHECKPOINT [...]

DIR/NAME/CATEGORY.json has the verdicts of a checkpoint on each prompt of a category. A file that was made with the same weights
and settings is not made again. The table on the screen, and --json, have the differences from the first checkpoint with 95 %
intervals of a paired bootstrap over prompts (evaluation/intervals.py):

    score of a category   the mean over its prompts of the fraction of right images; every prompt has noise of its own
    overall               the mean over the categories of images from prompts, edits and captions apart
    distance              mean distance between the tokens of two images of one prompt: how much they vary
    --readers             also the verdicts of stricter and laxer readers, and on images that the image tokenizer has
                          encoded and decoded once more: a gain that is real does not depend on the judge

Prompts are held-out ones, whose combinations no training prompt has. A seed by which nothing was chosen gives prompts by which
nothing was chosen.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.result_files import result, rounded
from nextstep_jax import checkpoints
from nextstep_jax.data import shapes
from nextstep_jax.data.images import to_float
from nextstep_jax.evaluation.intervals import paired_interval
from nextstep_jax.evaluation.latents import reconstruct_noisy
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.evaluation.shapes import failure
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.rewards import scene_reader
from nextstep_jax.rewards.protocol import RewardRequest, Score

# Thresholds of the reader that are changed one at a time.
READERS = {
    "words -0.05": ("MIN_WORD_CORRELATION", -0.05),
    "words +0.05": ("MIN_WORD_CORRELATION", 0.05),
    "overlap -0.05": ("MIN_OVERLAP", -0.05),
    "overlap +0.05": ("MIN_OVERLAP", 0.05),
}
RECODED = "encoded and decoded"
TABLE_ORDER = (*shapes.CATEGORIES, "overall", *shapes.NEWCOMER_CATEGORIES, "edits", "captions")
CHOICES = [name for name in TABLE_ORDER if name != "overall"]

Judged = Mapping[str, dict[str, Any]]  # by category, see `judge_category`


# --- verdicts of one checkpoint ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """What every checkpoint is asked: `images` of each of `prompts` prompts (of edits and captions one)."""

    prompts: int
    images: int
    seed: int
    cfg: float | None
    readers: bool


def judge_category(load: Callable[[], Pipeline], category: str, asked: Asked) -> dict[str, Any]:
    """Verdicts on a category: a string of 0 and 1 for each prompt, one for each of its images."""
    pipeline, prompts = load(), shapes.prompts("heldout", category, asked.prompts, seed=asked.seed)
    if category in ("edits", "captions"):
        answers = [generate_responses(pipeline, [prompt], seed=number)[0] for number, prompt in enumerate(prompts)]
        return {"verdicts": [as_text([failure(*pair) is None]) for pair in zip(prompts, answers, strict=True)]}
    settings, verdicts, distances = pipeline.settings(cfg=asked.cfg), [], []
    changed: dict[str, list[str]] = {}
    for number, prompt in enumerate(prompts):
        group = pipeline.generate(prompt.text, height=64, width=64, n=asked.images, seed=number, settings=settings)
        right, pixels = functools.partial(judge, prompt), [image.pixels for image in group]
        verdicts.append(right(pixels))
        distances.append(mean_distance(np.stack([image.tokens for image in group])))
        for name, other in other_verdicts(pipeline, right, pixels) if asked.readers else ():
            changed.setdefault(name, []).append(other)
    return {"verdicts": verdicts, "distance": rounded([np.mean(distances)])[0], "readers": changed}


def judge_checkpoint(folder: str, categories: Sequence[str], asked: Asked, results: pathlib.Path) -> Judged:
    """What `judge_category` says of each category, from the files in `results` where they are there."""
    load = functools.cache(functools.partial(Pipeline.from_checkpoint, folder))
    made_with = {"checkpoint": checkpoints.digest_of(folder), **dataclasses.asdict(asked)}
    found = {}
    for category in categories:
        file = results / f"{category.replace(' ', '_')}.json"
        found[category] = result(
            file, made_with | {"category": category}, functools.partial(judge_category, load, category, asked)
        )
    return found


def judge(prompt: shapes.Prompt, images: list[np.ndarray]) -> str:
    return as_text([failure(prompt, image) is None for image in images])


def other_verdicts(
    pipeline: Pipeline, right: Callable[[list[np.ndarray]], str], images: list[np.ndarray]
) -> Iterator[tuple[str, str]]:
    """(name, verdicts) of the readers that differ, and of images the tokenizer has encoded and decoded."""
    for name, (threshold, change) in READERS.items():
        with mock.patch.object(scene_reader, threshold, getattr(scene_reader, threshold) + change):
            yield name, right(images)
    made = reconstruct_noisy(pipeline.tokenizer_config, pipeline.tokenizer_params, to_float(np.stack(images)), (0.0,))[0]
    yield RECODED, right(list(np.round((made + 1) * 127.5).astype(np.uint8)))


def mean_distance(tokens: np.ndarray) -> float:
    """The mean over pairs of images of the RMS difference between their tokens [images, n, C]."""
    pairs = itertools.combinations(tokens.astype(np.float64), 2)
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs]))


def as_text(verdicts: list[bool]) -> str:
    return "".join(str(int(verdict)) for verdict in verdicts)


def scores(verdicts: list[str]) -> np.ndarray:
    """[P] fractions of right images."""
    return np.array([text.count("1") / len(text) for text in verdicts])


def coin(requests: Sequence[RewardRequest]) -> list[Score]:
    """A reward that has nothing to do with what an image shows: 1 for four images of five, by a digest of the pixels. The
    control of online training: `--config.rewards.shapes.reward=python:benchmarks.post_training:coin`.
    """
    return [{"reward": float(hashlib.blake2b(request.image.tobytes()).digest()[0] % 5 > 0)} for request in requests]


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(before: Judged, after: Judged) -> dict[str, Any]:
    """Scores before and after, and the difference with its interval, for each category and, where all are there, overall."""
    groups = {name: [name] for name in before}
    if all(name in before for name in shapes.CATEGORIES):
        groups["overall"] = list(shapes.CATEGORIES)
    table = {}
    for name in sorted(groups, key=TABLE_ORDER.index):
        pair = [{part: scores(side[part]["verdicts"]) for part in groups[name]} for side in (before, after)]
        means = [np.mean([values.mean() for values in side.values()]) for side in pair]
        table[name] = dict(
            zip(("before", "after", "difference", "low", "high"), (*means, *paired_interval(*pair)), strict=True)
        )
    ratio = {name: after[name]["distance"] / judged["distance"] for name, judged in before.items() if "distance" in judged}
    return {"scores": table, "distance_ratio": ratio, "readers": compare_readers(before, after)}


def compare_readers(before: Judged, after: Judged) -> dict[str, Any]:
    """The difference over all categories under each of the other readers."""
    found = {}
    names = {name for judged in before.values() for name in judged.get("readers", ())}
    for name in sorted(names):
        groups = [group for group, judged in before.items() if name in judged.get("readers", ())]
        pair = [{group: scores(side[group]["readers"][name]) for group in groups} for side in (before, after)]
        found[name] = paired_interval(*pair)._asdict()
    return found


def format_comparison(name: str, found: dict[str, Any]) -> str:
    """The comparison as a table."""
    lines = [f"{name:<28} before  after   difference [95 % interval]"]
    for category, row in found["scores"].items():
        interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(f"  {category:<26} {row['before']:.3f}   {row['after']:.3f}   {interval}")
    for reader, row in found["readers"].items():
        lines.append(f"  all, {reader:<37}   {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
    if found["distance_ratio"]:
        lines.append(f"  distance between images of a prompt: {np.mean(list(found['distance_ratio'].values())):.2f} of before")
    return "\n".join(lines)


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT", help="the first is what others are compared with")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder of the verdicts")
    parser.add_argument("--json", type=pathlib.Path, help="write the comparison to this file")
    parser.add_argument("--categories", nargs="+", default=shapes.PROMPT_CATEGORIES, choices=CHOICES, metavar="CATEGORY")
    parser.add_argument("--prompts", type=int, default=140, help="of each category [140]")
    parser.add_argument("--images", type=int, default=4, help="of each prompt [4]")
    parser.add_argument("--seed", type=int, default=7, help="of the prompts [7]")
    parser.add_argument("--cfg", type=float, help="guidance, 1 for none [the checkpoint's]")
    parser.add_argument("--readers", action="store_true", help="judge by other readers, too")
    args = parser.parse_args(arguments)
    named = [text.partition("=") for text in args.checkpoints]
    if not all(folder for _, _, folder in named) or len({name for name, _, _ in named}) < len(named):
        parser.error("every checkpoint needs a name of its own: NAME=CHECKPOINT")
    asked = Asked(args.prompts, args.images, args.seed, args.cfg, args.readers)
    found = {name: judge_checkpoint(folder, args.categories, asked, args.results / name) for name, _, folder in named}
    first, *others = found
    compared = {name: compare(found[first], found[name]) for name in others}
    if args.json:
        content = {"compared_with": first, **dataclasses.asdict(asked), "compared": compared}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    for name in others:
        print(format_comparison(name, compared[name]))


if __name__ == "__main__":
    main()
