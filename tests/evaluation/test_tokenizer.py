"""Scores of image tokenizers: what they count, and that they see what is lost."""

import dataclasses

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.data.image_output import save_image
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.fid.features import own_extractor
from nextstep_jax.evaluation.tokenizer import (
    PROTOCOLS,
    evaluate,
    reconstruction,
    sampled_reconstruction,
    source_images,
)
from nextstep_jax.generation.load import load_image_tokenizer

SOURCE = open_source("shapes:edit:heldout:6")  # two images a sample


def test_a_perfect_tokenizer():
    found = list(source_images(SOURCE, 64, 10, []))
    assert len(found) == 10 and found[0].shape == (64, 64, 3)
    seen = []
    scores = evaluate(found, lambda x: seen.append(x.shape) or x, batch=4)
    values = scores.pop("values")
    assert {name: len(of) for name, of in values.items()} == {
        "psnr": 10,
        "ssim": 10,
        "ssim_llamagen": 10,
        "scene_accuracy": 10,
    }
    assert scores == {
        "n": 10,
        "ssim_n": 10,
        "scene_n": 10,
        "psnr": np.inf,
        "ssim": pytest.approx(1.0),
        "ssim_llamagen": pytest.approx(1.0),
        "scene_accuracy": 1.0,
        "rfid": None,
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


def test_values_are_in_the_order_of_the_images():
    gray = [np.full((16 + 16 * (i % 2), 32, 3), 20 * i, np.uint8) for i in range(7)]  # sizes by turns
    scores = evaluate(gray, lambda x: np.clip(x * 0.9, -1, 1), batch=2)
    assert scores["values"]["psnr"] == sorted(scores["values"]["psnr"])  # the darker, the more changed
    assert len(set(scores["values"]["psnr"])) == 7


def test_the_draw_depends_on_the_image_and_the_seed_alone():
    found = np.stack(list(source_images(SOURCE, 64, 3, [])))
    x = found.astype(np.float32) / 127.5 - 1
    config, params = load_image_tokenizer()
    config = dataclasses.replace(config, deterministic=False)
    draw = sampled_reconstruction(config, params)
    together, alone = np.asarray(draw(x)), np.asarray(draw(x[1:2]))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-4)
    mean = np.asarray(reconstruction(config, params)(x))
    other = np.asarray(sampled_reconstruction(config, params, seed=1)(x))
    assert np.abs(together - mean).max() > 1e-3 < np.abs(together - other).max()


def test_distances_of_reconstructions(tmp_path):
    found = list(source_images(SOURCE, 64, 12, []))
    extractor = own_extractor(*load_image_tokenizer(), "0" * 64)
    same = evaluate(found, lambda x: x, batch=4, extractor=extractor)
    assert abs(same["rfid"]) < 1e-6
    worse = evaluate(found, lambda x: np.clip(x + 0.2, -1, 1), batch=4, extractor=extractor)
    otherwise = evaluate(found, lambda x: np.clip(x + 0.2, -1, 1), batch=5, extractor=extractor)
    assert worse["rfid"] > 0.01 and worse["rfid"] == pytest.approx(otherwise["rfid"], rel=1e-3)


def test_a_folder_needs_no_captions(tmp_path):
    for name in ("b", "a"):
        save_image(tmp_path / f"{name}.png", np.full((70, 50, 3), ord(name), np.uint8))
    (tmp_path / "c.jpg").write_bytes(b"none")
    skipped = []
    found = list(source_images(open_source(str(tmp_path)), 32, 9, skipped, crop=PROTOCOLS["llamagen"].crop))
    assert [image.shape for image in found] == [(32, 32, 3)] * 2 and found[0].mean() == ord("a")
    assert len(skipped) == 1 and f"{tmp_path}/c.jpg: not a PNG" in skipped[0]


def test_mistakes():
    with pytest.raises(InputError, match="no images"):
        evaluate([], lambda x: x)
