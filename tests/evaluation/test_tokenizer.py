"""Scores of image tokenizers: what they count, and that they see what is lost."""

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.tokenizer import evaluate_tokenizer, load_reconstruction, source_images
from nextstep_jax.generation.load import builtin_checkpoint

SOURCE = open_source("shapes:edit:heldout:6")  # two images a sample


def test_a_perfect_tokenizer():
    found = list(source_images(SOURCE, 64, 10))
    assert len(found) == 10 and found[0].shape == (64, 64, 3)
    seen = []
    scores = evaluate_tokenizer(found, lambda x: seen.append(x.shape) or x, batch=4)
    assert scores == {"n": 10, "psnr": np.inf, "ssim": pytest.approx(1.0), "scene_accuracy": 1.0}
    assert seen == [(4, 64, 64, 3)] * 3


def test_what_is_lost_is_seen():
    found = list(source_images(SOURCE, 64, 12))

    def forget_half(x):
        y = x.copy()
        y[:, :, 32:] = y[:, :1, :1]
        return y

    scores = evaluate_tokenizer(found, forget_half)
    assert scores["psnr"] < 25 and scores["ssim"] < 0.95 and scores["scene_accuracy"] < 0.5


def test_other_sizes_are_not_read():
    ramp = np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)
    tiny = ramp[:8, :8]
    scores = evaluate_tokenizer([ramp, ramp, tiny], lambda x: np.clip(x + 0.1, -1, 1))
    assert scores["n"] == 3 and scores["scene_accuracy"] is None and 25 < scores["psnr"] < 27


def test_the_built_in_tokenizer_keeps_what_shapeeval_reads():
    scenes = [shapes.render(prompt.scene) for prompt in shapes.prompts("heldout", "captions", 16)]
    scores = evaluate_tokenizer(scenes, load_reconstruction(builtin_checkpoint()))
    assert scores["scene_accuracy"] >= 0.9


def test_mistakes():
    with pytest.raises(InputError, match="no images"):
        evaluate_tokenizer([], lambda x: x)
