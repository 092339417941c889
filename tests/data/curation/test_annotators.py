"""Depth maps and poses by models made here: a depth of how red it is, keypoints where red has a value of its own."""

import json

import numpy as np
import pytest

from nextstep_jax.data.curation import job
from nextstep_jax.data.curation.annotators import KEYPOINTS, open_depth, open_pose
from nextstep_jax.data.curation.controls import Controls
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.curation.stages import Dropped, description, generator
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from tests.data.curation.onnx_files import write_dense_model

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")


@pytest.fixture
def depth(tmp_path):
    return write_dense_model(tmp_path / "depth", "predicted_depth", 1)


@pytest.fixture
def pose(tmp_path):
    return write_dense_model(tmp_path / "pose", "heatmaps", KEYPOINTS)


def slope() -> np.ndarray:
    """[64, 96, 3]: red grows from left to right."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[..., 0] = np.linspace(40, 200, 96).astype(np.uint8)
    return pixels


def figure(**points: tuple[int, int]) -> np.ndarray:
    """[128, 256, 3]: white, with a square of the red of a keypoint at each place (row, column), in cells of 16 x 32 pixels."""
    pixels = np.full((128, 256, 3), 255, np.uint8)
    for name, (row, column) in points.items():
        pixels[16 * row : 16 * row + 16, 32 * column : 32 * column + 32] = round(255 * int(name[1:]) / KEYPOINTS)
    return pixels


STANDING = {"k0": (1, 3), "k5": (2, 2), "k6": (2, 5), "k7": (4, 1), "k11": (5, 2), "k12": (5, 5)}


def test_depth_is_white_where_near_and_black_where_far(depth):
    found = open_depth(depth, cv2)(slope())
    assert found.shape == (64, 96, 3) and found.dtype == np.uint8 and (found == found[..., :1]).all()
    line = found[32, :, 0].astype(int)
    assert line[0] == 0 and line[-1] == 255 and (np.diff(line) >= 0).all() and line[48] == pytest.approx(128, abs=8)
    with pytest.raises(Dropped, match="the same depth everywhere") as dropped:
        open_depth(depth, cv2)(np.full((64, 96, 3), 90, np.uint8))
    assert dropped.value.reason == "no depth"


def test_a_pose_has_limbs_from_keypoint_to_keypoint_and_nothing_else(pose):
    found = open_pose(pose, cv2)(figure(**STANDING))
    assert found.shape == (128, 256, 3) and found.dtype == np.uint8
    places = {name: (16 * row + 8, 32 * column + 16) for name, (row, column) in STANDING.items()}
    assert all(found[place].any() for place in places.values())
    for a, b in (("k5", "k6"), ("k5", "k7"), ("k5", "k11"), ("k6", "k12"), ("k11", "k12")):
        middle = tuple((p + q) // 2 for p, q in zip(places[a], places[b], strict=True))
        assert found[middle].any(), (a, b)
    assert not found[60, 140].any() and not found[112:].any() and found.any(-1).mean() < 0.2
    fewer = {name: STANDING[name] for name in ("k0", "k5", "k6")}
    with pytest.raises(Dropped, match="finds 3 keypoints, fewer than 4") as dropped:
        open_pose(pose, cv2)(figure(**fewer))
    assert dropped.value.reason == "no pose"


def test_pairs_become_edits_with_depth_and_poses(depth, pose):
    stage = Controls(("depth", "pose"), 2, ("perceive",), depth, pose)
    sample = Sample((TextPart("someone"), ImagePart.from_pixels(figure(**STANDING))), "pair", "key")
    edits = {edit.metadata["control"]: edit for edit in stage.prepare()(sample, {}, generator(sample, "controls"))}
    for name, opened in (("depth", open_depth(depth, cv2)), ("pose", open_pose(pose, cv2))):
        assert np.array_equal(edits[name].images[1].pixels(), opened(figure(**STANDING)))
        assert ("depth map" if name == "depth" else "pose") in edits[name].texts[0].text
    files = description(stage)["model_files"]
    assert [name for name, _ in files] == ["model.onnx", "preprocessor_config.json"] * 2 and files[0] != files[2]


def test_a_recipe_counts_those_without_a_pose(pose, tmp_path):
    settings = {"kinds": ("pose",), "pose": pose}
    recipe = {"name": "c", "signals": {}, "duplicates": {}, "cuts": {"all": ()}, "transforms": {"controls": settings}}
    report = job.curate(open_source("shapes:pair:train:6"), read_recipe(recipe), tmp_path / "out")
    counts = report["cuts"]["all"]
    assert counts["written"] + counts["left_out"].get("no pose", 0) == 6
    assert len(ArrayRecordSource(tmp_path / "out" / "all")) == counts["written"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kinds": ("depth",)}, "depth of controls is not set .expected onnx:FOLDER"),
        ({"kinds": ("pose",), "pose": "model.onnx"}, "pose must be onnx:FOLDER, found 'model.onnx'"),
        ({"kinds": ("pose",), "pose": "onnx:/nowhere"}, "/nowhere/model.onnx: no such file"),
        ({"kinds": ("canny",), "depth": "onnx:/nowhere"}, "depth is set, and kinds has no depth"),
    ],
)
def test_a_missing_model_fails_at_the_start_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        Controls(**settings).prepare()


def test_models_of_another_form_are_refused(depth, tmp_path):
    with pytest.raises(InputError, match="expected an output heatmaps, found predicted_depth"):
        open_pose(depth, cv2)
    with pytest.raises(InputError, match=r"expected finite numbers \[1, 17, h, w\], found shape \[1, 3, 8, 8\]"):
        open_pose(write_dense_model(tmp_path / "three", "heatmaps", 3), cv2)
    path = tmp_path / "depth" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_center_crop": True, "crop_size": 16}))
    with pytest.raises(InputError, match="preprocessor_config.json: depth needs the whole image"):
        open_depth(depth, cv2)
