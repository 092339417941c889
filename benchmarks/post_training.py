"""What post-training changed in the built-in model: ShapeEval of several checkpoints on the same prompts with the same noise.

    python -m benchmarks.post_training --results DIR before=CHECKPOINT after=CHECKPOINT [...]

Every checkpoint gets a file NAME.json with its verdicts on each prompt of each category. A file that was made with the same
checkpoint and settings is not made again. `comparison.json` and the table on the screen have the
differences from the first checkpoint, with 95 % intervals of a paired bootstrap over prompts (evaluation/intervals.py):

    score of a category   the mean over its prompts of the fraction of right images; every prompt has noise of its own
    overall               the mean over the categories of images from prompts, edits and captions apart
    distance              mean distance between the tokens of two images of one prompt: how much they vary
    --readers             also the verdicts of stricter and laxer readers, and on images that the image tokenizer has
                          encoded and decoded once more: a gain that is real does not depend on the judge

Prompts are held-out ones, whose combinations no training prompt has. A seed by which nothing was chosen gives prompts by which
nothing was chosen.
"""

import argparse
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.results import result, rounded
from nextstep_jax import checkpoints
from nextstep_jax.data import shapes
from nextstep_jax.data.images import to_float
from nextstep_jax.evaluation.intervals import paired_interval
from nextstep_jax.evaluation.latents import reconstruct_noisy
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.evaluation.shapes import failure
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.rewards import scene_reader

# Thresholds of the reader that are changed one at a time.
READERS = {
    "words -0.05": ("MIN_WORD_CORRELATION", -0.05),
    "words +0.05": ("MIN_WORD_CORRELATION", 0.05),
    "overlap -0.05": ("MIN_OVERLAP", -0.05),
    "overlap +0.05": ("MIN_OVERLAP", 0.05),
}
RECODED = "encoded and decoded"
TABLE_ORDER = (*shapes.CATEGORIES, "overall", "edits", "captions")
TABLE_CATEGORIES = tuple(name for name in TABLE_ORDER if name != "overall")


# --- verdicts of one checkpoint ---------------------------------------------------------------------------------------


def judge_checkpoint(
    checkpoint: str, categories: tuple[str, ...], count: int, images: int, seed: int, cfg: float | None, readers: bool
) -> dict[str, Any]:
    """Verdicts by category: a string of 0 and 1 for each prompt, one for each of its images (of edits and captions one)."""
    pipeline = Pipeline.from_checkpoint(checkpoint)
    settings = pipeline.settings(cfg=cfg)
    verdicts: dict[str, list[str]] = {}
    distances: dict[str, list[float]] = {}
    changed: dict[str, dict[str, list[str]]] = {}
    for category in categories:
        prompts = shapes.prompts("heldout", category, count, seed=seed)
        if category not in shapes.CATEGORIES:
            answers = [generate_responses(pipeline, [prompt], seed=number)[0] for number, prompt in enumerate(prompts)]
            verdicts[category] = [as_text([failure(*pair) is None]) for pair in zip(prompts, answers, strict=True)]
            continue
        verdicts[category], distances[category] = [], []
        for number, prompt in enumerate(prompts):
            group = pipeline.generate(prompt.text, height=64, width=64, n=images, seed=number, settings=settings)
            right = functools.partial(judge, prompt)
            pixels = [image.pixels for image in group]
            verdicts[category].append(right(pixels))
            distances[category].append(mean_distance(np.stack([image.tokens for image in group])))
            for name, other in other_verdicts(pipeline, right, pixels) if readers else ():
                changed.setdefault(name, {}).setdefault(category, []).append(other)
        print(f"  {category}: {np.mean(scores(verdicts[category])):.3f}", flush=True)
    return {
        "verdicts": verdicts,
        "distance": {name: rounded([np.mean(values)])[0] for name, values in distances.items()},
        "readers": changed,
    }


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


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Scores before and after, and the difference with its interval, for each category and overall."""
    old, new = ({name: scores(texts) for name, texts in found["verdicts"].items()} for found in (before, after))
    groups = {name: [name] for name in old}
    if drawn := [name for name in old if name in shapes.CATEGORIES]:
        groups["overall"] = drawn
    table = {}
    for name in sorted(groups, key=TABLE_ORDER.index):
        pair = [{part: side[part] for part in groups[name]} for side in (old, new)]
        means = [np.mean([values.mean() for values in side.values()]) for side in pair]
        table[name] = dict(
            zip(("before", "after", "difference", "low", "high"), (*means, *paired_interval(*pair)), strict=True)
        )
    ratio = {name: after["distance"][name] / value for name, value in before["distance"].items()}
    return {"scores": table, "distance_ratio": ratio} | compare_readers(before, after)


def compare_readers(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The overall difference under each of the other readers that both were judged by."""
    found = {}
    for name in before["readers"].keys() & after["readers"].keys():
        pair = [{part: scores(texts) for part, texts in side["readers"][name].items()} for side in (before, after)]
        found[name] = paired_interval(*pair)._asdict()
    return {"readers": dict(sorted(found.items()))}


def format_comparison(name: str, found: dict[str, Any]) -> str:
    """The comparison as a table."""
    lines = [f"{name:<28} before  after   difference [95 % interval]"]
    for category, row in found["scores"].items():
        interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(f"  {category:<26} {row['before']:.3f}   {row['after']:.3f}   {interval}")
    for reader, row in found["readers"].items():
        lines.append(f"  overall, {reader:<33}   {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
    if found["distance_ratio"]:
        lines.append(f"  distance between images of a prompt: {np.mean(list(found['distance_ratio'].values())):.2f} of before")
    return "\n".join(lines)


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT", help="the first is what others are compared with")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder of the JSON files")
    parser.add_argument("--categories", nargs="+", default=TABLE_CATEGORIES, choices=TABLE_CATEGORIES, metavar="CATEGORY")
    parser.add_argument("--prompts", type=int, default=140, help="of each category [140]")
    parser.add_argument("--images", type=int, default=4, help="of each prompt [4]")
    parser.add_argument("--seed", type=int, default=7, help="of the prompts [7]")
    parser.add_argument("--cfg", type=float, help="guidance, 1 for none [the checkpoint's]")
    parser.add_argument("--readers", action="store_true", help="judge by other readers, too")
    args = parser.parse_args(arguments)
    named = [text.partition("=") for text in args.checkpoints]
    if not all(folder for _, _, folder in named) or len({name for name, _, _ in named}) < len(named):
        parser.error("every checkpoint needs a name of its own: NAME=CHECKPOINT")
    settings = {"prompts": args.prompts, "images": args.images, "seed": args.seed, "cfg": args.cfg, "readers": args.readers}
    found = {}
    for name, _, folder in named:
        made_with = {"checkpoint": checkpoints.digest_of(folder), "categories": args.categories, **settings}
        make = functools.partial(
            judge_checkpoint, folder, tuple(args.categories), args.prompts, args.images, args.seed, args.cfg, args.readers
        )
        found[name] = result(args.results / f"{name}.json", made_with, make)
    first, *others = found
    compared = {name: compare(found[first], found[name]) for name in others}
    (args.results / "comparison.json").write_text(json.dumps({"with": first, "compared": compared}, indent=1) + "\n")
    for name in others:
        print(format_comparison(name, compared[name]))


if __name__ == "__main__":
    main()
