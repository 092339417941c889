"""Text and images in one sequence: unified decoding (paper section 4.2)."""

import dataclasses
from collections.abc import Sequence

import jax

from nextstep_jax.data import images as image_files
from nextstep_jax.data.sequence import ImageTokens
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.pipeline import GeneratedImage, ImageSource, Pipeline, require_seed
from nextstep_jax.generation.prompts import Part, describe


def generate_interleaved(
    pipeline: Pipeline,
    prompt: str | Sequence[int],
    images: ImageSource | Sequence[ImageSource] = (),
    *,
    max_images: int = 4,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    settings: GenerationConfig | None = None,
) -> list[str | GeneratedImage]:
    """Text and images in the order the model writes them.

    Where it writes `<|image_area|>h*w` an image of that grid follows inside the same sequence, then text goes on. Each
    image is guided against the negative prompt alone; up to `max_images` are drawn.
    """
    settings = settings or pipeline.settings()
    has_image = not (isinstance(images, list | tuple) and not images)
    encoded = pipeline.encode_images(pipeline.load_images(images, settings), seed) if has_image else []
    parts: list[Part] = [*encoded, prompt]
    results: list[str | GeneratedImage] = []
    for j in range(max_images + 1):
        stops = [pipeline.special.eos] + ([pipeline.special.image_area] if j < max_images else [])
        ids, met = pipeline.generate_ids(parts, stops, max_tokens, temperature, top_p, seed + j)
        if ids:
            results.append(pipeline.text(ids))
        if met != pipeline.special.image_area:
            return results
        h, w = _read_area(pipeline, [*parts, ids, [met]], settings, seed)
        parts.append(ids)
        key = jax.random.fold_in(jax.random.key(require_seed(seed)), j)
        tokens = pipeline.sample_tokens(
            [[parts, [settings.negative_prompt], [settings.negative_prompt]]], h, w, key[None], settings, False
        )
        parts.append(ImageTokens(tokens[0], h, w))
        record = {"prompt": describe(prompt), "seed": seed, "index": j, "settings": dataclasses.asdict(settings)}
        results.append(GeneratedImage(pipeline.decode_images(tokens, h, w)[0], tokens[0], record | {"model": pipeline.name}))
    return results


def _read_area(pipeline: Pipeline, parts: Sequence[Part], settings: GenerationConfig, seed: int) -> tuple[int, int]:
    """(h, w) that the model writes after `<|image_area|>`: the first known grid its digits spell, else the default.

    Begin-of-image is no training target, so nothing tells where the digits end but the grids that exist.
    """
    ids, _ = pipeline.generate_ids(parts, [pipeline.special.begin_of_image, pipeline.special.end_of_image], 9, seed=seed)
    known = {tuple(side // image_files.TOKEN for side in size) for size in image_files.buckets(pipeline.bucket_area(settings))}
    for length in range(3, len(ids) + 1):
        area = pipeline.special.parse_area(ids[:length])
        if area in known:
            return area
    return pipeline.grid(settings)
