"""Objects with their cameras: the convention of NeRF's renderers, and files that are something else."""

import json
import math

import numpy as np
import pytest

from nextstep_jax.data.curation.stages import Dropped
from nextstep_jax.data.curation.views import Moves, angles_between, describe_move
from nextstep_jax.data.image_output import save_image
from nextstep_jax.data.images import ImageError
from nextstep_jax.data.records import TextPart
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.view_folder import ViewFolder, read_cameras
from nextstep_jax.errors import InputError


def matrix(azimuth: float, elevation: float, distance: float = 2.0) -> list[list[float]]:
    """Camera to world: the place in the last column (the turning is not read)."""
    a, e = math.radians(azimuth), math.radians(elevation)
    place = distance * np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    return [*([*row, float(value)] for row, value in zip(np.eye(3).tolist(), place, strict=True)), [0.0, 0.0, 0.0, 1.0]]


def write_object(folder, cameras, caption="a mug") -> None:
    folder.mkdir(parents=True)
    frames = []
    for number, angles in enumerate(cameras):
        save_image(folder / f"r_{number}.png", np.full((40, 40, 3), number, np.uint8))
        frames.append({"file_path": f"./r_{number}", "transform_matrix": matrix(*angles)})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    if caption:
        (folder / "caption.txt").write_text(caption)


RING = [(30 * n - 180, 10) for n in range(12)]


def test_views_with_their_cameras(tmp_path):
    write_object(tmp_path / "objects" / "b", RING)
    write_object(tmp_path / "objects" / "a", [(90, -30), (-45, 80)], caption="")
    (tmp_path / "objects" / "readme.txt").write_text("")
    source = open_source(f"views:{tmp_path / 'objects'}")
    assert source.names == ["a", "b"] and source.unused.counts == {"file beside the objects": 1}
    first, second = source
    assert first.metadata["cameras"] == [[90, -30], [-45, 80]] and first.texts == ()
    assert second.texts[0].text == "a mug" and [part.pixels()[0, 0, 0] for part in second.images] == list(range(12))
    assert [azimuth % 360 for azimuth, _ in second.metadata["cameras"]] == [azimuth % 360 for azimuth, _ in RING]


def test_a_changed_view_changes_the_fingerprint(tmp_path):
    write_object(tmp_path / "a", RING)
    before = ViewFolder(tmp_path).fingerprint(0, 1)
    save_image(tmp_path / "a" / "r_3.png", np.zeros((44, 44, 3), np.uint8))
    assert ViewFolder(tmp_path).fingerprint(0, 1) != before


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "expected a list of 1 to 512 frames"),
        ({"frames": []}, "expected a list of 1 to 512 frames"),
        ({"frames": [3]}, "frame 0: expected a file_path"),
        ({"frames": [{"file_path": "../../etc/passwd", "transform_matrix": matrix(0, 0)}]}, "must be a name inside the folder"),
        ({"frames": [{"file_path": "/etc/passwd", "transform_matrix": matrix(0, 0)}]}, "must be a name inside the folder"),
        ({"frames": [{"file_path": "gone", "transform_matrix": matrix(0, 0)}]}, "frame 0: no image 'gone'"),
        ({"frames": [{"file_path": "r_0"}]}, "transform_matrix must be"),
        ({"frames": [{"file_path": "r_0", "transform_matrix": [[1, 2], [3, "x"]]}]}, "transform_matrix must be"),
        ({"frames": [{"file_path": "r_0", "transform_matrix": matrix(0, 0, 0)}]}, "away from the origin"),
        ({"frames": [{"file_path": "r_0", "transform_matrix": matrix(45, 45, math.inf)}]}, "away from the origin"),
    ],
)
def test_what_is_no_list_of_cameras_is_named(tmp_path, value, message):
    write_object(tmp_path / "a", RING)
    (tmp_path / "a" / "transforms.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message) as error:
        read_cameras(tmp_path / "a" / "transforms.json")
    assert str(tmp_path / "a" / "transforms.json") in str(error.value)


def test_a_link_out_of_the_folder_and_a_damaged_view(tmp_path):
    write_object(tmp_path / "objects" / "a", RING)
    view = tmp_path / "objects" / "a" / "r_3.png"
    view.rename(tmp_path / "elsewhere.png")
    view.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match="a link out of the folder"):
        ViewFolder(tmp_path / "objects")[0]
    view.unlink()
    view.write_bytes(b"nothing")
    with pytest.raises(ImageError, match="r_3.png: not a PNG"):
        ViewFolder(tmp_path / "objects")[0]
    cameras = tmp_path / "objects" / "a" / "transforms.json"
    cameras.rename(tmp_path / "cameras.json")
    cameras.symlink_to(tmp_path / "cameras.json")
    with pytest.raises(InputError, match="transforms.json: a link out of the folder"):
        ViewFolder(tmp_path / "objects")[0]


# --- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, after, text",
    [
        ((0, 0), (40, 0), "Move the camera 40 degrees to the right."),
        ((170, 0), (-170, 10), "Move the camera 20 degrees to the right and 10 degrees up."),
        ((-170, 30), (170, -1), "Move the camera 20 degrees to the left and 31 degrees down."),
        ((10, 0), (9, 0), "Move the camera 1 degree to the left."),
        ((10, 5), (10.2, 5.1), "Keep the camera where it is."),
    ],
)
def test_moves_in_words(before, after, text):
    assert describe_move(np.array(before), np.array(after)) == text


def test_angles_between_directions():
    found = angles_between(np.array([[0, 0], [90, 0], [180, 0], [45, 90], [0, 60]], float))
    assert np.allclose(found[0], [0, 90, 180, 90, 60], atol=1e-5) and np.allclose(found, found.T)
    assert np.allclose(found[3, 4], 30, atol=1e-5)


def test_a_walk_over_the_views(tmp_path):
    write_object(tmp_path / "a", RING)
    stage = Moves(views=5, sequences=3, min_angle=20, max_angle=70)
    made = list(stage.prepare()(ViewFolder(tmp_path)[0], {}, np.random.default_rng(0)))
    assert [sample.key for sample in made] == ["a#0", "a#1", "a#2"] and len({sample.parts for sample in made}) == 3
    for sample in made:
        numbers = [int(part.pixels()[0, 0, 0]) for part in sample.images]
        assert len(set(numbers)) == 5 and [part.loss for part in sample.images] == [False, True, True, True, True]
        texts = [part.text for part in sample.parts if isinstance(part, TextPart)]
        assert texts[0] == "a mug" and len(texts) == 5
        for before, after, text in zip(numbers, numbers[1:], texts[1:], strict=False):
            turn = (30 * (after - before) + 180) % 360 - 180
            assert (
                20 <= abs(turn) <= 60
                and text == f"Move the camera {abs(turn)} degrees to the {'right' if turn > 0 else 'left'}."
            )


def test_objects_with_too_few_views_are_dropped(tmp_path):
    write_object(tmp_path / "a", RING[:3])
    with pytest.raises(Dropped, match="a: no 4 views 15 to 90 apart") as dropped:
        list(Moves().prepare()(ViewFolder(tmp_path)[0], {}, np.random.default_rng(0)))
    assert dropped.value.reason == "too few views"


@pytest.mark.parametrize("settings", [{"min_angle": 90.0}, {"min_angle": -1.0}, {"max_angle": 200.0}])
def test_angles_are_checked(settings):
    with pytest.raises(InputError, match="min_angle must be less than max_angle"):
        Moves(**settings)
