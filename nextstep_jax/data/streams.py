"""Reading one source: shuffled, repeated, divided over data shards, tokenized ahead by Grain in threads or processes.

Data shard n of N (see `data_shards.py`) reads the samples n, n + N, n + 2N, ... of an order that is new in every epoch, so that
every sample comes once an epoch whatever N is. Any position of that order can be read again at any time, which is what keeps a
saved position small.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax.data.augment import Augmentation, draws
from nextstep_jax.data.packing import SampleCounts
from nextstep_jax.data.prefetch import prefetch
from nextstep_jax.data.sequence import ReadSample, Sizes, Tokenize, TokenizedSample, Unusable
from nextstep_jax.data.source import Source
from nextstep_jax.data.vocabulary import OPTIONAL, Vocabulary
from nextstep_jax.errors import InputError

logger = logging.getLogger(__name__)

_BUFFER = 32  # samples of a source that are ready beforehand
_JUDGED_AFTER = 100  # samples: of fewer, as many may be left out as of so many
_HOPELESS_AFTER = 1000  # samples read, or the source's length, without one that is of use
_NAMED = 10  # samples left out of a source that the log names


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """A source and its part in the mixture.

    Attributes:
      weight: of the mixture's tokens, relative to the other components'.
      name: what metrics and errors call it; "": the source's name.
      thinking: the texts may spell the thinking and prompt-refinement tokens (chain-of-thought data).
    """

    source: Source
    weight: float = 1.0
    augmentation: Augmentation = Augmentation()
    thinking: bool = False
    name: str = ""

    def __post_init__(self):
        if not self.weight > 0:
            raise InputError(f"the weight of {self.source.name} must be more than 0, found {self.weight}")
        if not len(self.source):
            raise InputError(f"{self.source.name} has no samples")

    @property
    def label(self) -> str:
        """`name`, or the source's."""
        return self.name or self.source.name

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What a saved position remembers of it, as JSON values."""
        identity = hashlib.sha256(self.source.identity().encode("utf-8", "backslashreplace")).hexdigest()
        return {"name": self.label, "samples": len(self.source), "weight": self.weight, "identity": identity}


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """The shape of batches and the order of samples.

    Attributes:
      batch_size: rows of this data shard.
      seq_len: positions of a row.
      max_text_targets, max_image_targets: how many text and image targets a row has room for; None: as many as positions.
      channels, patch: of an image token: C, and its side in latent pixels.
      pairs: the samples are preferences; batches are PairedBatches.
      epochs: None repeats for ever. A finite pass ends with rows, and a batch, that are partly padding.
      data_shard, data_shards: this is data shard n of N. A finite pass may end sooner in one data shard than in another.
      grids: None packs samples as segments that do not see each other. With the (h, w) of all images that can occur, rows are
        packed and batched as the February 2026 release does it (see `release_packing.py`), and `epochs` must be None.
      packing_buffer: rows held open while packing segments.
      max_skipped: the largest fraction of a source's samples that may be unusable (damaged, without a caption, ...).
      max_oversized: the largest fraction that may fit into no row.
      workers: reader processes of this data shard, for all its sources together; a source without one is read in threads.
      threads: reader threads of a source.
    """

    batch_size: int
    seq_len: int
    channels: int = 64
    patch: int = 2
    pairs: bool = False
    seed: int = 42
    shuffle: bool = True
    epochs: int | None = None
    data_shard: int = 0
    data_shards: int = 1
    max_text_targets: int | None = None
    max_image_targets: int | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    packing_buffer: int = 16
    max_skipped: float = 0.01
    max_oversized: float = 0.01
    workers: int = 0
    threads: int = 4

    def __post_init__(self):
        for name in ("batch_size", "seq_len", "channels", "patch", "data_shards", "packing_buffer"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, found {getattr(self, name)}")
        for name in ("max_text_targets", "max_image_targets"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= self.seq_len:
                raise InputError(f"{name} must be in [1, {self.seq_len}], found {getattr(self, name)}")
        for name in ("max_skipped", "max_oversized"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be in [0, 1], found {getattr(self, name)}")
        if not 0 <= self.data_shard < self.data_shards:
            raise InputError(f"data_shard must be in [0, {self.data_shards}), found {self.data_shard}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs must be 1 or more, found {self.epochs}")
        if self.grids is not None and (not self.grids or self.epochs is not None):
            raise InputError("grids must name at least one (h, w), and epochs must then be None")
        if self.grids is not None and self.pairs:
            raise InputError("the release's packing (grids) knows no preferences")

    @property
    def limits(self) -> Sizes:
        """`Segment.sizes` of a full row."""
        return self.seq_len, self.max_text_targets or self.seq_len, self.max_image_targets or self.seq_len


class Stream:
    """The samples of one component in its data shard's order.

    Attributes:
      position: how many have been read.
      counts: what became of them.
    """

    def __init__(
        self, component: MixtureComponent, vocabulary: Vocabulary, config: PackingConfig, number: int, workers: int = 0
    ):
        import grain

        if component.thinking and (missing := vocabulary.missing(OPTIONAL)):
            raise InputError(
                f"{component.label}: thinking is on, but {vocabulary.source} has no {', '.join(missing)}: texts would spell "
                "them in letters"
            )
        self.name, self.weight = component.label, component.weight
        self.position = 0
        self.counts = SampleCounts()
        self._config, self._workers = config, workers
        self._length = len(component.source)
        name, augmentation = component.source.name, component.augmentation
        tokenize = Tokenize(
            name,
            vocabulary,
            augmentation,
            config.seed,
            config.patch,
            config.channels,
            thinking=component.thinking,
            pairs=config.pairs,
        )
        # Indices reach `tokenize` as epoch * length + index in the source, which is how its draws differ from epoch to epoch.
        samples = grain.MapDataset.range(self._length).map_with_index(ReadSample(component.source, tokenize))
        if config.shuffle:
            samples = samples.shuffle(seed=draws("shuffle", config.seed, number).getrandbits(32))
        self._samples = samples.repeat(config.epochs)[config.data_shard :: config.data_shards]
        self._reader: Any = None

    def __getitem__(self, position: int) -> TokenizedSample:
        """A sample of the order, read on the spot. InputError if it cannot be used."""
        sample = self._samples[position]
        if isinstance(sample, Unusable):
            raise InputError(sample.reason)
        return sample

    def __next__(self) -> TokenizedSample:
        """The next sample that can be used; InputError when too many cannot."""
        while True:
            if self._reader is None:
                rest = self._samples[self.position :]
                self._reader = prefetch(rest, self._workers, self._config.threads, _BUFFER)
            sample = next(self._reader)
            self.position += 1
            self.counts.read += 1
            if not isinstance(sample, Unusable):
                return sample
            self.counts.skipped += 1
            self._require_few(self.counts.skipped, "skipped", "cannot be used", sample.reason)

    def count(self, sample: TokenizedSample, pieces: int) -> None:
        """Note in how many pieces a sample is trained on. InputError when too many fit into no row."""
        self.counts.cut += pieces > 1
        if not pieces:
            self.counts.oversized += 1
            seq_len, text, image = self._config.limits
            room = f"a row of {seq_len} positions with {text} text and {image} image targets"
            self._require_few(self.counts.oversized, "oversized", f"do not fit into {room}", f"sample {sample.key!r}")

    def _require_few(self, count: int, what: str, problem: str, latest: str) -> None:
        most, read = getattr(self._config, f"max_{what}"), self.counts.read
        if count <= _NAMED:
            logger.warning("%s: left out, because it %s: %s", self.name, problem.replace("do not", "does not"), latest)
        none_left = self.counts.skipped + self.counts.oversized == read >= min(self._length, _HOPELESS_AFTER)
        if none_left or count > most * max(read, _JUDGED_AFTER):
            raise InputError(
                f"{self.name}: {count} of the {read} samples read {problem}, at most {most:.2%} may be left out "
                f"(config.data.max_{what}); the latest: {latest}"
            )

    def state(self) -> dict[str, Any]:
        """The position and the counts, as JSON values."""
        return {"position": self.position, "counts": dataclasses.asdict(self.counts)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`'s result."""
        self.close()
        self.position, self.counts = state["position"], SampleCounts(**state["counts"])

    def close(self) -> None:
        """End the readers; the next sample starts them again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def count_by_name(streams: Sequence[Stream]) -> dict[str, SampleCounts]:
    """The streams' counts as they are now, by source."""
    found: dict[str, SampleCounts] = {}
    for stream in streams:
        found[stream.name] = found.get(stream.name, SampleCounts()) + stream.counts
    return found


def require_same_sources(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> None:
    """InputError naming the first difference between the sources of a saved position (`MixtureComponent.fingerprint`) and
    today's.
    """
    names = [[source["name"] for source in sources] for sources in (then, now)]
    if names[0] != names[1]:
        raise InputError(
            f"the position in the data was saved with the sources {', '.join(names[0])}, now: {', '.join(names[1])}"
        )
    for before, after in zip(then, now, strict=True):
        for what in ("samples", "weight"):
            if before[what] != after[what]:
                raise InputError(
                    f"the position in the data was saved when the source {after['name']} had {what} {before[what]}, now it has "
                    f"{after[what]}"
                )
        if before["identity"] != after["identity"]:
            raise InputError(
                f"the source {after['name']} holds other samples than when the position in the data was saved; restore them, "
                "or start a new run from the trained parameters (config.init.checkpoint)"
            )
