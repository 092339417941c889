"""Rows as batches."""

import numpy as np

from nextstep_jax.data.sequence import ImageTokens
from nextstep_jax.generation.prompts import frame_prompt, row_batch


def test_a_row_as_a_batch_of_one(tiny_config, tiny_vocabulary):
    tokens = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    row = frame_prompt(["a red", ImageTokens(tokens, 2, 2)], tiny_vocabulary.special, tiny_config, tiny_vocabulary)
    batch = row_batch(row)
    assert batch.shape == (1, len(row)) and batch.is_image.sum() == 4
    np.testing.assert_array_equal(batch.text_ids[0], row.text_ids)
    np.testing.assert_array_equal(batch.image_tokens[batch.is_image], tokens)
    assert np.all(batch.image_tokens[~batch.is_image] == 0)
    np.testing.assert_array_equal(batch.positions[0], np.arange(len(row)))
    assert np.all(batch.segment_ids == 1) and not batch.text_weight.any()
