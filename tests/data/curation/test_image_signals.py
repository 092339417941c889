"""Sharpness and perceptual hashes of images, beside SciPy's filters and transforms."""

import io

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from PIL import Image, ImageFilter

from nextstep_jax.data.curation.image_signals import PerceptualHash, Sharpness, Size, blockiness, gray, perceptual_hash
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from tests.data.curation.scenes import near_duplicates, photograph


def sample_of(*images: Image.Image | np.ndarray) -> Sample:
    parts = [ImagePart.from_pixels(np.asarray(image)) for image in images]
    return Sample((TextPart("a caption"), *parts), "pair" if len(parts) == 1 else "interleaved", "key")


def measured(*images, **settings):
    return Sharpness(**settings).prepare()(sample_of(*images))


def test_sharpness_is_what_scipy_finds():
    luma = gray(np.asarray(photograph(0))).astype(np.float64)
    found = measured(photograph(0))
    assert found["laplacian"] == pytest.approx(scipy.ndimage.laplace(luma, mode="mirror").var(), rel=1e-4)
    across, down = (scipy.ndimage.sobel(luma, axis, mode="mirror") for axis in (1, 0))
    assert found["tenengrad"] == pytest.approx(np.mean(across**2 + down**2), rel=1e-4)
    assert found["contrast"] == pytest.approx(luma.std(), rel=1e-4)


def test_blur_lowers_every_measure_of_clarity():
    sharp, blurred = (measured(image) for image in (photograph(1), photograph(1).filter(ImageFilter.GaussianBlur(3))))
    assert all(blurred[name] < 0.5 * sharp[name] for name in ("laplacian", "tenengrad"))
    assert blurred["contrast"] < sharp["contrast"]


def test_clarity_is_measured_at_one_size():
    large = photograph(2, 768, 1024)
    small = large.resize((512, 384), Image.Resampling.BOX)
    assert measured(large, side=384)["laplacian"] == pytest.approx(measured(small, side=384)["laplacian"], rel=0.02)
    assert measured(large, side=768)["laplacian"] != pytest.approx(measured(large, side=384)["laplacian"], rel=0.1)


def test_of_several_images_the_worst_counts():
    sharp, blurred = photograph(3), photograph(3).filter(ImageFilter.GaussianBlur(3))
    assert measured(sharp, blurred)["laplacian"] == measured(blurred)["laplacian"]


@pytest.mark.parametrize("quality, least, most", [(8, 1.6, 99), (95, 0.9, 1.1)])
def test_a_jpeg_of_low_quality_shows_its_blocks(quality, least, most):
    data = io.BytesIO()
    photograph(4).filter(ImageFilter.GaussianBlur(1)).save(data, "JPEG", quality=quality)
    assert least <= blockiness(gray(np.asarray(Image.open(data).convert("RGB")))) <= most


def test_blockiness_counts_columns_and_rows_by_hand():
    luma = np.zeros((8, 16), np.uint8)
    luma[:, 8:] = 10  # the one step lies on a border: 10 there, nothing elsewhere
    luma[4:, :] += 2  # and one off it, in rows
    assert blockiness(luma) == pytest.approx(10 / (2 / 21), abs=1e-3)  # rounded to four digits
    assert blockiness(np.zeros((8, 16), np.uint8)) == 1.0 and blockiness(np.zeros((1, 1), np.uint8)) == 1.0


def test_size_is_that_of_the_smallest_and_the_longest():
    images = [np.zeros((20, 40, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)]
    assert Size().prepare()(sample_of(*images)) == {"min_side": 16, "pixels": 256, "aspect": 2.0}
    assert Size().prepare()(Sample((TextPart("words"),), "text", "key")) == {}


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_a_hash_is_the_signs_of_the_low_frequencies():
    luma = gray(np.asarray(photograph(5)))
    small = np.asarray(Image.fromarray(luma).resize((32, 32), Image.Resampling.BOX), float)
    low = scipy.fft.dctn(small, type=2, norm=None)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    assert perceptual_hash(luma) == int("".join("1" if bit else "0" for bit in bits), 2)


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_hashes_of_whole_crops_and_mirror_images():
    hashes = PerceptualHash(crops=(0.8,)).prepare()(sample_of(photograph(6)))["hashes"]
    other = PerceptualHash(crops=()).prepare()
    center = photograph(6).crop((25, 19, 25 + 205, 19 + 154))
    mirrored = photograph(6).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert len(hashes) == 4
    assert other(sample_of(center))["hashes"][0] == hashes[1] and other(sample_of(mirrored))["hashes"][0] == hashes[2]


def test_near_duplicates_stay_near_and_others_far():
    hash_all = PerceptualHash().prepare()
    originals = [hash_all(sample_of(photograph(seed)))["hashes"] for seed in range(10)]
    for seed in range(10):
        for name, image in near_duplicates(photograph(seed)).items():
            whole = hash_all(sample_of(image))["hashes"][0]
            assert min(distance(whole, view) for view in originals[seed]) <= 6, name
    assert min(distance(a[0], view) for a in originals for b in originals if a is not b for view in b) > 6


def test_the_target_image_is_hashed():
    hash_all = PerceptualHash().prepare()
    assert hash_all(sample_of(photograph(1), photograph(2))) == hash_all(sample_of(photograph(2)))
    assert hash_all(Sample((TextPart("words"),), "text", "key")) == {}
