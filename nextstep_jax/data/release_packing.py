"""Rows and batches exactly as the February 2026 training release makes them, for comparing with it.

`SegmentPacking` in mixture.py is what to train with. The release's samples see what was packed before them in their row; a
row and a batch hold images of one grid (or samples of mixed grids); a text row joins a batch at random, and is thrown away
when every batch would be left without an image, so with one row a batch no text is ever learned.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextstep_jax.data.augment import draws
from nextstep_jax.data.packing import PackedBatch, assemble
from nextstep_jax.data.sequence import KIND_IDS, ImageTokens, Segment, TextIds, TokenizedSample, training_segment
from nextstep_jax.data.streams import PackingConfig, Stream, count_by_name
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.errors import InputError

MIXED = "0*0"  # the queue, and the bucket, of samples whose images differ in grid
_MOST_DISCARDED = 1000  # text rows thrown away in a row


@dataclasses.dataclass(frozen=True)
class _Item:
    """A segment; and where it comes from: parts [start, stop) of a sample, or None for a stretch of the text stream."""

    segment: Segment
    kind: str
    key: str
    origin: tuple[int, int, int] | None  # position in its stream, start, stop


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: items of one stream that fit into it."""

    stream: int
    grid: str | None  # None for text
    items: list[_Item]


def cut_images(parts: Sequence[TextIds | ImageTokens], limit: int, draw: random.Random) -> tuple[int, int]:
    """Where to cut so that at most `limit` images stay: (start, stop) in `parts`.

    Of more images, a run of `limit` is kept from one drawn at random on, each with the text before it; later text is lost.
    """
    images = [index for index, part in enumerate(parts) if isinstance(part, ImageTokens)]
    if len(images) <= limit:
        return 0, len(parts)
    first = draw.randint(0, len(images) - limit)
    return (images[first - 1] + 1 if first else 0), images[first + limit - 1] + 1


