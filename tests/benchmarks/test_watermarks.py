"""The program that trains the classifier of watermarks: what it draws, and that the file says what the model does."""

import argparse

import jax
import numpy as np
import pytest
from PIL import Image, ImageFont

from benchmarks import watermark_classifier, watermark_images
from nextstep_jax.data.curation.watermarks import Watermark
from nextstep_jax.data.records import ImagePart, Sample
from tests.data.curation.scenes import photograph

for module in ("matplotlib", "onnx", "onnxruntime", "optax"):
    pytest.importorskip(module)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five photographs and five times the same font."""
    from matplotlib import font_manager

    photos, fonts = (tmp_path_factory.mktemp(name) for name in ("photos", "fonts"))
    face = font_manager.findfont("DejaVu Sans")
    assert ImageFont.truetype(face, 10)
    for n in range(5):
        photograph(n, 288, 320).save(photos / f"{n}.png")
        (fonts / f"{n}.ttf").symlink_to(face)
    return photos, fonts


def test_twins_differ_by_the_mark_alone(folders, monkeypatch):
    pool = watermark_images.Pool(*watermark_classifier.opened(*folders, held_out=False), 6)
    monkeypatch.setattr(watermark_images, "encoded", lambda values, quality: watermark_images.to_bytes(values))
    for size in (watermark_images.SIDE, watermark_images.PART):
        pixels, changes = pool.pairs(np.random.default_rng(0), 8, size)
        assert pixels.shape == (16, size, size, 3) and changes.shape == (16, size, size)
        plain, marked = np.split(pixels.astype(float), 2)
        assert not changes[:8].any() and (changes[8:].max((1, 2)) > 5).all()
        assert np.abs(np.abs(marked - plain).mean(-1) - changes[8:]).max() < 2


def test_every_fifth_file_is_kept_back(folders):
    of_training, of_measuring = (watermark_classifier.opened(*folders, held_out=held_out)[1] for held_out in (False, True))
    assert len(of_training) == 4 and len(of_measuring) == 1 and not set(of_training) & set(of_measuring)


def test_the_file_says_what_the_trained_model_does(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(watermark_classifier, "POOL", 40)
    photos, fonts = folders
    settings = {"photos": photos, "fonts": fonts, "workdir": tmp_path, "batch": 4, "minutes": 9}
    for steps in (1, 2):  # the second continues
        watermark_classifier.train(argparse.Namespace(**settings, steps=steps))
    watermark_classifier.export(argparse.Namespace(**settings, out=tmp_path / "made.onnx"))
    params, stats = watermark_classifier.kept(tmp_path)
    pool = watermark_images.Pool(*watermark_classifier.opened(photos, fonts, held_out=False), 10)
    params = watermark_classifier.calibrated(params, stats, pool)
    stage = Watermark(str(tmp_path / "made.onnx")).prepare()
    for height, width in ((256, 256), (256, 400)):
        pixels = np.asarray(photograph(7, height, width))
        logits = watermark_classifier.image_logits(params, watermark_classifier.cell_logits(params, pixels[None], stats)[0])
        found = stage(Sample((ImagePart.from_pixels(pixels),), "pair", "key"))["score"]
        assert found == pytest.approx(float(jax.nn.sigmoid(logits)[0]), abs=2e-3)


def test_decoys_leave_the_size_and_change_something(folders):
    fonts = [str(path) for path in folders[1].iterdir()]
    image = np.asarray(Image.new("RGB", (288, 288), (90, 120, 150)))
    made = [watermark_images.decoy(image, np.random.default_rng(seed), fonts) for seed in range(30)]
    assert all(pixels.shape == image.shape and (pixels != image).any() for pixels in made)
