"""PSNR and SSIM against float64 programs written from their definitions."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, uniform_filter

from nextstep_jax.errors import InputError
from nextstep_jax.evaluation.reconstruction import LLAMAGEN, psnr, ssim


def oracle_psnr(x, y, peak):
    return 10 * np.log10(peak**2 / ((x - y) ** 2).mean((1, 2, 3)))


def oracle_ssim(x, y, low, high):
    """Wang et al. 2004: 11 x 11 Gaussian windows of sigma 1.5 that lie inside the image, population moments."""
    peak, values = high - low, np.zeros(len(x))
    for b in range(len(x)):
        maps = []
        for c in range(x.shape[-1]):
            p, q = x[b, ..., c] - low, y[b, ..., c] - low

            def mean(values):
                return gaussian_filter(values, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

            mp, mq = mean(p), mean(q)
            vp, vq, cov = mean(p * p) - mp**2, mean(q * q) - mq**2, mean(p * q) - mp * mq
            c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            maps.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        values[b] = np.mean(maps)
    return values


@pytest.fixture(scope="module")
def pair():
    """[2, 24, 31, 3] in [-1, 1]: smooth images, and noisier or darker versions of them."""
    rng = np.random.default_rng(0)
    x = np.clip(gaussian_filter(rng.normal(size=(2, 24, 31, 3)), (0, 2, 2, 0)) * 4, -1, 1)
    y = np.clip(x + rng.normal(size=x.shape) * np.array([0.02, 0.4])[:, None, None, None] - 0.1, -1, 1)
    return x, y


def test_psnr_is_its_definition(pair):
    np.testing.assert_allclose(psnr(*pair), oracle_psnr(*pair, 2.0), rtol=1e-5)
    levels = [np.round(127.5 * (x + 1)).astype(np.uint8) for x in pair]
    wide = [x.astype(np.float64) for x in levels]
    np.testing.assert_allclose(psnr(*levels, 0, 255), oracle_psnr(*wide, 255), rtol=1e-5)


def test_ssim_is_its_definition(pair):
    found = np.asarray(ssim(*pair))
    np.testing.assert_allclose(found, oracle_ssim(*pair, -1, 1), atol=2e-5)
    assert found[0] > 0.9 > 0.6 > found[1]
    levels = [np.round(127.5 * (x + 1)).astype(np.uint8) for x in pair]
    np.testing.assert_allclose(ssim(*levels, 0, 255), oracle_ssim(*[x.astype(np.float64) for x in levels], 0, 255), atol=2e-5)


def oracle_uniform_ssim(x, y):
    """scikit-image's structural_similarity(data_range=2.0, channel_axis=-1) of values from 0 to 1, written out in float64."""
    values = np.zeros(len(x))
    for b in range(len(x)):
        maps = []
        for c in range(x.shape[-1]):
            p, q = x[b, ..., c], y[b, ..., c]

            def mean(values):
                return uniform_filter(values, 7)[3:-3, 3:-3]

            mp, mq = mean(p), mean(q)
            vp, vq, cov = (49 / 48 * v for v in (mean(p * p) - mp**2, mean(q * q) - mq**2, mean(p * q) - mp * mq))
            c1, c2 = 0.02**2, 0.06**2
            maps.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        values[b] = np.mean(maps)
    return values


def test_the_convention_of_llamagen(pair):
    found = np.asarray(ssim(*pair, convention=LLAMAGEN))
    np.testing.assert_allclose(found, oracle_uniform_ssim(*((v + 1) / 2 for v in pair)), atol=2e-5)
    np.testing.assert_allclose(found, [0.98440208, 0.60405497], atol=2e-5)  # what scikit-image 0.26 says of them
    assert (found > np.asarray(ssim(*pair))).all()


def test_equal_images_are_perfect(pair):
    assert np.isinf(psnr(pair[0], pair[0])).all()
    np.testing.assert_allclose(ssim(pair[0], pair[0]), 1, atol=1e-6)


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match=r"\(1, 12, 12, 3\), \(1, 12, 13, 3\)"):
        psnr(np.zeros((1, 12, 12, 3)), np.zeros((1, 12, 13, 3)))
    with pytest.raises(InputError, match="11x11 pixels, found 12x8"):
        ssim(np.zeros((1, 12, 8, 3)), np.zeros((1, 12, 8, 3)))