class ReleasePacking:
    """One queue for each source and grid, one bucket of rows for each grid."""

    def __init__(self, streams: list[Stream], special: SpecialIds, config: PackingConfig):
        self._streams, self._special, self._config = streams, special, config
        grids = config.grids or ()
        self._most_images = max(1, config.seq_len // (2 * max(h * w for h, w in grids)))
        self._draw = draws(config.seed, config.data_shard, 0)
        self._bucket_draw = draws("BatchBucket", config.seed, config.data_shard, 0)
        self._queues: list[dict[str, list[_Item]]] = [{} for _ in streams]
        self._text: list[tuple[list[int], list[float]]] = [([], []) for _ in streams]  # ids and weights of the text stream
        self._buckets: dict[str, list[Row]] = {name: [] for name in (*(f"{h}*{w}" for h, w in grids), MIXED)}
        self._discarded = 0

    def next_batch(self) -> PackedBatch:
        """The next batch. Its rows come from the sources in the order of the draws."""
        config, discarded_before = self._config, self._discarded
        while True:
            shares = [stream.weight for stream in self._streams]
            row = self.next_row(self._draw.choices(range(len(shares)), shares)[0])
            bucket = self._bucket_of(row)
            if bucket is None:
                self._discarded += 1
                self._streams[row.stream].counts.discarded += 1
                if self._discarded - discarded_before >= _MOST_DISCARDED:
                    raise InputError(f"{_MOST_DISCARDED} text rows one after another found no batch with images to join")
                continue
            self._buckets[bucket].append(row)
            if len(self._buckets[bucket]) == config.batch_size:
                break
        rows, self._buckets[bucket] = self._buckets[bucket], []
        contents = [[(item.segment, KIND_IDS[item.kind]) for item in row.items] for row in rows]
        keys = tuple(tuple(f"{self._streams[row.stream].name}:{item.key}" for item in row.items) for row in rows)
        batch, kinds = assemble(
            contents, config.batch_size, config.seq_len, config.channels, self._special.pad, separated=False
        )
        return PackedBatch(batch, kinds, keys, count_by_name(self._streams))

    def next_row(self, number: int) -> Row:
        """Read a stream until one of its queues, or its text, is long enough for a row."""
        while True:
            for grid, queue in self._queues[number].items():
                if sum(len(item.segment) for item in queue) >= self._config.seq_len:
                    return Row(number, grid, self._take(queue))
            ids, weights = self._text[number]
            if len(ids) >= self._config.seq_len:
                self._text[number] = ids[self._config.seq_len :], weights[self._config.seq_len :]
                return Row(number, None, [self._text_item(ids[: self._config.seq_len], weights[: self._config.seq_len])])
            self._read_one(number)

    def _take(self, queue: list[_Item]) -> list[_Item]:
        """The first items that fit into a row."""
        taken, used = [], 0
        while queue and used + len(queue[0].segment) <= self._config.seq_len:
            taken.append(queue.pop(0))
            used += len(taken[-1].segment)
        return taken

    def _read_one(self, number: int) -> None:
        stream = self._streams[number]
        position = stream.position
        tokenized = next(stream)
        if tokenized.kind == "text":
            segment = training_segment(tokenized.parts, self._special, self._config.channels)
            self._text[number][0].extend(segment.text_ids.tolist())
            self._text[number][1].extend(segment.text_weight.tolist())
            return
        start, stop = 0, len(tokenized.parts)
        if tokenized.kind == "interleaved":
            start, stop = cut_images(tokenized.parts, self._most_images, self._draw)
        item = self._item(tokenized, (position, start, stop))
        fits = len(item.segment) <= self._config.seq_len
        stream.count(tokenized, int(fits))
        if not fits:
            return
        grids = {f"{part.h}*{part.w}" for part in tokenized.parts[start:stop] if isinstance(part, ImageTokens)}
        grid = grids.pop() if len(grids) == 1 else MIXED
        if grid not in self._buckets:
            raise InputError(f"{stream.name}: sample {tokenized.key!r} has an image of {grid} tokens, not one of the config's")
        self._queues[number].setdefault(grid, []).append(item)

    def _bucket_of(self, row: Row) -> str | None:
        """The grid of the row's images; for text any bucket that it does not fill up without an image, or None."""
        if row.grid is not None:
            return row.grid
        last = self._config.batch_size - 1
        room = [g for g, rows in self._buckets.items() if len(rows) < last or any(other.grid is not None for other in rows)]
        return self._bucket_draw.choice(room) if room else None

    def _item(self, tokenized: TokenizedSample, origin: tuple[int, int, int]) -> _Item:
        segment = training_segment(tokenized.parts[origin[1] : origin[2]], self._special, self._config.channels)
        return _Item(segment, tokenized.kind, tokenized.key, origin)

    def _text_item(self, ids: list[int], weights: list[float]) -> _Item:
        count, none = len(ids), np.zeros((0, self._config.channels), np.float32)
        zeros = np.zeros(count, np.float32)
        segment = Segment(np.asarray(ids, np.int32), np.zeros(count, bool), none, np.asarray(weights, np.float32), zeros)
        return _Item(segment, "text", "text", None)

    def state(self) -> dict[str, Any]:
        """All that decides what comes next. Samples with images are named, text is stored."""
        return {
            "streams": [stream.state() for stream in self._streams],
            "draw": _random_state(self._draw),
            "bucket_draw": _random_state(self._bucket_draw),
            "queues": [{grid: [item.origin for item in queue] for grid, queue in queues.items()} for queues in self._queues],
            "text": [[list(ids), list(weights)] for ids, weights in self._text],
            "buckets": {grid: [_row_state(row) for row in rows] for grid, rows in self._buckets.items()},
            "discarded": self._discarded,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to a state: the streams seek, and waiting samples are read again."""
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.restore(saved)

        def item(number: int, origin) -> _Item:
            return self._item(self._streams[number][origin[0]], tuple(origin))

        def row(saved) -> Row:
            number, grid, content = saved
            items = [self._text_item(*content)] if grid is None else [item(number, origin) for origin in content]
            return Row(number, grid, items)

        for draw, saved in ((self._draw, state["draw"]), (self._bucket_draw, state["bucket_draw"])):
            draw.setstate((saved[0], tuple(saved[1]), saved[2]))
        self._queues = [
            {grid: [item(number, origin) for origin in origins] for grid, origins in queues.items()}
            for number, queues in enumerate(state["queues"])
        ]
        self._text = [(list(ids), list(weights)) for ids, weights in state["text"]]
        self._buckets = {grid: [row(saved) for saved in rows] for grid, rows in state["buckets"].items()}
        self._discarded = state["discarded"]


def _random_state(draw: random.Random) -> list:
    version, numbers, gauss = draw.getstate()
    return [version, list(numbers), gauss]


def _row_state(row: Row) -> list:
    if row.grid is not None:
        return [row.stream, row.grid, [item.origin for item in row.items]]
    segment = row.items[0].segment
    return [row.stream, None, [segment.text_ids.tolist(), segment.text_weight.tolist()]]
