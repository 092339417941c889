"""Settings of what a run reads: mixtures of packed sequences, prompts, images."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from nextstep_jax.data.augment import Augmentation
from nextstep_jax.errors import InputError
from nextstep_jax.schema import NonNegative, Positive, at_least
from nextstep_jax.seeds import MAX_SEED

Seed = Annotated[int, lambda value: "" if 0 <= value <= MAX_SEED else "in [0, 2**63)"]
Fraction = Annotated[float, lambda value: "" if 0 < value <= 1 else "in (0, 1]"]
Share = Annotated[float, lambda value: "" if 0 <= value <= 1 else "in [0, 1]"]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture.

    Attributes:
      path: what data/sources.py can open, images as latents; relative to `data.root`.
      weight: of the mixture's tokens, relative to the other sources'; 0 leaves the source out.
      kind: what WebDataset samples with several images are.
      thinking: texts may spell the thinking and prompt-refinement tokens.
    """

    path: str = ""
    weight: Annotated[float, at_least(0)] = 1.0
    kind: Literal["", "edit", "interleaved"] = ""
    thinking: bool = False
    augmentation: Augmentation = Augmentation()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What every kind of training data has.

    Attributes:
      batch_size: rows (or images) of a step, over all hosts.
      data_shards: parts in which a batch is read (data/data_shards.py): a run keeps their number, and can run on as many
        hosts as divide it.
      workers: reader processes of a host, shared out over its data shards and their sources; what gets none, and everything
        for 0, is read in threads.
      max_skipped: the largest fraction of a source's samples that may be left out because they cannot be used (damaged, without
        a caption, ...); the metrics say how many are.
    """

    batch_size: Positive = 8
    data_shards: Positive = 1
    workers: NonNegative = 0
    max_skipped: Share = 0.01

    def __post_init__(self) -> None:
        if self.batch_size % self.data_shards:
            raise InputError(f"batch_size ({self.batch_size}) is not a multiple of data_shards ({self.data_shards})")

    def has_sources(self) -> bool:
        """Whether there is anything to train on."""
        return False


@dataclasses.dataclass(frozen=True)
class MixtureConfig(DataConfig):
    """Packed mixed sequences.

    Attributes:
      root: folder that relative paths of sources start from.
      vocabulary: a tokenizer.json; "": that of `init.checkpoint`; "shapes": the built-in dataset's.
      seq_len: positions of a row.
      epochs: passes over the sources after which a run ends, even before `steps`; 0: no end.
      packing_buffer: rows held open while packing: more waste less.
      max_oversized: the largest fraction of a source's samples that may be left out because they fit into no row and cannot be
        cut (pairs, edits); the metrics say how many are.
      grids: (h, w) of every image, for packing as the February 2026 release does it; (): samples do not see each other.
      sources, validation: sources by names of the user's choice.
    """

    root: str = ""
    vocabulary: str = ""
    seq_len: Positive = 16384
    epochs: NonNegative = 0
    packing_buffer: Positive = 16
    max_oversized: Share = 0.01
    grids: tuple[tuple[Positive, Positive], ...] = ()
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for group, sources in (("sources", self.sources), ("validation", self.validation)):
            for name, source in sources.items():
                if source.weight and not source.path:
                    raise InputError(f"{group}.{name}.path is missing: a source with a weight needs one")
        if self.grids and self.epochs:
            raise InputError(f"packing as the release does it (grids) has no end, found epochs={self.epochs}")

    def has_sources(self) -> bool:
        return any(source.weight for source in self.sources.values())


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Prompts of a mixture.

    Attributes:
      path: what `training.candidates.read_prompts` can open; a file relative to `data.root`.
      weight: of a step's prompts, relative to the other sources'; 0 leaves the source out.
    """

    path: str = ""
    weight: Annotated[float, at_least(0)] = 1.0


@dataclasses.dataclass(frozen=True)
class PromptMixtureConfig(DataConfig):
    """Prompts to make images of; `batch_size` is how many a step has, all different.

    Attributes:
      root: folder that relative paths start from.
      vocabulary: a tokenizer.json; "": that of `init.checkpoint`; "shapes": the built-in dataset's.
      train_prompts: prompts of a step whose images are learned from, the first ones that teach something, so that a step
        costs no more than these; 0: all that do.
      sources, validation: prompts by names of the user's choice.
    """

    root: str = ""
    vocabulary: str = ""
    train_prompts: NonNegative = 0
    sources: Mapping[str, PromptsConfig] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, PromptsConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for group, sources in (("sources", self.sources), ("validation", self.validation)):
            for name, source in sources.items():
                if source.weight and not source.path:
                    raise InputError(f"{group}.{name}.path is missing: prompts with a weight need one")
        if self.train_prompts > self.batch_size:
            raise InputError(f"train_prompts must be at most batch_size, found {self.train_prompts} of {self.batch_size}")

    def has_sources(self) -> bool:
        return any(source.weight for source in self.sources.values())


@dataclasses.dataclass(frozen=True)
class PixelsConfig(DataConfig):
    """Images of one size.

    Attributes:
      sources, validation: what data/sources.py can open.
      crop: the part of an image that is kept: "center", or "random", drawn anew in every epoch.
    """

    batch_size: Positive = 32
    sources: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    height: Positive = 256
    width: Positive = 256
    crop: Literal["center", "random"] = "center"

    def has_sources(self) -> bool:
        return bool(self.sources)
