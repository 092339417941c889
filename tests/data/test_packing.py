"""Best-fit packing and the arrays of a batch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.data.packing import BestFit, assemble
from nextstep_jax.data.sequence import ImageTokens, TextIds, training_segment
from tests.data.made_up import CHANNELS, vocabulary

SPECIAL = vocabulary().special
LENGTH = 20


def pack(sizes, packing_buffer):
    packing = BestFit((LENGTH,), packing_buffer)
    closed = []
    for item, size in enumerate(sizes):
        row = packing.add(item, (size,))
        closed += [row] if row is not None else []
        assert len(packing.rows) <= packing_buffer
        assert packing.used == [(sum(sizes[item] for item in row),) for row in packing.rows]
    return closed, packing


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, LENGTH), max_size=60), st.integers(1, 6))
def test_every_item_lands_once_in_a_row_it_fits(sizes, packing_buffer):
    closed, packing = pack(sizes, packing_buffer)
    rows = closed + packing.flush()
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all(0 < sum(sizes[item] for item in row) <= LENGTH for row in rows)
    assert packing.rows == [] and packing.used == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=60), st.integers(1, 6))
def test_a_row_closes_only_for_an_item_that_fits_nowhere(sizes, packing_buffer):
    packing = BestFit((LENGTH,), packing_buffer)
    for item, size in enumerate(sizes):
        before = [used for (used,) in packing.used]
        row = packing.add(item, (size,))
        if row is not None:
            assert min(before) + size > LENGTH
            assert sum(sizes[item] for item in row) == max(before)


def test_best_fit():
    _, packing = pack([12, 15, 5], 3)
    assert packing.rows == [[0], [1, 2]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=60), st.integers(1, 6))
def test_no_row_has_more_of_anything_than_its_limits(halves, packing_buffer):
    sizes = [(text + image, text, image) for text, image in halves]
    packing, rows = BestFit((LENGTH, 8, 15), packing_buffer), []
    for item, size in enumerate(sizes):
        row = packing.add(item, size)
        rows += [row] if row is not None else []
    rows += packing.flush()
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    for row in rows:
        assert all(sum(sizes[item][i] for item in row) <= limit for i, limit in enumerate((LENGTH, 8, 15)))


def test_items_of_a_kind_that_is_full_go_elsewhere():
    packing = BestFit((LENGTH, 8, 15), 2)
    for item, size in enumerate([(8, 8, 0), (4, 4, 0), (10, 0, 10)]):
        packing.add(item, size)
    assert packing.rows == [[0, 2], [1]]


def segment(texts: int, images: int, number: float):
    parts = [TextIds(np.full(texts, int(number), np.int32))]
    parts += [ImageTokens(np.full((2, CHANNELS), number, np.float32), 1, 2)] * images
    return training_segment(parts, SPECIAL, CHANNELS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1)), max_size=3), max_size=3), st.booleans())
def test_assemble(plan, separated):
    rows = [[(segment(t, i, 10 * b + s), 1 + i) for s, (t, i) in enumerate(row)] for b, row in enumerate(plan)]
    length = 48
    batch, kinds = assemble(rows, 3, length, CHANNELS, SPECIAL.pad, separated)
    assert batch.shape == (3, length) and batch.image_tokens.shape == (3, length, CHANNELS)
    for b in range(3):
        row = rows[b] if b < len(rows) else []
        used = sum(len(item) for item, _ in row)
        start = 0
        for number, (item, kind) in enumerate(row, 1):
            here = slice(start, start + len(item))
            np.testing.assert_array_equal(batch.text_ids[b, here], item.text_ids)
            np.testing.assert_array_equal(batch.is_image[b, here], item.is_image)
            np.testing.assert_array_equal(batch.image_tokens[b, here][item.is_image], item.image_tokens)
            np.testing.assert_array_equal(batch.image_weight[b, here], item.image_weight)
            weight = item.text_weight.copy()
            if separated or number == 1:  # nothing precedes the first position of a segment
                weight[0] = 0
            np.testing.assert_array_equal(batch.text_weight[b, here], weight)
            expected = np.arange(len(item)) + (0 if separated else start)
            np.testing.assert_array_equal(batch.positions[b, here], expected)
            assert set(batch.segment_ids[b, here]) == {number if separated else 1}
            assert set(kinds[b, here]) == {kind}
            start += len(item)
        assert not batch.image_tokens[b][~batch.is_image[b]].any()
        assert (batch.text_ids[b, used:] == SPECIAL.pad).all()
        for padding in (batch.segment_ids, batch.text_weight, batch.image_weight, batch.is_image, kinds):
            assert not padding[b, used:].any()


def test_dtypes():
    batch, kinds = assemble([], 1, 4, CHANNELS, SPECIAL.pad, separated=True)
    names = ("text_ids", "image_tokens", "is_image", "positions", "segment_ids", "text_weight", "image_weight")
    found = [getattr(batch, name).dtype.name for name in names]
    assert found == ["int32", "float32", "bool", "int32", "int32", "float32", "float32"]
    assert kinds.dtype == np.int8
