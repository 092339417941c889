"""Reading one source: shuffled, repeated, divided over data shards, tokenized ahead by Grain in threads or processes.

Data shard n of N (see `data_shards.py`) reads the samples n, n + N, n + 2N, ... of an order that is new in every epoch, so that
every sample comes once an epoch whatever N is. Any place of that order can be read again at any time, which is what keeps a
saved position small.
"""

import dataclasses

from nextstep_jax.data.augment import Augmentation, draws
from nextstep_jax.data.sequence import Sizes, Tokenize, TokenizedSample
from nextstep_jax.data.source import Source
from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import InputError

_MOST_OVERSIZED = 1000  # samples in a row that do not fit before a source is called unusable
_THREADS, _BUFFER = 4, 32  # readers within the process, samples ready beforehand


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """A source and its part in the mixture.

    Attributes:
      weight: of the mixture's tokens, relative to the other components'.
      thinking: the texts may spell the thinking and prompt-refinement tokens (chain-of-thought data).
    """

    source: Source
    weight: float = 1.0
    augmentation: Augmentation = Augmentation()
    thinking: bool = False

    def __post_init__(self):
        if not self.weight > 0:
            raise InputError(f"the weight of {self.source.name} must be more than 0, found {self.weight}")
        if not len(self.source):
            raise InputError(f"{self.source.name} has no samples")


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """The shape of batches and the order of samples.

    Attributes:
      batch_size: rows of this data shard.
      seq_len: positions of a row.
      max_text_targets, max_image_targets: how many text and image targets a row has room for; None: as many as positions.
      channels, patch: of an image token: C, and its side in latent pixels.
      epochs: None repeats for ever. A finite pass ends with rows, and a batch, that are partly padding.
      data_shard, data_shards: this is data shard n of N. A finite pass may end sooner in one data shard than in another.
      grids: None packs samples as segments that do not see each other. With the (h, w) of all images that can occur, rows are
        packed and batched as the February 2026 release does it (see `release_packing.py`), and `epochs` must be None.
      packing_buffer: rows held open while packing segments.
      workers: reader processes for each source; 0 reads in threads.
    """

    batch_size: int
    seq_len: int
    channels: int = 64
    patch: int = 2
    seed: int = 42
    shuffle: bool = True
    epochs: int | None = None
    data_shard: int = 0
    data_shards: int = 1
    max_text_targets: int | None = None
    max_image_targets: int | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    packing_buffer: int = 16
    workers: int = 0

    def __post_init__(self):
        for name in ("batch_size", "seq_len", "channels", "patch", "data_shards", "packing_buffer"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, found {getattr(self, name)}")
        for name in ("max_text_targets", "max_image_targets"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= self.seq_len:
                raise InputError(f"{name} must be in [1, {self.seq_len}], found {getattr(self, name)}")
        if not 0 <= self.data_shard < self.data_shards:
            raise InputError(f"data_shard must be in [0, {self.data_shards}), found {self.data_shard}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs must be 1 or more, found {self.epochs}")
        if self.grids is not None and (not self.grids or self.epochs is not None):
            raise InputError("grids must name at least one (h, w), and epochs must then be None")

    @property
    def limits(self) -> Sizes:
        """`Segment.sizes` of a full row."""
        return self.seq_len, self.max_text_targets or self.seq_len, self.max_image_targets or self.seq_len


class Stream:
    """The samples of one component in its data shard's order.

    Attributes:
      position: how many have been read.
      oversized: how many of them did not fit into a row.
    """

    def __init__(self, component: MixtureComponent, vocabulary: Vocabulary, config: PackingConfig, number: int):
        import grain

        self.name = component.source.name
        self.weight = component.weight
        self.position = 0
        self.oversized = 0
        self._oversized_in_a_row = 0
        self._most_oversized = min(len(component.source), _MOST_OVERSIZED)
        self._limits = config.limits
        self._workers = config.workers
        tokenize = Tokenize(
            self.name, vocabulary, component.augmentation, config.seed, config.patch, config.channels, component.thinking
        )
        # Indices reach `tokenize` as epoch * length + place, which is how its draws differ from epoch to epoch.
        samples = grain.MapDataset.source(component.source).map_with_index(tokenize)
        if config.shuffle:
            samples = samples.shuffle(seed=draws("shuffle", config.seed, number).getrandbits(32))
        self._samples = samples.repeat(config.epochs)[config.data_shard :: config.data_shards]
        self._reader = None

    def __getitem__(self, position: int) -> TokenizedSample:
        """Any sample of the order, read on the spot."""
        return self._samples[position]

    def __next__(self) -> TokenizedSample:
        if self._reader is None:
            self._reader = self._read_ahead()
        tokenized = next(self._reader)
        self.position += 1
        return tokenized

    def count_fit(self, fits: bool) -> None:
        """Keep count of oversized. InputError once there is nothing else to be seen."""
        self.oversized += not fits
        self._oversized_in_a_row = 0 if fits else self._oversized_in_a_row + 1
        if self._oversized_in_a_row >= self._most_oversized:
            seq_len, text, image = self._limits
            raise InputError(
                f"{self.name}: none of the last {self._oversized_in_a_row} samples fits into a row of {seq_len} positions with "
                f"places for {text} text and {image} image targets"
            )

    def seek(self, position: int, oversized: int) -> None:
        """Continue at a position."""
        self.close()
        self.position, self.oversized, self._oversized_in_a_row = position, oversized, 0

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
