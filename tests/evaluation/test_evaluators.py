"""Evaluators of a model in memory: what they report, that a seed decides the subset, and what they refuse."""

import random

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.data.shapes.edits import apply_edit
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.evaluators import EVALUATORS, reconstruction_evaluator, shapes_evaluator
from nextstep_jax.evaluation.tokenizer import reconstruction
from nextstep_jax.generation.load import load_image_tokenizer
from nextstep_jax.generation.pipeline import GeneratedImage, Pipeline

TOKENS = np.zeros((16, 64), np.float32)


class Oracle:
    """Answers rightly; ids of what it was asked are kept."""

    def __init__(self):
        self.asked, self.overrides = [], None

    def with_overrides(self, changes):
        self.overrides = changes
        return self

    def generate(self, prompts, *, height, width, seed):
        self.asked += prompts
        return [GeneratedImage(shapes.render(drawn_as_said(prompt)), TOKENS, {}) for prompt in prompts]

    def generate_text(self, images, max_tokens, seed):
        return "nonsense"


def drawn_as_said(prompt):
    truth = shapes.understand(prompt).truth
    for index in range(100_000):
        scene = shapes.sample_scene(index, split="heldout" if index % 2 else "train")
        if shapes.contradiction(truth, scene) is None:
            return scene
    raise AssertionError(prompt)


def test_shapes():
    oracle = Oracle()
    evaluator = shapes_evaluator(per_category=2, categories=("single object", "captions"), seed=3, steps=4)
    assert evaluator(oracle) == {"single_object": 1.0, "captions": 0.0, "overall": 1.0}
    assert oracle.asked == [p.text for p in shapes.prompts("heldout", "single object", 2, seed=3)]
    assert oracle.overrides == {"steps": 4}
    assert shapes_evaluator(per_category=1, categories=("captions",))(oracle) == {"captions": 0.0}


def test_shapes_of_a_pipeline():
    found = shapes_evaluator(per_category=1, categories=("colors", "edits"), steps=2)(Pipeline.from_checkpoint())
    assert set(found) == {"colors", "edits", "overall"} and all(value in (0.0, 1.0) for value in found.values())


def test_reconstruction_of_a_random_subset():
    seen = []

    def keep(x):
        seen.append(np.asarray(x))
        return x

    options = {"source": "shapes:pair:heldout:40", "limit": 4, "batch": 4}
    found = reconstruction_evaluator(**options, seed=0)(keep)
    assert found == {"psnr": np.inf, "ssim": pytest.approx(1), "scene_accuracy": 1.0, "images": 4.0, "skipped": 0.0}
    for seed in (0, 1):
        reconstruction_evaluator(**options, seed=seed)(keep)
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])
    built_in = reconstruction_evaluator(**options)(reconstruction(*load_image_tokenizer()))
    assert built_in["psnr"] > 25


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("shapes", {"categories": ("poems",)}, "no such category: 'poems'"),
        ("shapes", {"categories": ()}, "at least one category"),
        ("shapes", {"per_category": 0}, "at least one category and one prompt"),
        ("shapes", {"stepz": 3}, "no generation setting is called 'stepz'; there are cfg, "),
        ("reconstruction", {"source": "/no/such"}, "/no/such"),
        ("reconstruction", {"area": 60}, "multiple of 16, found 60"),
        ("reconstruction", {"limit": 0}, "limit and batch must be at least 1"),
    ],
)
def test_settings_are_checked_before_there_is_a_model(name, settings, message):
    with pytest.raises(InputError, match=message):
        EVALUATORS[name](**settings)


def test_edits_are_done_to_the_scene_that_is_shown():
    prompt = shapes.prompts("heldout", "edits", 1)[0]
    after = apply_edit(prompt.truth, prompt.scene, random.Random(0))
    oracle = Oracle()
    oracle.edit_batch = lambda images, texts, seed: [GeneratedImage(shapes.render(after), TOKENS, {}) for _ in texts]
    assert shapes_evaluator(per_category=1, categories=("edits",))(oracle) == {"edits": 1.0}
