"""What cheaper settings cost in ShapeEval: each beside the checkpoint's own, on the same prompts from the same noise.

    python -m benchmarks.shortcut_scores sampler=ab2,steps=10 guidance_start=0.1,guidance_end=0.8 jacobi_window=8 --results DIR

A setting is what it changes of GenerationConfig. Every prompt is held out and has noise of its own; prompts of another seed are
other prompts. DIR/SETTING/SEED.json has the verdicts of one seed and is not made again with the same weights and settings. The
table, and --json, have the score of each category and over all seven, the change, and its 95 % interval of a paired bootstrap
over prompts (evaluation/intervals.py). What has been chosen by such a table wants seeds of its own.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.post_training import compare, format_comparison, judge
from benchmarks.result_files import result
from nextstep_jax import checkpoints
from nextstep_jax.data import shapes
from nextstep_jax.generation.load import builtin_checkpoint
from nextstep_jax.generation.pipeline import Pipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", type=changes, metavar="NAME=VALUE[,NAME=VALUE]", help="what to compare")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder of the verdicts")
    parser.add_argument("--checkpoint", default=builtin_checkpoint(), help="folder of a checkpoint [the built-in model]")
    parser.add_argument("--prompts", type=int, default=40, help="of each category and seed [40]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="of the prompts [11 12 13]")
    parser.add_argument("--json", type=pathlib.Path, help="write the table to this file")
    a = parser.parse_args(arguments)
    load = functools.cache(lambda: Pipeline.from_checkpoint(a.checkpoint))
    plain, *others = [judge_setting(load, a, one) for one in ({}, *a.settings)]
    compared = {name_of(one): compare(plain, found) for one, found in zip(a.settings, others, strict=True)}
    for name, found in compared.items():
        print(format_comparison(name, found))
    if a.json:
        a.json.write_text(json.dumps({"prompts": a.prompts, "seeds": a.seeds, "compared": compared}, indent=1) + "\n")


def changes(text: str) -> dict[str, Any]:
    """{"steps": 10, "sampler": "ab2"} of "steps=10,sampler=ab2"."""
    pairs = [part.partition("=") for part in text.split(",")]

    def value(written: str) -> Any:
        try:
            return json.loads(written)
        except json.JSONDecodeError:
            return written

    return {name: value(written) for name, _, written in pairs}


def name_of(setting: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in setting.items()) or "as it is"


def judge_setting(load: Callable[[], Pipeline], a: argparse.Namespace, setting: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By category the verdicts on the prompts of all seeds, one after the other."""
    found: dict[str, dict[str, Any]] = {category: {"verdicts": []} for category in shapes.CATEGORIES}
    for seed in a.seeds:
        made_with = {"checkpoint": checkpoints.digest_of(a.checkpoint), "prompts": a.prompts, "seed": seed, "setting": setting}
        draw = functools.partial(judge_seed, load, setting, a.prompts, seed)
        verdicts = result(a.results / name_of(setting).replace(" ", "_") / f"{seed}.json", made_with, draw)
        for category in shapes.CATEGORIES:
            found[category]["verdicts"] += verdicts[category]
    return found


def judge_seed(load: Callable[[], Pipeline], setting: dict[str, Any], count: int, seed: int) -> dict[str, list[str]]:
    """By category "0" or "1" for each prompt."""
    pipeline, verdicts = load(), {}
    settings = dataclasses.replace(pipeline.settings(), **setting)
    for category in shapes.CATEGORIES:
        prompts = shapes.prompts("heldout", category, count, seed=seed)
        seeds = [seed * 100_000 + number for number in range(count)]
        images = pipeline.generate([p.text for p in prompts], height=64, width=64, seed=seeds, settings=settings)
        verdicts[category] = [judge(prompt, [image.pixels]) for prompt, image in zip(prompts, images, strict=True)]
    return verdicts


if __name__ == "__main__":
    main()
