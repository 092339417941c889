"""Images that a model makes of prompts, scored: what preference training learns from (paper section 6.3.3).

    for each prompt   G images of the model, each from a seed of its own
    for each image    a reward
    a sample          the prompt (and what the model thought, once for all G), G images as latents, G scores

A prompt whose images all have the same score teaches nothing and is left out, as is one of which an image could not be scored;
both are counted. Which image is preferred to which is drawn when a sample is read (`data.augment.choose_pair`), anew in every
epoch.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nextstep_jax.data import records, shapes, shard_job
from nextstep_jax.data.vocabulary import SPECIAL_TOKENS
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.models.image_tokenizer import unpatchify
from nextstep_jax.progress import progress_bar
from nextstep_jax.rewards.combine import RewardTerm, score_groups
from nextstep_jax.rewards.protocol import RewardRequest
from nextstep_jax.seeds import MAX_SEED

MAX_FILE = 256 << 20  # bytes of a file of prompts
_CANVASES = {"": None} | {f"{width}x{height}": (width, height) for width, height in shapes.CANVASES}


@dataclasses.dataclass(frozen=True)
class CandidatePrompt:
    """A prompt, what rewards may need to know of it (JSON values), and (width, height) of its images in pixels, None for the
    model's own size.
    """

    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    canvas: tuple[int, int] | None = None


def read_prompts(spec: str | os.PathLike) -> list[CandidatePrompt]:
    """Prompts of a file, or the built-in dataset's.

    Args:
      spec: a text file with one prompt a line; a .jsonl file of objects with "prompt" and whatever else rewards need; or
        "shapes:CATEGORY:N", N training prompts of one of ShapeEval's categories of images from prompts, or
        "shapes:CATEGORY:N:WIDTHxHEIGHT", of images of one of its other canvases.

    Raises:
      InputError: naming the file, and the line that is no prompt.
    """
    scheme, _, rest = str(spec).partition(":")
    if scheme == "shapes" and rest:
        category, _, rest = rest.partition(":")
        count, _, size = rest.partition(":")
        known = (*shapes.CATEGORIES, *shapes.NEWCOMER_CATEGORIES)
        if category not in known or not count.isdigit() or not int(count) or size not in _CANVASES:
            sizes = ", ".join(filter(None, _CANVASES))
            raise InputError(
                f"{spec}: expected shapes:CATEGORY:N or shapes:CATEGORY:N:CANVAS, a category being one of {', '.join(known)}, "
                f"a canvas one of {sizes}"
            )
        canvas = _CANVASES[size]
        prompts = shapes.prompts("train", category, int(count), canvas=canvas or shapes.SQUARE)
        return [CandidatePrompt(prompt.text, {"category": category}, canvas) for prompt in prompts]
    path = pathlib.Path(spec)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a text file of prompts ({error})") from error
    if len(data) > MAX_FILE:
        raise InputError(f"{path}: expected at most {MAX_FILE >> 20} MiB of prompts")
    read = _from_json if path.suffix == ".jsonl" else CandidatePrompt
    found: list[CandidatePrompt] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(read(line.strip()))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not found:
        raise InputError(f"{path}: expected prompts, one a line, found none")
    return found


def _from_json(line: str) -> CandidatePrompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or not value["prompt"].strip():
        raise InputError('expected an object with a text called "prompt"')
    return CandidatePrompt(value.pop("prompt"), value)


def make_candidates(
    pipeline: Pipeline,
    prompts: Sequence[CandidatePrompt],
    terms: Sequence[RewardTerm],
    out: str | os.PathLike,
    *,
    per_prompt: int = 16,
    seed: int = 0,
    settings: GenerationConfig | None = None,
    model: str = "",
    shard_prompts: int = 64,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a dataset of preferences. Interrupted, the same call goes on with the first shard that is not whole.

    Args:
      per_prompt: G images of each prompt, at least 2.
      settings: of generation; None: the checkpoint's.
      model: what identifies the parameters; a folder that was begun with another is refused.
      shard_prompts: prompts a shard.

    Returns:
      {"prompts", "samples", "images", "mean_score", "skipped": {reason: count}}.

    Raises:
      InputError: a wrong option, a folder that holds something else, a reward that refuses to work, or no prompt of which the
        images differ.
    """
    if per_prompt < 2 or shard_prompts < 1:
        raise InputError(f"expected at least 2 images a prompt and 1 prompt a shard, found {per_prompt} and {shard_prompts}")
    settings = settings or pipeline.settings()
    made_with = {
        "model": model or pipeline.name,
        "per_prompt": per_prompt,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "rewards": [[term.reward.name, term.weight, term.normalizer, term.score] for term in terms],
    }
    plan = {"source": "candidates", "prompts": len(prompts), "candidates": made_with}
    shard_starts = range(0, len(prompts), shard_prompts)
    done = []
    with shard_job.locked(out, plan) as folder, progress_bar("candidates", "prompt", len(prompts), progress) as bar:
        for number, start in enumerate(shard_starts):
            some = prompts[start : start + shard_prompts]
            asked = [[prompt.text, dict(prompt.metadata), *(prompt.canvas or ())] for prompt in some]
            made_from = shard_job.digest(made_with, start, asked)
            samples = _samples(pipeline, some, terms, start, per_prompt, seed, settings)
            done.append(shard_job.make_shard(folder, number, made_from, samples))
            bar.update(len(some))
        skipped: dict[str, int] = {}
        for entry in (entry for shard in done for entry in shard.skipped):
            skipped[entry.reason] = skipped.get(entry.reason, 0) + 1
        count = sum(shard.shard.samples for shard in done)
        if not count:
            reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
            raise InputError(f"{out}: no prompt is left to learn from ({reasons})")
        shard_job.finish(folder, "candidates", done, {"candidates": made_with})
    return {"prompts": len(prompts), "samples": count, "images": sum(shard.images for shard in done), "skipped": skipped}


