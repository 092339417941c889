"""A model's responses to ShapeEval prompts: an image for a prompt or an edit, a text for an image to caption."""

from collections.abc import Callable, Sequence

import numpy as np

from nextstep_jax.data import shapes
from nextstep_jax.generation.pipeline import MAX_BATCH, Pipeline

CAPTION_TOKENS = 64


def generate_responses(
    pipeline: Pipeline,
    prompts: Sequence[shapes.Prompt],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray | str]:
    """One response per prompt: pixels [64, 64, 3] uint8, or text where the category is "captions".

    Args:
      seed: of every response; with one seed a prompt's response does not depend on the others.
      progress: called with (responses done, responses in all).
    """
    responses: list[np.ndarray | str] = [""] * len(prompts)
    drawn = [i for i, prompt in enumerate(prompts) if prompt.category not in ("edits", "captions")]
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
        else:
            images = pipeline.generate([prompts[i].text for i in batch], height=64, width=64, seed=seed)
            for i, image in zip(batch, images, strict=True):
                responses[i] = image.pixels
        done += len(batch)
        progress(done, len(prompts))
    return responses
