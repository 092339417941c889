"""Near-duplicates, beside comparing everything with everything."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np

from nextstep_jax.data.curation import duplicates
from nextstep_jax.data.curation.duplicates import band_rows, best_of_groups, image_pairs, text_pairs

few_bits = st.builds(
    lambda base, flips: base ^ sum({1 << flip for flip in flips}),
    st.sampled_from([0, 2**64 - 1, 0xA5A5 << 20]),
    st.lists(st.integers(0, 63), max_size=9),
)
hash_lists = st.lists(st.lists(few_bits.map("{:016x}".format), max_size=3), max_size=12)


@hypothesis.given(hash_lists, st.integers(0, 9))
def test_all_pairs_of_near_hashes_are_found(hashes, most):
    def near(a, b):
        return any((int(x, 16) ^ int(y, 16)).bit_count() <= most for x, y in [*((a[0], y) for y in b), *((b[0], x) for x in a)])

    numbered = [(i, found) for i, found in enumerate(hashes) if found]
    expected = {(i, j) for (i, a), (j, b) in itertools.combinations(numbered, 2) if near(a, b)}
    assert set(image_pairs(hashes, most)) == expected


def test_more_images_are_compared_by_longer_bands_with_the_same_result():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 64, 3000, np.uint64)
    values[1500:] = values[:1500] ^ (np.uint64(1) << rng.integers(0, 64, 1500, np.uint64)) ^ (np.uint64(1) << np.uint64(3))
    pairs = sorted(image_pairs([[f"{value:016x}"] for value in values], 4))
    assert pairs == [(n, n + 1500) for n in range(1500)]


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=50)
def test_texts_that_are_alike_are_found_and_others_are_not(data):
    base = data.draw(st.lists(st.integers(0, 9), min_size=60, max_size=60))
    signatures = [base]
    for _ in range(data.draw(st.integers(0, 6))):
        places = data.draw(st.lists(st.integers(0, 59), max_size=30))
        signatures.append([1000 + len(signatures) if n in places else value for n, value in enumerate(base)])
    signatures.append([])
    found = set(text_pairs(signatures, 0.9))
    similar = {
        (i, j): np.mean(np.equal(signatures[i], signatures[j]))
        for i, j in itertools.combinations(range(len(signatures) - 1), 2)
    }
    assert all(similar[pair] >= 0.9 for pair in found)
    assert found >= {pair for pair, fraction in similar.items() if fraction == 1}


def test_bands_are_as_long_as_the_similarity_allows():
    for similarity in (0.5, 0.7, 0.8, 0.95):
        rows = band_rows(112, similarity)
        assert 1 - (1 - similarity**rows) ** (112 // rows) >= 0.99
        assert 1 - (1 - similarity ** (rows + 1)) ** (112 // (rows + 1)) < 0.99


def test_pairs_of_a_given_similarity_are_found_as_often_as_promised():
    rng = np.random.default_rng(1)
    first = rng.integers(0, 1 << 32, (400, 112))
    second = first.copy()
    for row in second:
        row[rng.choice(112, 22, replace=False)] += 1 << 33  # 90 of 112 agree: 0.804
    found = set(text_pairs([*first.tolist(), *second.tolist()], 0.8))
    assert len(found) >= 0.97 * 400 and all(j == i + 400 for i, j in found)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1]), max_size=15),
    st.lists(st.integers(0, 3).map(float), min_size=10, max_size=10),
)
def test_each_group_keeps_its_best(pairs, scores):
    groups = [{n} for n in range(10)]
    for a, b in pairs:
        joined = set().union(*(group for group in groups if a in group or b in group))
        groups = [group for group in groups if not group & joined] + [joined]
    expected = {}
    for group in groups:
        best = min(group, key=lambda n: (-scores[n], n))
        expected |= {n: best for n in group if n != best}
    assert best_of_groups(pairs, scores) == expected


def test_many_equal_items_are_one_group(monkeypatch):
    monkeypatch.setattr(duplicates, "_MAX_PER_BAND", 3)
    pairs = list(image_pairs([["00000000000000ff"]] * 50, 2))
    assert len(pairs) < 50 * 3 and best_of_groups(pairs, [0.0] * 50) == dict.fromkeys(range(1, 50), 0)
