"""What notebooks show: images, grids, a bar with the images as they grow, and controls, without a browser."""

import base64
import io
import re

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from nextstep_jax import notebook
from nextstep_jax.errors import InputError
from nextstep_jax.generation.loaded_model import PartialImages
from nextstep_jax.notebook import Controls, Watch, grid


def shown_images(page):
    """[height, width, 3] uint8 of every image in a page."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def test_an_image_shows_itself_with_its_record(tiny_pipeline):
    (image,) = tiny_pipeline.generate("a red circle", seed=1, height=32, width=64)
    data, metadata = DisplayFormatter().format(image)
    file = Image.open(io.BytesIO(data["image/png"]))
    np.testing.assert_array_equal(np.asarray(file.convert("RGB")), image.pixels)
    assert file.text["prompt"] == "a red circle"
    assert metadata["image/png"] == {"width": 256, "height": 128}


def test_grid():
    images = [np.full((16, 32, 3), level, np.uint8) for level in range(5)]
    page = grid(images, ["<b>&", *"bcde"], columns=3, side=50).data
    for shown, image in zip(shown_images(page), images, strict=True):
        np.testing.assert_array_equal(shown, image)
    assert "repeat(3,50px)" in page and "<figcaption>&lt;b&gt;&amp;</figcaption>" in page and "<b>" not in page
    assert "repeat(1," in grid(images[:1]).data
    with pytest.raises(InputError, match="needs images"):
        grid([])
    with pytest.raises(InputError, match="one caption of each of 5 images, found 1"):
        grid(images, ["a"])


class Handle:
    """What a display handle was given."""

    def __init__(self):
        self.shown = []

    def display(self, page):
        assert not self.shown
        self.shown.append(page.data)

    def update(self, page):
        assert self.shown
        self.shown.append(page.data)


@pytest.mark.parametrize(("previews", "decoded"), [(16, 8), (4, 4), (1, 1)])
def test_a_bar_with_the_images_as_they_grow(monkeypatch, previews, decoded):
    handle, calls = Handle(), []
    monkeypatch.setattr(notebook, "DisplayHandle", lambda: handle)

    def decode(tokens, h, w):
        calls.append(tokens.copy())
        return [np.full((16, 16, 3), int(row.sum()), np.uint8) for row in tokens]

    watch = Watch(previews)
    for done in range(1, 9):
        tokens = np.concatenate([np.ones((2, done, 1)), np.zeros((2, 8 - done, 1))], axis=1)
        watch(done, 8, PartialImages(tokens, 2, 4, decode))
    assert len(calls) == decoded and len(handle.shown) == 8
    assert [int(re.search(r'value="(\d+)" max="8"', page)[1]) for page in handle.shown] == list(range(1, 9))
    last = shown_images(handle.shown[-1])
    assert len(last) == 2 and (last[0] == 8).all()  # the last preview is the whole image


def test_controls_draw_what_the_pipeline_draws(tiny_pipeline):
    controls = Controls(tiny_pipeline, "a red circle")
    controls.n.value, controls.seed.value, controls.cfg.value, controls.steps.value = 2, 5, 2.0, 4
    controls.draw.click()
    expected = tiny_pipeline.generate("a red circle", n=2, seed=5, settings=tiny_pipeline.settings(cfg=2.0, steps=4))
    for image, shown, wanted in zip(controls.images, shown_images(controls._shown.value), expected, strict=True):
        np.testing.assert_allclose(image.tokens, wanted.tokens, atol=1e-4)
        np.testing.assert_array_equal(shown, image.pixels)
        assert image.record == wanted.record
    assert controls._bar.value == controls._bar.max == 16 and not controls.draw.disabled
    controls.prompt.value = " "
    controls.draw.click()
    assert controls._status.value == "a prompt must not be empty" and not controls.draw.disabled
    before = controls.seed.value
    controls.dice.click()
    assert controls.seed.value != before
