"""Watermarks that are drawn: what they let through, and where they fit."""

import numpy as np

from nextstep_jax.data.curation import overlays


def test_a_mark_lets_the_image_shine_through():
    gray = np.full((200, 300, 3), 100, np.uint8)
    for seed in range(30):
        marked, opaque = overlays.watermark(gray, np.random.default_rng(seed))
        again, _ = overlays.watermark(gray, np.random.default_rng(seed))
        assert marked.shape == gray.shape and np.array_equal(marked, again)
        assert 0 < (opaque > 0.1).mean() < 0.6 and opaque.max() <= 0.65
        assert np.array_equal(marked[opaque == 0], gray[opaque == 0])
        # Mixed of the image and one color: the color that the change at each pixel speaks of.
        sure = opaque > 0.2
        color = 100 + (marked[sure].astype(float) - 100) / opaque[sure][:, None]
        assert color.std(0).max() < 3 and color.min() > -4 and color.max() < 259


def test_marks_fit_on_small_and_long_images():
    for size in ((16, 16), (16, 200), (300, 20)):
        for seed in range(20):
            assert overlays.mark(*size, np.random.default_rng(seed)).shape == size
