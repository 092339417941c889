"""Responses to ShapeEval: each by its prompt and the evaluation's seed alone, each with noise of its own."""

import dataclasses

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.seeds import MAX_SEED, prompt_seed


class Recorder:
    """Stands in for a pipeline: an image that shows what it was asked with."""

    def __init__(self):
        self.calls = []

    def generate(self, texts, *, height, width, seed):
        self.calls.append(("generate", list(texts), list(seed)))
        return [_image(value, height, width) for value in seed]

    def edit_batch(self, images, texts, *, seed):
        self.calls.append(("edit", list(texts), list(seed)))
        return [_image(value, *image.shape[:2]) for value, image in zip(seed, images, strict=True)]

    def generate_text(self, images, *, max_tokens, seed):
        self.calls.append(("caption", len(images), seed))
        return f"caption {seed}"


@dataclasses.dataclass
class Drawn:
    pixels: np.ndarray


def _image(seed, height, width):
    return Drawn(np.full((height, width, 3), seed % 251, np.uint8))


def _prompts(per_category=3):
    return [p for name in ("colors", "edits", "captions", "words") for p in shapes.prompts("heldout", name, per_category)]


def test_prompts_have_noise_of_their_own_and_do_not_depend_on_each_other():
    prompts, pipeline = _prompts(), Recorder()
    together = generate_responses(pipeline, prompts, seed=3)
    seeds = [seed for _, _, seeds in pipeline.calls for seed in (seeds if isinstance(seeds, list) else [seeds])]
    assert len(set(seeds)) == len({prompt.text for prompt in prompts})
    backwards = generate_responses(Recorder(), prompts[::-1], seed=3)[::-1]
    alone = [generate_responses(Recorder(), [prompt], seed=3)[0] for prompt in prompts]
    for prompt, *answers in zip(prompts, together, backwards, alone, strict=True):
        for answer in answers:
            np.testing.assert_array_equal(answer, answers[0], err_msg=prompt.text)
    assert [kind for kind, *_ in pipeline.calls] == ["generate", "edit", *["caption"] * 3]


def test_an_image_of_an_evaluation_can_be_drawn_again_by_its_seed():
    (prompt,) = shapes.prompts("heldout", "colors", 1)
    pipeline = Recorder()
    generate_responses(pipeline, [prompt], seed=5)
    assert pipeline.calls == [("generate", [prompt.text], [prompt_seed(5, prompt.text)])]


@pytest.mark.parametrize("seed", [0, 1, MAX_SEED])
def test_seeds_of_prompts_are_seeds(seed):
    found = [prompt_seed(seed, name) for name in ("", "a", "b", "a red circle")]
    assert len(set(found)) == 4 and all(0 <= value <= MAX_SEED for value in found)
    assert found != [prompt_seed(seed ^ 1, name) for name in ("", "a", "b", "a red circle")]
