"""Text and images in one sequence: unified decoding (paper section 4.2)."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from nextstep_jax.data import images as image_files
from nextstep_jax.data.sequence import ImageTokens
from nextstep_jax.generation.arguments import require_int
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.generation.loaded_model import ImageSource, OnChunk, OnText, require_sampling
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import Part, describe, require_prompt
from nextstep_jax.generation.sizes import bucket_area
from nextstep_jax.seeds import require_seed, seed_key

_TEXT_FOLD = 2**31 - 2  # fold_in index of the text's key, out of reach of image indices


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
    on_text: OnText | None = None,
    on_chunk: OnChunk | None = None,
    on_part: Callable[[str | GeneratedImage], None] | None = None,
) -> list[str | GeneratedImage]:
    """Text and images in the order the model writes them.

    Where it writes `<|image_area|>h*w` an image of that grid follows inside the same sequence, then text goes on. Each
    image is guided against the negative prompt alone. What the model thinks on the way is left out. The sequence ends
      - where the model ends it, or after a text of `max_tokens` ids;
      - with `max_images` images: a text that leads to a further image is left out;
      - before a text that is in it already, word for word: a model that repeats itself does not come to an end.

    Args:
      on_text: called with the current text as far as it is written. A text that may yet be left out is held back.
      on_chunk: called while an image is drawn.
      on_part: called with each text or image when it is complete.

    Raises:
      InputError: nothing to continue, a setting out of range, a prompt longer than the window, or no image tokenizer.
    """
    has_image = image_files.is_source(images) or not (isinstance(images, Sequence) and not images)
    if not (has_image and isinstance(prompt, str) and not prompt):
        require_prompt(prompt)
    max_images, seed = require_int("max_images", max_images, 0), require_seed(seed)
    sampling = require_sampling(max_tokens, temperature, top_p)
    settings, special, key = pipeline.require_settings(settings), pipeline.special, seed_key(seed)
    pipeline.grid(settings)  # refuses a checkpoint without an image tokenizer before anything is written
    parts: list[Part] = [*(pipeline.encode_images(pipeline.load_images(images, settings), seed) if has_image else []), prompt]
    results: list[str | GeneratedImage] = []
    texts: set[str] = set()

    def add(part: str | GeneratedImage) -> None:
        results.append(part)
        if on_part is not None:
            on_part(part)

    for j in range(max_images + 1):
        text_key = jax.random.fold_in(jax.random.fold_in(key, _TEXT_FOLD), j)
        stops = [special.eos, special.image_area]
        held = _hold_back(on_text, texts) if on_text and j < max_images else None
        on_ids = pipeline.reading_along(held)
        ids, met = pipeline.generate_ids(parts, stops, text_key, *sampling, allowed_special=special.thinking, on_ids=on_ids)
        text, draws = pipeline.text(ids), met == special.image_area
        if text in texts or (draws and j == max_images):
            break
        if text:
            texts.add(text)
            add(text)
        if not draws:
            break
        h, w = _read_area(pipeline, [*parts, ids, [special.image_area]], settings)
        parts.append(ids)
        branches: list[list[Part]] = [parts, [settings.negative_prompt], [settings.negative_prompt]]
        tokens = pipeline.sample_tokens([branches], h, w, jax.random.fold_in(key, j)[None], settings, False, on_chunk)
        parts.append(ImageTokens(tokens[0], h, w))
        record = {"prompt": describe(prompt), "seed": seed, "index": j, "settings": dataclasses.asdict(settings)}
        add(GeneratedImage(pipeline.decode_images(tokens, h, w)[0], tokens[0], record | {"model": pipeline.name}))
    return results


def _hold_back(on_text: OnText, texts: set[str]) -> OnText:
    """`on_text` without what may yet turn out to repeat one of `texts`."""

    def call(text: str) -> None:
        if not any(earlier.startswith(text) for earlier in texts):
            on_text(text)

    return call


def _read_area(pipeline: Pipeline, parts: Sequence[Part], settings: GenerationConfig) -> tuple[int, int]:
    """(h, w) that the model writes after `<|image_area|>`: the first known grid its digits spell, else the default.

    Begin-of-image is no training target, so only the grids that exist tell where the digits end.
    """
    stops = [pipeline.special.begin_of_image, pipeline.special.end_of_image]
    ids, _ = pipeline.generate_ids(parts, stops, jax.random.key(0), 9)
    buckets = image_files.buckets(bucket_area(settings, pipeline.token_pixels))
    known = {tuple(side // image_files.TOKEN for side in size) for size in buckets}
    for length in range(3, len(ids) + 1):
        area = pipeline.special.parse_area(ids[:length])
        if area in known:
            return area
    return pipeline.grid(settings)
