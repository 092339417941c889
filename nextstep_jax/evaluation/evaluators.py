"""Evaluations of a model in memory, as a run calls them while it trains: settings -> (model -> numbers by name)."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from nextstep_jax.data import images, shapes
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation import shapes as shape_eval
from nextstep_jax.evaluation import tokenizer
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.pipeline import Pipeline

Numbers = dict[str, float]


def shapes_evaluator(
    per_category: int = 10, categories: Sequence[str] = shapes.PROMPT_CATEGORIES, seed: int = 0, **generation: Any
) -> Callable[[Pipeline], Numbers]:
    """ShapeEval on the first held-out prompts of some categories: their scores, spaces in names as underscores, and "overall".

    Args:
      seed: of the prompts and of the responses.
      generation: changes of the pipeline's generation settings, such as steps.

    Raises:
      InputError: a category or setting that does not exist, or not so many prompts of a category.
    """
    if not categories or per_category < 1:
        raise InputError(f"expected at least one category and one prompt of each, found {list(categories)} and {per_category}")
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    if unknown := [name for name in generation if name not in known]:
        raise InputError(f"no generation setting is called {unknown[0]!r}; there are {', '.join(known)}")
    prompts = [p for name in categories for p in shapes.prompts("heldout", name, per_category, seed=seed)]

    def evaluate(pipeline: Pipeline) -> Numbers:
        responses = generate_responses(pipeline.with_overrides(generation), prompts, seed)
        report = shape_eval.evaluate(prompts, responses)
        scores = {name.replace(" ", "_"): entry["score"] for name, entry in report["categories"].items()}
        return scores if report["overall"] is None else scores | {"overall": report["overall"]}

    return evaluate


def reconstruction_evaluator(
    source: str = "shapes:pair:heldout:256", area: int = 64, limit: int = 256, batch: int = 16, seed: int = 0
) -> Callable[[tokenizer.Reconstruct], Numbers]:
    """PSNR, SSIM and scene accuracy of an image tokenizer on `limit` images of a source, a random choice by `seed`.

    Args:
      source: what `nextstep-jax data build` takes.
      area: side, in pixels, of the square whose area the images get.

    Raises:
      InputError: a source that cannot be opened, or an option out of range.
    """
    images.buckets(area)
    if limit < 1 or batch < 1:
        raise InputError(f"limit and batch must be at least 1, found {limit} and {batch}")
    opened = open_source(source)
    # Some more than needed, for those that cannot be read.
    order = random.Random(seed).sample(range(len(opened)), min(len(opened), 10 * limit))

    def evaluate(reconstruct: tokenizer.Reconstruct) -> Numbers:
        skipped: list[str] = []
        scores = tokenizer.evaluate(tokenizer.source_images(opened, area, limit, skipped, order), reconstruct, batch)
        numbers = {name: scores[name] for name in ("psnr", "ssim", "scene_accuracy") if scores[name] is not None}
        return numbers | {"images": float(scores["n"]), "skipped": float(len(skipped))}

    return evaluate


EVALUATORS: dict[str, Callable] = {"shapes": shapes_evaluator, "reconstruction": reconstruction_evaluator}