def _samples(
    pipeline: Pipeline,
    prompts: Sequence[CandidatePrompt],
    terms: Sequence[RewardTerm],
    start: int,
    count: int,
    seed: int,
    settings: GenerationConfig,
) -> Iterator[records.Sample | shard_job.Skipped]:
    """The preferences of one shard, whose first prompt has the number `start`; all of its images are scored together."""
    groups: list[list[GeneratedImage]] = []
    for number, prompt in enumerate(prompts, start):
        width, height = prompt.canvas or (None, None)
        own_seed = (seed + number) % (MAX_SEED + 1)
        drawn = pipeline.generate(prompt.text, width=width, height=height, n=count, seed=own_seed, settings=settings)
        groups.append(drawn)
    requests = [
        [RewardRequest(prompt.text, image.pixels, prompt.metadata) for image in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    rewards = score_groups(requests, terms)
    for place, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        number = start + place
        if not rewards.valid[place]:
            yield shard_job.Skipped(number, "not scored", f"an image of {prompt.text!r:.100} could not be scored")
        elif np.ptp(rewards.totals[place]) == 0:
            yield shard_job.Skipped(number, "all scores equal", f"all images of {prompt.text!r:.100} have the same score")
        else:
            scores = {name: values[place].tolist() for name, values in rewards.scores.items()}
            metadata = {"scores": rewards.totals[place].tolist(), "rewards": scores, **prompt.metadata}
            yield _sample(pipeline, prompt, group, settings, metadata, f"{number:07d}")


def _sample(
    pipeline: Pipeline,
    prompt: CandidatePrompt,
    group: Sequence[GeneratedImage],
    settings: GenerationConfig,
    metadata: Mapping[str, Any],
    key: str,
) -> records.Sample:
    texts = [f"{prompt.text} {settings.prompt_suffix}".strip()]
    if thinking := group[0].record.get("thinking"):
        texts.append(f"{SPECIAL_TOKENS['begin_of_thinking']}{thinking}{SPECIAL_TOKENS['end_of_thinking']}")
    parts: list[records.TextPart | records.ImagePart] = [records.TextPart(text, loss=False) for text in texts]
    for image in group:
        height, width = image.pixels.shape[:2]
        grid = height // pipeline.token_pixels, width // pipeline.token_pixels
        latents = np.asarray(unpatchify(jnp.asarray(image.tokens[None]), *grid, pipeline.config.patch)[0], np.float16)
        parts.append(records.ImagePart.from_latents(latents, height, width))
    return records.Sample(tuple(parts), "preference", key, metadata=metadata)
