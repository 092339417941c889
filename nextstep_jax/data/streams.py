"""Reading one source: shuffled, repeated, divided over lanes, prepared ahead by Grain in threads or processes.

Lane n of N (see `lanes.py`) reads the samples n, n + N, n + 2N, ... of an order that is new in every epoch, so that every
sample comes once an epoch whatever N is. Any place of that order can be read again at any time, which is what makes a saved
position small.
"""

import dataclasses
from typing import Protocol

from nextstep_jax.data.augment import Augmentation, draws
from nextstep_jax.data.records import Sample
from nextstep_jax.data.sequence import Preparation, Prepared, Sizes
from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import InputError

_MOST_MISFITS = 1000  # samples in a row that do not fit before a source is called unusable
_THREADS, _BUFFER = 4, 32  # readers within the process, samples ready beforehand


class Source(Protocol):
    """What the readers in `sources.py` share."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """A source and its part in the mixture.

    Attributes:
      share: of the mixture's tokens, relative to the other ingredients'.
      thinking: the texts may spell the thinking and prompt-refinement tokens (chain-of-thought data).
    """

    source: Source
    share: float = 1.0
    augmentation: Augmentation = Augmentation()
    thinking: bool = False

    def __post_init__(self):
        if not self.share > 0:
            raise InputError(f"the share of {self.source.name} must be more than 0, found {self.share}")
        if not len(self.source):
            raise InputError(f"{self.source.name} has no samples")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of batches and the order of samples.

    Attributes:
      batch_size: rows of this lane.
      length: positions of a row.
      text_places, image_places: how many text and image targets a row has room for; None: as many as positions.
      channels, patch: of an image token: C, and its side in latent pixels.
      epochs: None repeats for ever. A finite pass ends with rows, and a batch, that are partly padding.
      lane, lanes: which of the lanes this is. A finite pass may end sooner in one lane than in another.
      grids: None packs samples as segments that do not see each other. With the (h, w) of all images that can occur, rows are
        packed and batched as the February 2026 release does it (see `release_packing.py`), and `epochs` must be None.
      open_rows: rows held open while packing segments.
      workers: reader processes for each source; 0 reads in threads.
    """

    batch_size: int
    length: int
    channels: int = 64
    patch: int = 2
    seed: int = 42
    shuffle: bool = True
    epochs: int | None = None
    lane: int = 0
    lanes: int = 1
    text_places: int | None = None
    image_places: int | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    open_rows: int = 16
    workers: int = 0

    def __post_init__(self):
        for name in ("batch_size", "length", "channels", "patch", "lanes", "open_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, found {getattr(self, name)}")
        for name in ("text_places", "image_places"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= self.length:
                raise InputError(f"{name} must be in [1, {self.length}], found {getattr(self, name)}")
        if not 0 <= self.lane < self.lanes:
            raise InputError(f"lane must be in [0, {self.lanes}), found {self.lane}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs must be 1 or more, found {self.epochs}")
        if self.grids is not None and (not self.grids or self.epochs is not None):
            raise InputError("grids must name at least one (h, w), and epochs must then be None")

    @property
    def limits(self) -> Sizes:
        """`Segment.sizes` of a full row."""
        return self.length, self.text_places or self.length, self.image_places or self.length


class Stream:
    """The samples of one ingredient in its lane's order.

    Attributes:
      position: how many have been read.
      misfits: how many of them did not fit into a row.
    """

    def __init__(self, ingredient: Ingredient, vocabulary: Vocabulary, layout: Layout, number: int):
        import grain

        self.name = ingredient.source.name
        self.share = ingredient.share
        self.position = 0
        self.misfits = 0
        self._misfits_in_a_row = 0
        self._most_misfits = min(len(ingredient.source), _MOST_MISFITS)
        self._limits = layout.limits
        self._workers = layout.workers
        prepare = Preparation(
            self.name, vocabulary, ingredient.augmentation, layout.seed, layout.patch, layout.channels, ingredient.thinking
        )
        # Indices reach `prepare` as epoch * length + place, which is how its draws differ from epoch to epoch.
        samples = grain.MapDataset.source(ingredient.source).map_with_index(prepare)
        if layout.shuffle:
            samples = samples.shuffle(seed=draws("shuffle", layout.seed, number).getrandbits(32))
        self._samples = samples.repeat(layout.epochs)[layout.lane :: layout.lanes]
        self._reader = None

    def __getitem__(self, position: int) -> Prepared:
        """Any sample of the order, read on the spot."""
        return self._samples[position]

    def __next__(self) -> Prepared:
        if self._reader is None:
            self._reader = self._read_ahead()
        prepared = next(self._reader)
        self.position += 1
        return prepared

    def count_fit(self, fits: bool) -> None:
        """Keep count of misfits. InputError once there is nothing else to be seen."""
        self.misfits += not fits
        self._misfits_in_a_row = 0 if fits else self._misfits_in_a_row + 1
        if self._misfits_in_a_row >= self._most_misfits:
            length, text, image = self._limits
            raise InputError(
                f"{self.name}: none of the last {self._misfits_in_a_row} samples fits into a row of {length} positions with "
                f"places for {text} text and {image} image targets"
            )

    def seek(self, position: int, misfits: int) -> None:
        """Continue at a position."""
        self.close()
        self.position, self.misfits, self._misfits_in_a_row = position, misfits, 0

    def close(self) -> None:
        """End the readers; the next sample starts them again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read_ahead(self):
        import grain

        # Every reader takes each n-th sample and none is left out before this point, so the order is that of one reader.
        rest = self._samples[self.position :]
        if not self._workers:
            return iter(rest.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFER)))
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's processes read absl flags, which a program without absl.app never parses
            flags.FLAGS.mark_as_parsed()
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        processes = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_BUFFER // self._workers + 1)
        return iter(rest.to_iter_dataset(reading).mp_prefetch(processes))
