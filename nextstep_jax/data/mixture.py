"""From sources to batches: weighted mixing, packing, and a position that can be saved.

A weight is a source's part of the *tokens*: the source furthest behind its weight is read next. (The February 2026 release
draws a source for each packed row, which comes to the same; weighting samples would let long documents crowd out images.)

Reading and tokenizing happen in parallel (`streams.py`), mixing and packing in one place, so batches do not depend on how many
readers there are. Their order is a function of the seed and of a few positions, which are the saved state.
"""

import concurrent.futures
import dataclasses
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int8

from nextstep_jax.batch import Batch, PairedBatch
from nextstep_jax.data.packing import BestFit, PackedBatch, assemble
from nextstep_jax.data.prefetch import split_evenly
from nextstep_jax.data.release_packing import ReleasePacking
from nextstep_jax.data.sequence import KIND_IDS, Segment, SegmentPair, TokenizedSample, added, segments
from nextstep_jax.data.streams import MixtureComponent, PackingConfig, Stream, count_by_name, require_same_sources
from nextstep_jax.data.vocabulary import SpecialIds, Vocabulary
from nextstep_jax.errors import InputError

_RESTORE_THREADS = 16  # that read the samples of open rows again


class BatchIterator:
    """Iterator of `PackedBatch`, made in a thread up to `ahead` batches before they are asked for.

    `get_state` is a JSON-like dict; `set_state`, on an iterator made with the same arguments, continues with the very next
    batch. Only `ahead` and the config's `workers`, `threads`, `max_skipped` and `max_oversized` may differ. Close it, or use it
    as a context manager, to end its readers. It makes the rows of one data shard; `data_shards.py` joins them.
    """

    def __init__(self, components: Sequence[MixtureComponent], vocabulary: Vocabulary, config: PackingConfig, ahead: int = 2):
        if not components:
            raise InputError("a mixture needs at least one source")
        self._config, self._pad = config, vocabulary.special.pad
        workers = split_evenly(config.workers, len(components))
        self._streams = [
            Stream(component, vocabulary, config, number, workers[number]) for number, component in enumerate(components)
        ]
        packing = SegmentPacking if config.grids is None else ReleasePacking
        self._packing = packing(self._streams, vocabulary.special, config)
        grids = None if config.grids is None else [list(grid) for grid in config.grids]
        self._fingerprint = dataclasses.asdict(config) | {"grids": grids}
        for name in ("workers", "threads", "max_skipped", "max_oversized"):  # no part of what comes out
            self._fingerprint.pop(name)
        self._sources = [component.fingerprint for component in components]
        self._position = self._packing.state()
        self._ahead = ahead
        self._results: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        if self._thread is None:
            self._packing.restore(self._position)
            self._results, self._stop = queue.Queue(max(1, self._ahead)), threading.Event()
            self._thread = threading.Thread(target=_work, args=(self._packing, self._results, self._stop), daemon=True)
            self._thread.start()
            weakref.finalize(self, self._stop.set)
        result, position = self._results.get()
        if position is None:
            self.close()  # the thread has ended; asked again, it starts where this batch should have been
            raise result
        self._position = position
        return result

    def padding(self) -> PackedBatch:
        """A batch of padding only, for a finite pass that is over."""
        return PackedBatch(*_assemble([], self._config, self._pad), (), count_by_name(self._streams))

    def get_state(self) -> dict[str, Any]:
        """Where the next batch starts: numbers, strings, lists and dicts."""
        return {"version": 2, "fingerprint": self._fingerprint, "sources": self._sources, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `get_state`'s result. InputError if the sources or the packing differ from those it was saved with."""
        if (
            not isinstance(state, dict)
            or state.get("version") != 2
            or not {"fingerprint", "sources", "position"} <= state.keys()
        ):
            found = f"version {state['version']}" if isinstance(state, dict) and "version" in state else "no version"
            raise InputError(f"the saved position in the data has {found}, this library reads version 2")
        for name, now in self._fingerprint.items():
            if (then := state["fingerprint"].get(name)) != now:
                raise InputError(f"the saved position in the data was made with {name} {then}, now it is {now}")
        require_same_sources(state["sources"], self._sources)
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """End the readers. Asked for another batch, the iterator starts them again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _work(packing: "SegmentPacking | ReleasePacking", results: queue.Queue, stop: threading.Event) -> None:
    """Put (batch, position after it) into the queue until told to stop; an error, or the end, as (error, None)."""
    position: Any = True
    while position is not None and not stop.is_set():
        result: Any
        try:
            result, position = packing.next_batch(), packing.state()
        except BaseException as error:  # StopIteration too
            result, position = error, None
        while not stop.is_set():
            try:
                results.put((result, position), timeout=0.1)
                break
            except queue.Full:
                continue


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A segment in a row, and where to find it again: piece `piece` of the sample at `position` of stream `stream`."""

    stream: int
    position: int
    piece: int
    segment: Segment | SegmentPair
    kind: str
    key: str


def _assemble(
    rows: list[list[_Placed]], config: PackingConfig, pad_id: int
) -> tuple[Batch | PairedBatch, Int8[np.ndarray, "B S"]]:
    """The rows as a batch, of pairs as one of winners and one of losers, and the kind of data at each position (of winners).
    Missing rows are padding.
    """

    def segment(item: _Placed, side: int) -> Segment:
        return item.segment[side] if isinstance(item.segment, SegmentPair) else item.segment

    def assembled(side: int) -> tuple[Batch, np.ndarray]:
        contents = [[(segment(item, side), KIND_IDS[item.kind]) for item in row] for row in rows]
        return assemble(contents, config.batch_size, config.seq_len, config.channels, pad_id, separated=True)

    batch, kinds = assembled(0)
    return (PairedBatch(batch, assembled(1)[0]) if config.pairs else batch), kinds


class SegmentPacking:
    """Samples of all streams, best-fit packed as segments that do not see each other."""

    def __init__(self, streams: list[Stream], special: SpecialIds, config: PackingConfig):
        self._streams, self._special, self._config = streams, special, config
        self._tokens = [0] * len(streams)
        self._ended: set[int] = set()
        self._open: BestFit[_Placed] = BestFit(config.limits, config.packing_buffer)
        self._closed: list[list[_Placed]] = []

    def next_batch(self) -> PackedBatch:
        """The next batch; StopIteration after the last."""
        while len(self._closed) < self._config.batch_size and len(self._ended) < len(self._streams):
            self._read_one()
        if len(self._ended) == len(self._streams):
            self._closed += self._open.flush()
        rows, self._closed = self._closed[: self._config.batch_size], self._closed[self._config.batch_size :]
        if not rows:
            raise StopIteration
        keys = tuple(tuple(f"{self._streams[item.stream].name}:{item.key}" for item in row) for row in rows)
        return PackedBatch(*_assemble(rows, self._config, self._special.pad), keys, count_by_name(self._streams))

    def _read_one(self) -> None:
        """Read and place a sample of the stream that is furthest behind its weight."""
        going = [number for number in range(len(self._streams)) if number not in self._ended]
        number = min(going, key=lambda number: self._tokens[number] / self._streams[number].weight)
        position = self._streams[number].position
        try:
            tokenized = next(self._streams[number])
        except StopIteration:
            self._ended.add(number)
            return
        pieces = self._segments(tokenized)
        self._streams[number].count(tokenized, len(pieces))
        for piece, segment in enumerate(pieces):
            self._tokens[number] += segment.sizes[0]
            item = _Placed(number, position, piece, segment, tokenized.kind, tokenized.key)
            closed = self._open.add(item, segment.sizes)
            if closed is not None:
                self._closed.append(closed)

    def _segments(self, tokenized: TokenizedSample) -> Sequence[Segment | SegmentPair]:
        return segments(tokenized, self._special, self._config.channels, self._config.limits)

    def state(self) -> dict[str, Any]:
        """All that decides what comes next. Samples in open rows are named, not stored."""

        def names(rows):
            return [[[item.stream, item.position, item.piece] for item in row] for row in rows]

        return {
            "streams": [stream.state() for stream in self._streams],
            "tokens": list(self._tokens),
            "ended": sorted(self._ended),
            "open": names(self._open.rows),
            "closed": names(self._closed),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to a state: the streams seek, and the samples of open rows are read again."""
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.restore(saved)
        self._tokens = list(state["tokens"])
        self._ended = set(state["ended"])
        names = sorted({(stream, position) for row in state["open"] + state["closed"] for stream, position, _ in row})
        # Some hundreds of samples, each of which may have a bucket to wait for.
        with concurrent.futures.ThreadPoolExecutor(_RESTORE_THREADS, "restore") as pool:
            samples = list(pool.map(lambda name: self._streams[name[0]][name[1]], names))
        read = {name: (sample, self._segments(sample)) for name, sample in zip(names, samples, strict=True)}

        def item(stream, position, piece):
            tokenized, pieces = read[stream, position]
            if piece >= len(pieces):
                raise InputError(
                    f"{self._streams[stream].name}: sample {tokenized.key!r} is not what it was when this was saved"
                )
            return _Placed(stream, position, piece, pieces[piece], tokenized.kind, tokenized.key)

        self._open = BestFit(self._config.limits, self._config.packing_buffer)
        self._open.rows = [[item(*name) for name in row] for row in state["open"]]
        self._open.used = [added(*(placed.segment.sizes for placed in row)) for row in self._open.rows]
        self._closed = [[item(*name) for name in row] for row in state["closed"]]
