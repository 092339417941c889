"""Evaluations of a model in memory, as a run calls them while it trains: settings -> (model -> numbers by name)."""

import dataclasses
import logging
import pathlib
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nextstep_jax.chat import ChatEndpoint, spelled
from nextstep_jax.data import images, shapes
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.evaluation import shapes as shape_eval
from nextstep_jax.evaluation import tokenizer
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.evaluation.suites import export, judging
from nextstep_jax.evaluation.suites.loading import open_suite
from nextstep_jax.evaluation.suites.scoring import score_files
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.pipeline import Pipeline

logger = logging.getLogger(__name__)

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
    _require_settings(generation)
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


def suite_evaluator(
    suite: str,
    endpoint: str,
    model: str,
    data: str | None = None,
    unofficial: bool = False,
    limit: int = 20,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
    **generation: Any,
) -> Callable[[Pipeline], Numbers]:
    """A benchmark of the paper on some of its prompts, evenly spaced, judged by a model behind an endpoint.

    Its metrics, spaces in names as underscores, as far as verdicts are there; "scored", "unparsable" and "unanswered" verdicts.
    A judge that fails ends no training: what it left out is counted.

    Args:
      suite: what `nextstep-jax evaluate` calls it.
      endpoint, model: of the judge, as for `evaluate SUITE judge`.
      data: folder of the suite's official files.
      limit: prompts.
      height, width: pixels; None: the settings' size.
      timeout: seconds a reply.
      generation: changes of the pipeline's generation settings, such as steps.

    Raises:
      InputError: no such suite or setting, or files that are not the official ones.
    """
    _require_settings(generation)
    if limit < 1:
        raise InputError(f"limit must be at least 1, found {limit}")
    opened = open_suite(suite, None if data is None else pathlib.Path(data), unofficial)
    items = export.select(opened.items, limit)
    judge = judging.Judge(ChatEndpoint(spelled(endpoint, model), concurrency, timeout))

    def evaluate(pipeline: Pipeline) -> Numbers:
        settings = pipeline.settings(items[0].source is not None, **generation)
        checkpoint = {"name": pipeline.name, "digest": ""}  # in memory
        plan = export.Plan(opened, items, settings, checkpoint, height, width, seed)
        with tempfile.TemporaryDirectory(prefix="nextstep_jax-") as folder:
            out = pathlib.Path(folder)
            export.export(pipeline, plan, out)
            results = out / "results.jsonl"
            try:
                judging.judge(opened, out, results, judge)
            except NextStepError as error:
                logger.warning("%s: not all is judged (%s)", suite, error)
            try:
                score = score_files(opened, [results], partial=True)
            except InputError:  # not one verdict
                verdicts = sum(len(opened.criteria(item)) for item in items) * opened.samples
                return {"scored": 0.0, "unparsable": 0.0, "unanswered": float(verdicts)}
        counts = score["counts"]
        values = {name.replace(" ", "_"): m["value"] for name, m in score["metrics"].items() if m["value"] is not None}
        lacking = {"unparsable": float(counts["unparsable"]), "unanswered": float(counts["missing"])}
        return values | {"scored": float(counts["scored"])} | lacking

    return evaluate


def _require_settings(generation: Mapping[str, Any]) -> None:
    """InputError for what is no setting of generation."""
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    if unknown := [name for name in generation if name not in known]:
        raise InputError(f"no generation setting is called {unknown[0]!r}; there are {', '.join(known)}")


EVALUATORS: dict[str, Callable] = {
    "shapes": shapes_evaluator,
    "reconstruction": reconstruction_evaluator,
    "suite": suite_evaluator,
}
