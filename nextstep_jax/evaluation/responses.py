"""A model's responses to ShapeEval prompts: an image for a prompt or an edit, a text for an image to caption, or a story."""

from collections.abc import Callable, Sequence

from nextstep_jax.data import shapes
from nextstep_jax.generation.interleaved import generate_interleaved
from nextstep_jax.generation.pipeline import MAX_BATCH, Pipeline

CAPTION_TOKENS = 64  # of a story's sentences, too


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
      seed: of every response; with one seed a prompt's response does not depend on the others.
      progress: called with (responses done, responses in all).
    """
    responses: list[shapes.Response] = [""] * len(prompts)
    drawn = [i for i, prompt in enumerate(prompts) if prompt.category not in ("edits", "captions", "stories")]
    width, height = canvas
    batches = [drawn[first : first + MAX_BATCH] for first in range(0, len(drawn), MAX_BATCH)]
    batches += [[i] for i in range(len(prompts)) if i not in set(drawn)]
    done = 0
    for batch in batches:
        first = prompts[batch[0]]
        if first.category == "captions":
            responses[batch[0]] = pipeline.generate_text(
                images=[shapes.render(first.scene)], max_tokens=CAPTION_TOKENS, seed=seed
            )
        elif first.category == "edits":
            responses[batch[0]] = pipeline.edit(shapes.render(first.scene), first.text, seed=seed)[0].pixels
        elif first.category == "stories":
            parts = generate_interleaved(
                pipeline, first.text, max_images=shapes.MAX_STORY, max_tokens=CAPTION_TOKENS, seed=seed
            )
            responses[batch[0]] = [part if isinstance(part, str) else part.pixels for part in parts]
        else:
            images = pipeline.generate([prompts[i].text for i in batch], height=height, width=width, seed=seed)
            for i, image in zip(batch, images, strict=True):
                responses[i] = image.pixels
        done += len(batch)
        progress(done, len(prompts))
    return responses
