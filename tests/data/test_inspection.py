"""Counts and contact sheets."""

import json

import numpy as np
import pytest
from PIL import Image

from nextstep_jax.data import images, inspection
from nextstep_jax.data.records import CaptionError, ImagePart, Sample, TextPart
from nextstep_jax.data.source import Unused
from nextstep_jax.data.sources import ShapesSource
from nextstep_jax.errors import InputError

RED, LIME = (255, 0, 0), (0, 255, 0)


def picture(color, height=60, width=60, loss=True):
    return ImagePart.from_pixels(np.full((height, width, 3), color, np.uint8), loss)


class Listed:
    name = "listed"

    def __init__(self, *samples):
        self.samples, self.unused = samples, Unused()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]

    def fingerprint(self, start, stop):
        return ""

    def identity(self):
        return ""


MIXED = Listed(
    Sample((TextPart("a red square"), picture(RED)), "pair", "0", {"short": "red"}),
    Sample((picture(RED, loss=False), TextPart("make it green"), picture(LIME, 90, 160)), "edit", "1"),
    Sample((TextPart("just words " * 50),), "text", "2"),
    CaptionError("photo.png: no caption"),
)


def test_counts_and_measures():
    found = inspection.inspect(MIXED)
    assert (found["samples"], found["examined"], found["kinds"]) == (4, 4, {"text": 1, "pair": 1, "edit": 1})
    pictures = found["images"]
    assert (pictures["count"], pictures["targets"], pictures["formats"]) == (3, 2, {"png": 3})
    assert pictures["height"] == {"min": 60, "median": 60, "p95": 87, "max": 90}
    assert pictures["aspect"] == {"12x21": 1, "16x16": 2}
    assert found["captions"]["count"] == 3
    assert found["captions"]["words"] == {"min": 3, "median": 3, "p95": 90, "max": 100}
    assert (found["caption_variants"], found["skipped"]) == ({"short": 1}, {"caption": 1})
    json.dumps(found)


def test_a_limit_spreads_over_the_whole_source():
    source = Listed(*[Sample((TextPart("x" * (i + 1)),), "text", str(i)) for i in range(100)])
    found = inspection.inspect(source, limit=10)
    assert (found["samples"], found["examined"]) == (100, 10)
    assert found["captions"]["characters"] == {"min": 1, "median": 46, "p95": 86, "max": 91}
    for limit in (0, -1):
        with pytest.raises(InputError, match="at least 1"):
            inspection.inspect(source, limit=limit)


def test_a_contact_sheet_shows_images_frames_and_captions(tmp_path):
    path = tmp_path / "sheet.png"
    assert inspection.inspect(MIXED, sheet=path)["sheet"] == str(path)
    with Image.open(path) as sheet:
        assert sheet.text == {"source": "listed"}
        pixels = np.asarray(sheet)
    colors = {tuple(color) for color in pixels.reshape(-1, 3).tolist()}
    assert {RED, LIME, (0x20, 0x60, 0xC0), (0xC0, 0xC0, 0xC0)} <= colors
    cells = [pixels[:, 12 + 252 * i : 252 + 252 * i] for i in range(4)]
    assert all((cell.sum(-1) < 150).sum() > 100 for cell in cells)  # each has black text
    reds = [(cell == RED).all(-1).sum() for cell in cells]
    assert reds[0] > reds[1] > 0 and reds[2] == reds[3] == 0


def test_a_sheet_of_latents_and_of_stories():
    latents = ImagePart.from_latents(np.random.default_rng(0).standard_normal((8, 8, 16)).astype(np.float16), 64, 64)
    constant = ImagePart.from_latents(np.zeros((4, 2, 1), np.float32), 64, 32)
    sheet = inspection.contact_sheet(Listed(Sample((latents,), "pair", "0"), Sample((constant, latents), "interleaved", "1")))
    assert sheet.size[0] == 2 * 252 + 12
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 50
    story = Sample((TextPart("长的故事没有空格" * 100), *[picture(RED)] * 20), "interleaved", "2")
    assert inspection.contact_sheet(Listed(story)).size[1] < 500


def test_a_sheet_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="no/sheet.png: cannot be written"):
        inspection.inspect(MIXED, sheet=tmp_path / "no" / "sheet.png")


def test_a_truncated_image_is_a_cell_with_the_reason():
    whole = picture(RED).data
    broken = Sample((TextPart("x"), ImagePart(whole[:-40], "png", 60, 60)), "pair", "broken")
    sheet = np.asarray(inspection.contact_sheet(Listed(broken)))
    assert not (sheet == RED).all(-1).any() and (sheet.sum(-1) < 150).sum() > 100
    assert images.probe(whole).height == 60


def test_the_built_in_dataset_has_a_sheet():
    assert inspection.contact_sheet(ShapesSource("interleaved", "train", 5), 3).size[0] == 3 * 252 + 12
