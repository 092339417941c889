"""Near-duplicates over a whole source, found by locality-sensitive hashing and checked exactly.

Items that agree in a band of their signatures are compared; what is alike is joined into groups, and each group keeps its best
item. Memory is some hundred bytes an item, whatever the images' sizes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt64

_MAX_PER_BAND = 500  # items of one band that are all compared with each other; of more, each only with its neighbors


def image_pairs(hashes: Sequence[Sequence[str]], max_distance: int) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of images of which one's whole (its first hash) is at most `max_distance` bits from any hash of the
    other. An empty list of hashes is no image.

    Of hashes cut into d + k bands, two that differ in at most d bits agree in some k of them (pigeonhole principle), so every
    choice of k bands is compared by; k grows with the number of images, so that few others agree by chance.
    """
    wholes = [(item, found[0]) for item, found in enumerate(hashes) if found]
    views = [(item, value) for item, found in enumerate(hashes) for value in found]
    owners = np.asarray([item for item, _ in (*wholes, *views)], np.int64)
    values = np.asarray([int(value, 16) for _, value in (*wholes, *views)], np.uint64)
    is_whole = np.arange(len(owners)) < len(wholes)

    def alike(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        near = np.bitwise_count(values[i] ^ values[j]) <= max_distance
        return near & (is_whole[i] | is_whole[j]) & (owners[i] != owners[j])

    intact = next(k for k in range(1, 65) if 64 * k / (max_distance + k) >= min(32, np.log2(len(values) + 1)))
    edges = np.linspace(0, 64, max_distance + intact + 1).astype(int)
    masks = [(1 << int(high)) - (1 << int(low)) for low, high in itertools.pairwise(edges)]
    bands = (values & np.uint64(sum(chosen)) for chosen in itertools.combinations(masks, intact))
    return _unique(_pairs(bands, alike), owners)


def text_pairs(signatures: Sequence[Sequence[int]], min_similarity: float) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of texts whose MinHash signatures agree in at least this fraction. An empty signature is no text.

    A pair of that similarity is found with a probability of over 99 % (see `band_rows`).
    """
    items = [item for item, signature in enumerate(signatures) if signature]
    if not items:
        return iter(())
    owners = np.asarray(items, np.int64)
    values = np.asarray([signatures[item] for item in items], np.uint64)
    rows = band_rows(values.shape[1], min_similarity)

    def alike(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (values[i] == values[j]).mean(axis=1) >= min_similarity

    bands = (_mix(values[:, start : start + rows]) for start in range(0, values.shape[1] - rows + 1, rows))
    return _unique(_pairs(bands, alike), owners)


def band_rows(hashes: int, similarity: float) -> int:
    """Rows of a band: the most with which a pair of this similarity s shares one of the n / r bands in 99 of 100 cases,
    1 - (1 - s**r)**(n / r) >= 0.99.
    """
    return max((r for r in range(1, hashes + 1) if 1 - (1 - similarity**r) ** (hashes // r) >= 0.99), default=1)


def _mix(rows: UInt64[np.ndarray, "items r"]) -> UInt64[np.ndarray, " items"]:
    mixed = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
    return mixed


def _pairs(
    bands: Iterable[np.ndarray], alike: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays (i, j) of entries that agree in a band and are `alike`."""
    for band in bands:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0, True])
        longest = int(np.diff(starts).max(initial=0))
        group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        # Entry n of a group with entry n + step, for all groups at once.
        for step in range(1, min(longest, _MAX_PER_BAND)):
            first = np.flatnonzero(group[:-step] == group[step:])
            i, j = order[first], order[first + step]
            near = alike(i, j)
            yield i[near], j[near]


def _unique(found: Iterator[tuple[np.ndarray, np.ndarray]], owners: np.ndarray) -> Iterator[tuple[int, int]]:
    seen: set[tuple[int, int]] = set()
    for i, j in found:
        for a, b in zip(owners[i].tolist(), owners[j].tolist(), strict=True):
            pair = (min(a, b), max(a, b))
            if pair not in seen:
                seen.add(pair)
                yield pair


def best_of_groups(pairs: Iterable[tuple[int, int]], scores: Sequence[float]) -> dict[int, int]:
    """{item left out: the item of its group that is kept}. Groups are what pairs connect; the highest score is kept, of equal
    ones the first.
    """
    parents: dict[int, int] = {}

    def root(item: int) -> int:
        while (parent := parents.get(item, item)) != item:
            parents[item] = parents.get(parent, parent)
            item = parent
        return item

    for a, b in pairs:
        first, second = root(a), root(b)
        better, other = sorted((first, second), key=lambda item: (-scores[item], item))
        parents[other] = better
        parents.setdefault(better, better)
    return {item: kept for item in sorted(parents) if (kept := root(item)) != item}
