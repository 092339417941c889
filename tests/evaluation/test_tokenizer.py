"""Scores of image tokenizers: what they count, and that they see what is lost."""

import dataclasses

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.tokenizer import evaluate, reconstruction, source_images
from nextstep_jax.generation.load import load_image_tokenizer

SOURCE = open_source("shapes:edit:heldout:6")  # two images a sample


def test_a_perfect_tokenizer():
    found = list(source_images(SOURCE, 64, 10, []))
    assert len(found) == 10 and found[0].shape == (64, 64, 3)
    seen = []
    scores = evaluate(found, lambda x: seen.append(x.shape) or x, batch=4)
    assert scores == {
        "n": 10,
        "ssim_n": 10,
        "scene_n": 10,
        "psnr": np.inf,
        "ssim": pytest.approx(1.0),
        "scene_accuracy": 1.0,
    }
    assert seen == [(4, 64, 64, 3)] * 3


def test_what_is_lost_is_seen():
    found = list(source_images(SOURCE, 64, 12, []))

    def forget_half(x):
        y = x.copy()
        y[:, :, 32:] = y[:, :1, :1]
        return y

    scores = evaluate(found, forget_half)
    assert scores["psnr"] < 25 and scores["ssim"] < 0.95 and scores["scene_accuracy"] < 0.5


def test_other_sizes_are_not_read():
    ramp = np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)
    tiny = ramp[:8, :8]
    scores = evaluate([ramp, ramp, tiny], lambda x: np.clip(x + 0.1, -1, 1))
    assert [scores[name] for name in ("n", "ssim_n", "scene_n", "scene_accuracy")] == [3, 2, 0, None]
    assert 25 < scores["psnr"] < 27


def test_the_built_in_tokenizer_keeps_what_shapeeval_reads():
    scenes = [shapes.render(prompt.scene) for prompt in shapes.prompts("heldout", "captions", 16)]
    scores = evaluate(scenes, reconstruction(*load_image_tokenizer()))
    assert scores["scene_accuracy"] >= 0.9


class _Broken:
    """Three samples: one that cannot be read, one of a damaged image, one of latents or an image."""

    name = "broken"

    def __init__(self, last: ImagePart):
        image = ImagePart.from_pixels(np.zeros((32, 32, 3), np.uint8))
        cut = dataclasses.replace(image, data=image.data[:-40])
        self.samples = [None, *(Sample((TextPart("x"), part), "pair", f"s{i}") for i, part in enumerate((cut, last)))]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if self.samples[index] is None:
            raise InputError("s: has no caption")
        return self.samples[index]


def test_what_cannot_be_read_is_counted():
    skipped = []
    found = list(source_images(_Broken(ImagePart.from_pixels(np.full((32, 32, 3), 7, np.uint8))), 32, 5, skipped))
    assert len(found) == 1 and (found[0] == 7).all()
    assert skipped[0] == "s: has no caption" and "broken: s0: image 0: damaged or truncated PNG" in skipped[1]


def test_latents_are_not_reconstructed():
    latents = ImagePart.from_latents(np.zeros((4, 4, 16), np.float16), 32, 32)
    with pytest.raises(InputError, match="^broken: holds latents; reconstructions are compared with images$"):
        list(source_images(_Broken(latents), 32, 5, []))


def test_mistakes():
    with pytest.raises(InputError, match="no images"):
        evaluate([], lambda x: x)
