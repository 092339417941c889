"""FID's network and its resizing against torch-fidelity (tests/evaluation/fid/drawn.py made the goldens)."""

import numpy as np
import pytest
from PIL import Image

from nextstep_jax.evaluation.fid.features import MODES, inception_extractor, own_extractor
from nextstep_jax.evaluation.fid.resize import resize_clean, resize_tf
from nextstep_jax.generation.load import load_image_tokenizer
from tests.evaluation.fid.drawn import GOLDEN, checkerboard, draw_images


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def extractor(weights):
    return inception_extractor("tf", weights.params, weights.sha256)


def test_features_are_those_of_torch_fidelity(extractor, golden):
    found = extractor(draw_images(), batch=2)
    np.testing.assert_allclose(found.features, golden["features"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(found.logits, golden["logits"], atol=1e-3, rtol=0)
    apart = np.abs(golden["features"][0] - golden["features"][1]).mean()
    assert apart > 0.02  # the goldens can tell images apart


def test_resizing_of_tensorflow_is_exact(golden):
    resized = resize_tf(checkerboard(), 299)
    np.testing.assert_array_equal(resized[::7, :, 0], golden["resized"])
    np.testing.assert_array_equal(resized[..., 0], resized[..., 2])


def test_a_size_that_is_right_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (299, 299, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize_tf(image, 299), image)
    np.testing.assert_array_equal(resize_clean(image, 299), image)


def test_clean_resizing_smooths_and_does_not_round():
    image = np.zeros((600, 600, 3), np.uint8)
    image[::2] = 255
    image[..., 1] = 0
    small = resize_clean(image, 100)
    np.testing.assert_allclose(small[5:-5, 5:-5, 0], 127.5, atol=1)
    assert (small[..., 1] == 0).all() and (small != np.round(small)).any() and 0 <= small.min() <= small.max() <= 255
    rounded = np.asarray(Image.fromarray(image).resize((100, 100), Image.Resampling.BICUBIC))
    assert np.abs(small - rounded).max() <= 1
    assert np.abs(resize_tf(image, 100)[5:-5, 5:-5, 0] - 127.5).min() > 100  # that of 2015 does neither


def test_own_features_do_not_depend_on_the_batch():
    pictures = [image[: 40 + i, :48] for i in range(3) for image in draw_images()[:1]]
    extractor = own_extractor(*load_image_tokenizer(), "0" * 64)
    found = extractor(pictures, batch=2)
    again = extractor(pictures, batch=3)
    np.testing.assert_allclose(found.features, again.features, atol=1e-5)
    assert found.features.shape[0] == 3 and found.features.shape[1] % 16 == 0 and found.logits is None
    assert extractor.title == "FD-own" == MODES["own"]


def test_no_images():
    assert len(own_extractor(*load_image_tokenizer(), "0" * 64)([], batch=2).features) == 0
