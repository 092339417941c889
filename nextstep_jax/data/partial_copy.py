"""A local copy of a shard in a bucket that holds the records read so far.

The file is as long as the shard and sparse: the end of it, which says where the records are, is fetched when the copy is
opened, and each record when it is first read, in one ranged read. ArrayRecord reads what is there, with its checksums. A record
that is not there is zeros, where every chunk of the format begins with a hash.

The format's end, in blocks of 64 KiB that begin with a header of 24 bytes: a chunk with a small message for every chunk of
records (where it begins, its size, how many records), and in the last block a chunk with the place of that one. `data build`
writes one record a chunk, uncompressed.
"""

import itertools
import os
import pathlib
from collections.abc import Callable

import numpy as np

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40  # bytes
_ENTRY_BYTES = 20  # of an entry in the list of chunks, at most, for shards that are not enormous
_OFFSET, _SIZE, _RECORDS = 1 << 3, 2 << 3, 3 << 3  # the fields of an entry
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:64K"


class UnknownLayoutError(Exception):
    """The shard's end is not as `data build` writes it."""


class PartialCopy:
    """The copy of one shard. Shared by threads; two processes may hold copies in the same file.

    Args:
      file: where it is kept; one that is there from before is continued.
      size: of the shard in bytes.
      samples: its records.
      fetch: reads the shard's bytes from start up to stop.

    Raises:
      UnknownLayoutError: its records cannot be found one by one.
    """

    def __init__(self, file: pathlib.Path, size: int, samples: int, fetch: Callable[[int, int], bytes]):
        self._fetch, self._samples = fetch, samples
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 it lives as long as the copy
        os.ftruncate(descriptor, size)  # keeps what is there: another thread may be opening it, too
        os.utime(file)  # copies used least recently go first
        try:
            self._offsets = self._find_records(size, lambda start, stop: os.pread(descriptor, stop - start, start))
        except UnknownLayoutError:  # not there yet
            self._offsets = self._find_records(size, self._keep)

    def read(self, place: int) -> bytes:
        """Record `place`. RuntimeError, from ArrayRecord, for one that is damaged in the bucket."""
        start, stop = map(int, self._offsets[place : place + 2])
        if any(os.pread(self._file.fileno(), 8, start)):
            try:
                return self._decode(place)
            except RuntimeError:
                pass  # half written, when the machine went down
        self._keep(start, stop)
        return self._decode(place)

    def _decode(self, place: int) -> bytes:
        """The record as ArrayRecord reads it. Each time by a new reader: one that was opened before the record was fetched may
        have read zeros ahead.
        """
        from array_record.python import array_record_module

        name = f"/dev/fd/{self._file.fileno()}"  # the file may have lost its own name to make room
        return array_record_module.ArrayRecordReader(name, _READ_OPTIONS, file_reader_buffer_size=_BLOCK).read([place])[0]

    def _keep(self, start: int, stop: int) -> bytes:
        """Fetch bytes and write them, but for the zeros at their end."""
        data = self._fetch(start, stop)
        os.pwrite(self._file.fileno(), data.rstrip(b"\0"), start)
        return data

    def _find_records(self, size: int, read: Callable[[int, int], bytes]) -> np.ndarray:
        """[samples + 1] offsets. One read where the list of chunks is about as long as expected, else two."""
        if size % _BLOCK or size < 2 * _BLOCK:
            raise UnknownLayoutError
        begin = max(0, size - 2 * _BLOCK - (_ENTRY_BYTES * self._samples // _BLOCK + 1) * _BLOCK)
        data = read(begin, size)
        values, copies = _numbers(data[-_BLOCK:], size - _BLOCK)
        # The message's length and the lengths of its equal copies; then the first field of the first copy.
        if len(values) < copies + 3 or values[copies + 1] != _OFFSET:
            raise UnknownLayoutError
        at = int(values[copies + 2])
        if not 0 <= at <= size - _BLOCK:
            raise UnknownLayoutError
        values, messages = _numbers(data[at - begin :] if at >= begin else read(at, size - _BLOCK), at)
        # After the lengths and a message about the whole, three fields for each chunk of records.
        if messages - 1 != self._samples or len(values) < 6 * self._samples:
            raise UnknownLayoutError
        table = values[len(values) - 6 * self._samples :].reshape(-1, 6)
        offsets = np.append(table[:, 1], at)
        if (table[:, ::2] != (_OFFSET, _SIZE, _RECORDS)).any() or (table[:, 5] != 1).any() or (np.diff(offsets) <= 0).any():
            raise UnknownLayoutError
        return offsets


def _numbers(data: bytes, at: int) -> tuple[np.ndarray, int]:
    """What an uncompressed chunk that begins at byte `at` of its file holds, as numbers, and how many messages that is."""
    cuts = [0, *range(_BLOCK - at % _BLOCK, len(data), _BLOCK), len(data)]
    parts = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
    content = b"".join(part if i == 0 and at % _BLOCK else part[_BLOCK_HEADER:] for i, part in enumerate(parts))
    size, kind, messages = (int.from_bytes(content[i:j], "little") for i, j in ((8, 16), (24, 25), (25, 32)))
    body = content[_CHUNK_HEADER : _CHUNK_HEADER + size]
    if kind != ord("r") or len(body) != size or size < 2 or body[0]:  # 0: not compressed
        raise UnknownLayoutError
    return _varints(body[1:]), messages


def _varints(data: bytes) -> np.ndarray:
    """The variable-length numbers that bytes are, seven bits a byte, the lowest first; an unfinished last one is left out."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array < 128)
    if not len(ends):
        return np.zeros(0, np.int64)
    array = array[: ends[-1] + 1]
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(array)) - np.repeat(starts, ends - starts + 1)
    bits = (array & 127).astype(np.uint64) << (7 * np.minimum(place, 9)).astype(np.uint64)
    return np.add.reduceat(bits, starts).astype(np.int64)
