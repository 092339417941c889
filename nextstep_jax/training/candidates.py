"""Images that a model makes of prompts, scored: what preference training learns from (paper section 6.3.3).

    for each prompt   G images of the model, each from a seed of its own
    for each image    a reward
    a sample          the prompt (and what the model thought, once for all G), G images as latents, G scores

With thoughts at a temperature above 0 the model thinks anew for each image, and each image comes after its own thoughts: these
can then be preferred to others along with it. A prompt with images is an instruction, and all G images are edits of these.

A prompt whose images all have the same score teaches nothing and is left out, as is one of which an image could not be scored;
both are counted. Which image is preferred to which is drawn when a sample is read (`data.augment.choose_pair`), anew in every
epoch.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nextstep_jax import untrusted
from nextstep_jax.data import records, shapes, shard_job
from nextstep_jax.data.sequence import ImageTokens
from nextstep_jax.data.vocabulary import SPECIAL_TOKENS
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage, Pixels
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import place_images
from nextstep_jax.models.image_tokenizer import unpatchify
from nextstep_jax.progress import progress_bar
from nextstep_jax.rewards.combine import RewardTerm, score_groups
from nextstep_jax.rewards.protocol import RewardRequest
from nextstep_jax.seeds import MAX_SEED, prompt_seed

MAX_FILE = 256 << 20  # bytes of a file of prompts
_CANVASES = {"": None} | {f"{width}x{height}": (width, height) for width, height in shapes.CANVASES}


@dataclasses.dataclass(frozen=True)
class CandidatePrompt:
    """A prompt.

    Attributes:
      metadata: what rewards may need to know of it, JSON values.
      canvas: (width, height) of its images in pixels, None for the model's own size.
      images: what an instruction is about, files or pixels; its images have the first one's size.
    """

    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    canvas: tuple[int, int] | None = None
    images: Sequence[str | os.PathLike | Pixels] = ()


def read_prompts(spec: str | os.PathLike) -> list[CandidatePrompt]:
    """Prompts of a file, or the built-in dataset's.

    Args:
      spec: a text file with one prompt a line; a .jsonl file of objects with "prompt", "images" for an instruction (files,
        relative to that one's folder) and whatever else rewards need; or "shapes:CATEGORY:N", N training prompts of one of
        ShapeEval's categories of images from prompts, or its edits, or "shapes:CATEGORY:N:WIDTHxHEIGHT", of images of one of
        its other canvases.

    Raises:
      InputError: naming the file, and the line that is no prompt.
    """
    scheme, _, rest = str(spec).partition(":")
    if scheme == "shapes" and rest:
        category, _, rest = rest.partition(":")
        count, _, size = rest.partition(":")
        known = (*shapes.CATEGORIES, "edits", *shapes.NEWCOMER_CATEGORIES)
        if category not in known or not count.isdigit() or not int(count) or size not in _CANVASES:
            sizes = ", ".join(filter(None, _CANVASES))
            raise InputError(
                f"{spec}: expected shapes:CATEGORY:N or shapes:CATEGORY:N:CANVAS, a category being one of {', '.join(known)}, "
                f"a canvas one of {sizes}"
            )
        canvas = _CANVASES[size]
        prompts = shapes.prompts("train", category, int(count), canvas=canvas or shapes.SQUARE)
        return [
            CandidatePrompt(
                prompt.text, {"category": category}, canvas, () if prompt.scene is None else (shapes.render(prompt.scene),)
            )
            for prompt in prompts
        ]
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
                prompt = read(line.strip())
                images = tuple(path.parent / str(name) for name in prompt.images)
                for image in images:
                    untrusted.check_inside(image, path.parent)
                found.append(dataclasses.replace(prompt, images=images))
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
    images = value.pop("images", [])
    if not isinstance(images, list) or not all(isinstance(name, str) and name for name in images):
        raise InputError(f'expected a list of file names called "images", found {images!r:.100}')
    return CandidatePrompt(value.pop("prompt"), value, images=images)


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
      settings: of generation; None: the checkpoint's (for edits, where the prompts have images).
      model: what identifies the parameters; a folder that was begun with another is refused.
      shard_prompts: prompts a shard.

    Returns:
      {"prompts", "samples", "images", "mean_score", "skipped": {reason: count}}.

    Raises:
      InputError: a wrong option, prompts of which only some have images, a folder that holds something else, a reward that
        refuses to work, or no prompt of which the images differ.
    """
    edits = sum(bool(prompt.images) for prompt in prompts)
    if 0 < edits < len(prompts):
        raise InputError(f"expected prompts with images or prompts without, found {edits} of {len(prompts)} with images")
    if per_prompt < 2 or shard_prompts < 1:
        raise InputError(f"expected at least 2 images a prompt and 1 prompt a shard, found {per_prompt} and {shard_prompts}")
    settings = settings or pipeline.settings(edit=bool(edits))
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
            sources = [pipeline.load_images(prompt.images, settings) if edits else [] for prompt in some]
            asked = [
                [prompt.text, dict(prompt.metadata), *(prompt.canvas or ()), *map(_digest, before)]
                for prompt, before in zip(some, sources, strict=True)
            ]
            made_from = shard_job.digest(made_with, start, asked)
            samples = _samples(pipeline, some, sources, terms, start, per_prompt, seed, settings)
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


def _digest(pixels: Pixels) -> str:
    """Of an image's size and pixels."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _samples(
    pipeline: Pipeline,
    prompts: Sequence[CandidatePrompt],
    sources: Sequence[Sequence[Pixels]],
    terms: Sequence[RewardTerm],
    start: int,
    count: int,
    seed: int,
    settings: GenerationConfig,
) -> Iterator[records.Sample | shard_job.Skipped]:
    """The preferences of one shard, whose first prompt has the number `start`; all of its images are scored together."""
    seeds = [(seed + number) % (MAX_SEED + 1) for number in range(start, start + len(prompts))]
    groups = [
        _draw(pipeline, prompt, before, count, own, settings)
        for prompt, before, own in zip(prompts, sources, seeds, strict=True)
    ]
    requests = [
        [RewardRequest(prompt.text, image.pixels, prompt.metadata, before) for image in group]
        for prompt, before, group in zip(prompts, sources, groups, strict=True)
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
            parts = [*_prompt_parts(pipeline, prompt, sources[place], seeds[place], settings)]
            parts += _candidate_parts(pipeline, group, _thinks_anew(settings))
            yield records.Sample(tuple(parts), "preference", f"{number:07d}", metadata=metadata)


def _thinks_anew(settings: GenerationConfig) -> bool:
    """Whether each image comes after thoughts of its own."""
    return settings.thinking and settings.thinking_temperature > 0


def _draw(
    pipeline: Pipeline,
    prompt: CandidatePrompt,
    sources: Sequence[Pixels],
    count: int,
    seed: int,
    settings: GenerationConfig,
) -> list[GeneratedImage]:
    """The images of one prompt. One text of thoughts belongs to one seed."""
    texts, seeds, n = [prompt.text], [seed], count
    if _thinks_anew(settings):
        texts, seeds, n = [prompt.text] * count, [prompt_seed(seed, str(number)) for number in range(count)], 1
    if sources:
        return pipeline.edit_batch([sources] * len(texts), texts, n=n, seed=seeds, settings=settings)
    width, height = prompt.canvas or (None, None)
    return pipeline.generate(texts, width=width, height=height, n=n, seed=seeds, settings=settings)


def _prompt_parts(
    pipeline: Pipeline, prompt: CandidatePrompt, sources: Sequence[Pixels], seed: int, settings: GenerationConfig
) -> Iterator[records.TextPart | records.ImagePart]:
    """What the model reads before it thinks and draws."""
    if not sources:
        yield records.TextPart(pipeline.prompt_text(prompt.text, settings), loss=False)
        return
    for part in place_images(prompt.text, pipeline.encode_images(sources, seed), settings.sources_last):
        if isinstance(part, ImageTokens):
            yield _image_part(pipeline, part.tokens, part.h, part.w, loss=False)
        else:
            yield records.TextPart(str(part), loss=False)
    if settings.prompt_suffix:
        yield records.TextPart(f" {settings.prompt_suffix}", loss=False)


def _candidate_parts(
    pipeline: Pipeline, group: Sequence[GeneratedImage], own_thoughts: bool
) -> Iterator[records.TextPart | records.ImagePart]:
    """The images; before them what was thought about all, or before each its own thoughts, which are targets."""
    begin, end = SPECIAL_TOKENS["begin_of_thinking"], SPECIAL_TOKENS["end_of_thinking"]
    if own_thoughts:
        yield records.TextPart(begin, loss=False)  # the program writes it
    elif thinking := group[0].record.get("thinking"):
        yield records.TextPart(f"{begin}{thinking}{end}", loss=False)
    for image in group:
        if own_thoughts:
            yield records.TextPart(f"{image.record['thinking']}{end}")
        height, width = image.pixels.shape[:2]
        yield _image_part(pipeline, image.tokens, height // pipeline.token_pixels, width // pipeline.token_pixels)


def _image_part(pipeline: Pipeline, tokens: np.ndarray, h: int, w: int, loss: bool = True) -> records.ImagePart:
    """Image tokens [h * w, C] as latents."""
    latents = np.asarray(unpatchify(jnp.asarray(tokens[None]), h, w, pipeline.config.patch)[0], np.float16)
    return records.ImagePart.from_latents(latents, h * pipeline.token_pixels, w * pipeline.token_pixels, loss)
