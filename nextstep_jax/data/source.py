"""What every reader of samples offers, and the account of what lies in a source and no sample uses.

A new kind of source is a class with the members of `Source` and a line in `sources.open_source`.
"""

import collections
from collections.abc import Mapping
from typing import Any, Protocol

from nextstep_jax.data.records import Sample

# Extensions of files that are taken for images; whether they are is for their bytes to say.
IMAGE_EXTENSIONS = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "png", "apng", "webp", "gif", "bmp", "dib"),
        *("avif", "avifs", "heic", "heif", "hif", "tif", "tiff"),
    )
)
# Archives and tables that are not read, so that samples may be inside.
ARCHIVE_EXTENSIONS = frozenset(
    (
        *("tar", "tgz", "gz", "bz2", "tbz2", "xz", "txz", "zst", "zip", "7z", "rar"),
        *("parquet", "arrow", "lmdb", "mdb", "tfrecord", "array_record", "h5"),
    )
)

_NAMES_KEPT = 1000  # names of one reason that are remembered


class Source(Protocol):
    """Samples that can be read at random. Shared by threads, and sent to other processes.

    Attributes:
      name: for reports.
      unused: what lies in the source and belongs to no sample, as far as opening it shows (see also `Sample.unused`).
    """

    name: str
    unused: "Unused"

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Sample 0 <= index < len.

        Raises:
          InputError: the sample cannot be used; an `images.ImageError` (damaged image), `images.SizeError` or
            `records.CaptionError` where that is why.
        """

    def fingerprint(self, start: int, stop: int) -> str:
        """A text that changes when the files behind the samples start..stop-1 do, found without reading them."""

    def identity(self) -> str:
        """A text that changes when the samples do, as far as their number, names and sizes tell; a copy elsewhere has the
        same.
        """


class Unused:
    """What is in a source and in no sample: names by reason, such as "hidden" or "caption without an image"."""

    def __init__(self):
        self._counts: collections.Counter[str] = collections.Counter()
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Note one thing."""
        self._counts[reason] += 1
        names = self._names.setdefault(reason, [])
        if len(names) < _NAMES_KEPT:
            names.append(name)

    def update(self, other: "Unused") -> None:
        """Note what another account holds."""
        for reason, count in other._counts.items():
            names = self._names.setdefault(reason, [])
            names += other._names[reason][: _NAMES_KEPT - len(names)]
            self._counts[reason] += count

    @property
    def counts(self) -> Mapping[str, int]:
        """How many things, by reason."""
        return dict(sorted(self._counts.items()))

    def to_json(self) -> dict[str, Any]:
        """{reason: {"count": int, "names": the first of them}}."""
        return {reason: {"count": count, "names": self._names[reason]} for reason, count in self.counts.items()}
