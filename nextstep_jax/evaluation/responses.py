"""A model's responses to ShapeEval prompts: an image for a prompt or an edit, a text for an image to caption, or a story."""

from collections.abc import Callable, Sequence

from nextstep_jax.data import shapes
from nextstep_jax.generation.interleaved import generate_interleaved
from nextstep_jax.generation.pipeline import MAX_BATCH, Pipeline
from nextstep_jax.seeds import prompt_seed

CAPTION_TOKENS = 64
STEP_TOKENS = 192  # a sentence of a story and what the model thinks about it


def generate_responses(
    pipeline: Pipeline,
    prompts: Sequence[shapes.Prompt],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    canvas: tuple[int, int] = shapes.SQUARE,
) -> list[shapes.Response]:
    """One response per prompt: pixels [height, width, 3] uint8; text where the category is "captions"; both where it is
    "stories".

    Args:
      canvas: (width, height) in pixels of the images that are neither edits nor of stories.
      seed: of the whole evaluation; a response depends on it and on its prompt (`seeds.prompt_seed`), not on other prompts.
      progress: called with (responses done, responses in all).
    """
    responses: list[shapes.Response] = [""] * len(prompts)
    width, height = canvas
    done = 0
    for batch in _batches(prompts):
        of_batch, category = [prompts[i] for i in batch], prompts[batch[0]].category
        texts, seeds = [prompt.text for prompt in of_batch], [prompt_seed(seed, prompt.text) for prompt in of_batch]
        answers: Sequence[shapes.Response]
        if category == "captions":
            sources = [shapes.render(of_batch[0].scene)]
            answers = [pipeline.generate_text(images=sources, max_tokens=CAPTION_TOKENS, seed=seeds[0])]
        elif category == "stories":
            parts = generate_interleaved(pipeline, texts[0], max_images=shapes.MAX_STORY, max_tokens=STEP_TOKENS, seed=seeds[0])
            answers = [[part if isinstance(part, str) else part.pixels for part in parts]]
        elif category == "edits":
            edited = pipeline.edit_batch([shapes.render(prompt.scene) for prompt in of_batch], texts, seed=seeds)
            answers = [image.pixels for image in edited]
        else:
            drawn = pipeline.generate(texts, height=height, width=width, seed=seeds)
            answers = [image.pixels for image in drawn]
        for i, answer in zip(batch, answers, strict=True):
            responses[i] = answer
        done += len(batch)
        progress(done, len(prompts))
    return responses


def _batches(prompts: Sequence[shapes.Prompt]) -> list[list[int]]:
    """Numbers of the prompts that are answered together: images with images, edits with edits, anything else alone."""
    edits = [i for i, prompt in enumerate(prompts) if prompt.category == "edits"]
    alone = [i for i, prompt in enumerate(prompts) if prompt.category in ("captions", "stories")]
    drawn = sorted(set(range(len(prompts))) - {*edits, *alone})
    groups = [group[first : first + MAX_BATCH] for group in (drawn, edits) for first in range(0, len(group), MAX_BATCH)]
    return groups + [[i] for i in alone]
