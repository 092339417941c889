"""Placing sequences in rows of one length, and rows in a Batch.

Letters: B rows of a batch, S positions of a row, C channels of one image token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int8

from nextstep_jax.batch import Batch, PairedBatch
from nextstep_jax.data.sequence import Segment, Sizes, added, fits

Item = TypeVar("Item")


@dataclasses.dataclass
class SampleCounts:
    """What became of a source's samples.

    Attributes:
      read: all of them.
      oversized: left out, because they fit into no row and cannot be cut.
      cut: trained on in several pieces, because they do not fit into one row.
      skipped: left out, because they cannot be used: damaged, without a caption, ...
      discarded: text rows that the release's packing throws away (0 in every other).
    """

    read: int = 0
    oversized: int = 0
    cut: int = 0
    skipped: int = 0
    discarded: int = 0

    def __add__(self, other: "SampleCounts") -> "SampleCounts":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return SampleCounts(*map(sum, pairs))


def count_metrics(counts: Sequence[Mapping[str, SampleCounts]]) -> dict[str, float]:
    """Of each source's samples, over several data shards, the fraction that was oversized, cut, skipped or discarded:
    {"data/oversized/NAME": ...}. What never happens to a source is 0, but "cut" and "discarded" are then left out.
    """
    totals: dict[str, SampleCounts] = {}
    for shard in counts:
        for name, found in shard.items():
            totals[name] = totals.get(name, SampleCounts()) + found
    metrics = {}
    for name, total in totals.items():
        for what in ("oversized", "skipped", "cut", "discarded"):
            if (count := getattr(total, what)) or what in ("oversized", "skipped"):
                metrics[f"data/{what}/{name}"] = count / max(total.read, 1)
    return metrics


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """A batch and what a training loop wants to say about it. All arrays are numpy.

    Attributes:
      batch: of preferences a PairedBatch.
      kinds: [B, S] int8, `sequence.KIND_IDS` of each position (of the winners); 0 for padding.
      keys: "source:key" of the samples in each row.
      counts: of the samples read so far, by source.
    """

    batch: Batch | PairedBatch
    kinds: np.ndarray
    keys: tuple[tuple[str, ...], ...]
    counts: Mapping[str, SampleCounts]


class BestFit(Generic[Item]):
    """Best-fit packing into a bounded number of open rows.

    Rows and items have several sizes, the first of which is their positions; the others limit what else a row has room for. An
    item goes into the open row that it fills up most. When it fits in none, and no further row may be opened, the fullest row
    is closed and handed out. Nothing is split, and no row waits forever: the fullest is closed each time.

    Attributes:
      limits: sizes of a row.
      packing_buffer: how many rows may be open. More waste less and hold more in memory.
      rows: the open rows, each a list of items, oldest first; `used` adds up the sizes of the items in each.
    """

    def __init__(self, limits: Sizes, packing_buffer: int):
        self.limits = limits
        self.packing_buffer = packing_buffer
        self.rows: list[list[Item]] = []
        self.used: list[Sizes] = []

    def add(self, item: Item, sizes: Sizes) -> list[Item] | None:
        """Place an item that fits into an empty row. Returns the row that was closed for it, if any."""
        fitting = [row for row, used in enumerate(self.used) if fits(added(used, sizes), self.limits)]
        closed = None
        if fitting:
            row = max(fitting, key=self.used.__getitem__)
        else:
            if len(self.rows) == self.packing_buffer:
                fullest = self.used.index(max(self.used))
                closed = self.rows.pop(fullest)
                self.used.pop(fullest)
            self.rows.append([])
            self.used.append((0,) * len(self.limits))
            row = -1
        self.rows[row].append(item)
        self.used[row] = added(self.used[row], sizes)
        return closed

    def flush(self) -> list[list[Item]]:
        """Close and hand out all open rows."""
        rows, self.rows, self.used = self.rows, [], []
        return rows


def assemble(
    rows: Sequence[Sequence[tuple[Segment, int]]], batch_size: int, length: int, channels: int, pad_id: int, separated: bool
) -> tuple[Batch, Int8[np.ndarray, "B S"]]:
    """Rows of (segment, kind id) as a Batch of numpy arrays and the kind of data at each position.

    Args:
      rows: at most `batch_size`; missing rows are padding.
      separated: each segment has its own segment id and its own positions from 0. Otherwise a row is one segment, as in the
        February 2026 release, where packed samples see each other.

    Returns:
      batch: B = batch_size, S = length, C = channels. The first position of a segment is no target: nothing precedes it.
      kinds: [B, S] int8, 0 for padding.
    """
    shape = (batch_size, length)
    text_ids = np.full(shape, pad_id, np.int32)
    image_tokens = np.zeros((*shape, channels), np.float32)
    is_image = np.zeros(shape, bool)
    positions, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    text_weight, image_weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    kinds = np.zeros(shape, np.int8)
    for b, row in enumerate(rows):
        start = 0
        for number, (segment, kind) in enumerate(row, 1):
            stop = start + len(segment)
            text_ids[b, start:stop] = segment.text_ids
            is_image[b, start:stop] = segment.is_image
            image_tokens[b, start:stop][segment.is_image] = segment.image_tokens
            positions[b, start:stop] = np.arange(len(segment)) if separated else np.arange(start, stop)
            segment_ids[b, start:stop] = number if separated else 1
            text_weight[b, start:stop] = segment.text_weight
            image_weight[b, start:stop] = segment.image_weight
            kinds[b, start:stop] = kind
            start = stop
    text_weight[positions == 0] = 0
    return Batch(text_ids, image_tokens, is_image, positions, segment_ids, text_weight, image_weight), kinds
