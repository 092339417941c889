"""Every setting of a training run, its default, and what it may be.

`config.py` makes these from a config file's values; from there on a run knows nothing else. Architectures are spelled out field
by field, so that any of them can be changed from the command line (`--config.model.transformer.layers=2`).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.data.augment import Augmentation
from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import TimestepDistribution
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.rollouts import RolloutConfig
from nextstep_jax.generation.sizes import trained_sizes
from nextstep_jax.objectives.reconstruction import Weights
from nextstep_jax.schema import NonNegative, Pattern, Positive, above, at_least, below, read
from nextstep_jax.seeds import MAX_SEED
from nextstep_jax.training.optimizer import OptimizerConfig, learning_rate_schedule

Seed = Annotated[int, lambda value: "" if 0 <= value <= MAX_SEED else "in [0, 2**63)"]
Fraction = Annotated[float, lambda value: "" if 0 < value <= 1 else "in (0, 1]"]
Share = Annotated[float, lambda value: "" if 0 <= value <= 1 else "in [0, 1]"]


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where the parameters come from.

    Attributes:
      checkpoint: a checkpoint folder (a converted NextStep or Qwen2.5 model, or a trained one); "": all parameters are randomly
        initialized.
      reinit: expressions for the parameters that are randomly initialized, whether the checkpoint has them or not. Only these
        may be missing in it: for Qwen2.5 those of the image side.
      copies: (target, source): parameters below the path `target` that the checkpoint does not have begin as its ones below
        `source`, where it has those.
    """

    checkpoint: str = ""
    reinit: tuple[Pattern, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()


MeshSize = Annotated[int, lambda value: "" if value >= 1 or value == -1 else "at least 1, or -1 for what is left"]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh (see sharding/rules.py); one may be -1: whatever is left."""

    data: MeshSize = 1
    fsdp: MeshSize = -1
    tensor: MeshSize = 1
    sequence: MeshSize = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saves every `every` steps (0: at the end only). The newest `keep_last` stay, and those of steps that are multiples of
    `keep_every` (0: no others).
    """

    every: NonNegative = 1000
    keep_last: Positive = 3
    keep_every: NonNegative = 0


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """The loss on the first `batches` batches of the validation data, every `every` steps (0: never)."""

    every: NonNegative = 0
    batches: Positive = 8


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """A grid of images every `every` steps (0: never)."""

    every: NonNegative = 0


@dataclasses.dataclass(frozen=True)
class GenerationSamplesConfig(SamplesConfig):
    """Images of prompts, every `every` steps (0: never).

    Attributes:
      generation: fields of GenerationConfig that differ from the release's, those of edits in `edit`, and `trained_sizes`, the
        (height, width) of the images trained on; they are exported with the checkpoint, too.
    """

    prompts: tuple[str, ...] = ()
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """The steps between which the profiler runs; 0 and 0: never."""

    start: NonNegative = 0
    stop: NonNegative = 0

    def __post_init__(self) -> None:
        if self.start > self.stop:
            raise InputError(f"start must be at most stop, found {self.start} and {self.stop}")


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; without a project it is not used."""

    project: str = ""
    mode: Literal["offline", "online"] = "offline"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """An evaluation during training.

    Attributes:
      evaluator: a name that the launcher knows ("shapes", "reconstruction", "suite"), or "python:package.module:function".
      every: steps between two; 0: never.
      settings: keyword arguments of the evaluator.
    """

    evaluator: str = ""
    every: NonNegative = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# --- data -------------------------------------------------------------------------------------------------------------


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
        raise NotImplementedError


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


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every stage has.

    Attributes:
      name: of the run, for the trackers.
      grad_accum_steps: parts that a step's batch is run in.
      ema_decay: of the moving average of the parameters; 0: none.
      ema_ramp: the decay after n updates is at most n times this; 0: at most (1 + n) / (10 + n).
      max_nonfinite_steps: steps in a row with a non-finite loss or gradient that stop the run.
      evals: evaluations during training, by names of the user's choice (training/evals.py).
      export_dtype: of the trained parameters in the checkpoint folder written at the end.
    """

    objective: str = ""
    name: str = ""
    seed: Seed = 42
    steps: Positive = 1000
    init: InitConfig = InitConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    grad_accum_steps: Positive = 1
    ema_decay: Annotated[float, below(0, 1)] = 0.0
    ema_ramp: Annotated[float, at_least(0)] = 0.0
    max_nonfinite_steps: Positive = 20
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    log_every: Positive = 10
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    evals: Mapping[str, EvaluationConfig] = dataclasses.field(default_factory=dict)
    profile: ProfileConfig = ProfileConfig()
    wandb: WandbConfig = WandbConfig()
    data: DataConfig = DataConfig()

    def __post_init__(self) -> None:
        self.learning_rate_schedule()

    def learning_rate_schedule(self):
        """Update -> learning rate. InputError for numbers that make no schedule."""
        o = self.optimizer
        return learning_rate_schedule(o.schedule, o.learning_rate, o.min_learning_rate, o.warmup_steps, self.steps)


@dataclasses.dataclass(frozen=True)
class MaxTargetFraction:
    """The most targets of each head in a row, as a fraction of its positions. Rows are packed so as to keep to it: fewer
    targets cost less, and leave more padding where the data has more targets of a kind than that.
    """

    text: Fraction = 1.0
    image: Fraction = 1.0


@dataclasses.dataclass(frozen=True)
class MultitaskLossConfig:
    """The loss beside its weights, which are the model's (`model.text_loss_weight`, `model.image_loss_weight`).

    Attributes:
      timesteps: the distribution of the flow head's times.
      error_target: whose squared error is the flow head's loss: that of the velocity, or of the data or noise that it implies
        (a weight of (1 - t)^2 or t^2).
      token_length_weight: weigh the two losses by the number of their tokens, too, an option of the February 2026 release.
    """

    timesteps: TimestepDistribution = TimestepDistribution()
    error_target: Literal["velocity", "data", "noise"] = "velocity"
    token_length_weight: bool = False


@dataclasses.dataclass(frozen=True)
class ModelRunConfig(RunConfig):
    """What every stage of the model itself has.

    Attributes:
      image_tokenizer_checkpoint: decodes images and is exported with the model; "": that of `init.checkpoint`.
    """

    samples: GenerationSamplesConfig = GenerationSamplesConfig()
    model: NextStepConfig = NextStepConfig()
    image_tokenizer_checkpoint: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        generation = dict(self.samples.generation)
        trained_sizes(generation)
        generation.pop("trained_sizes", None)
        for path, values in (("", generation), (".edit", generation.pop("edit", {}))):
            read(GenerationConfig, values, f"config.samples.generation{path}")


@dataclasses.dataclass(frozen=True)
class MultitaskConfig(ModelRunConfig):
    """NextStep on packed mixed sequences (training/multitask.py)."""

    objective: Literal["multitask"] = "multitask"
    data: MixtureConfig = MixtureConfig()
    loss: MultitaskLossConfig = MultitaskLossConfig()
    max_target_fraction: MaxTargetFraction = MaxTargetFraction()


@dataclasses.dataclass(frozen=True)
class PreferenceLossConfig:
    """Diffusion-DPO (objectives/preference.py).

    Attributes:
      beta: how strongly the reference, the model that training starts from, holds the model back.
      winner_weight: of the error of the preferred images themselves.
      draws: of noise and time for each image token; all of an image's stand inside one sigmoid.
      timesteps: the distribution of the times.
    """

    beta: Annotated[float, above(0)] = 2000.0
    winner_weight: Annotated[float, at_least(0)] = 0.0
    draws: Positive = 8
    timesteps: TimestepDistribution = TimestepDistribution()


@dataclasses.dataclass(frozen=True)
class PreferenceConfig(MultitaskConfig):
    """The flow head on pairs of images of one prompt, of which one is preferred (training/preference.py)."""

    objective: Literal["preference"] = "preference"  # type: ignore[assignment]  # narrower in each kind of run
    loss: PreferenceLossConfig = PreferenceLossConfig()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.grids:
            raise InputError("data.grids: the release's packing knows no preferences")
        for name, source in self.data.sources.items():
            if source.augmentation.preferred_only:
                raise InputError(f"data.sources.{name}.augmentation.preferred_only leaves no image to prefer another to")
        if self.init.reinit:
            raise InputError("init.reinit: the model that training starts from is the reference, it keeps its parameters")


@dataclasses.dataclass(frozen=True)
class FewStepLossConfig:
    """Distillation of the flow head to few evaluations (objectives/few_step.py).

    Attributes:
      method: "lagrangian", or its controls "shortcut" and "regression".
      draws: of times, noise and guidance for each image token.
      max_guidance: strengths are drawn from 1 to this one, log w evenly.
      normalize_power: p of the second term's weight in "lagrangian".
    """

    method: Literal["lagrangian", "shortcut", "regression"] = "lagrangian"
    draws: Positive = 8
    max_guidance: Annotated[float, above(1)] = 8.0
    normalize_power: Annotated[float, at_least(0)] = 0.5


@dataclasses.dataclass(frozen=True)
class FewStepConfig(MultitaskConfig):
    """A second flow head, distilled from the first with everything else frozen (training/few_step.py)."""

    objective: Literal["few_step"] = "few_step"  # type: ignore[assignment]  # narrower in each kind of run
    optimizer: OptimizerConfig = OptimizerConfig(frozen=(r"^model/(?!map_head/)",))
    model: NextStepConfig = NextStepConfig(map_head=True)
    loss: FewStepLossConfig = FewStepLossConfig()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.map_head:
            raise InputError("model.map_head must be True: it is what this objective trains")
        others = ("model/decoder/final_norm/scale", "model/flow_head/input/kernel")
        trained = [path for path in others if not any(re.search(pattern, path) for pattern in self.optimizer.frozen)]
        if trained:
            raise InputError(f"optimizer.frozen must hold all but model/map_head, {trained[0]} would be trained")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """A reward, and its part in the sum that is learned from.

    Attributes:
      reward: its spelling, see `rewards.loading.open_reward`.
      weight, normalizer, score: see `rewards.combine.RewardTerm`.
    """

    reward: str = ""
    weight: float = 1.0
    normalizer: Literal["none", "rank", "z_score"] = "none"
    score: str = "reward"


@dataclasses.dataclass(frozen=True)
class OnlineLossConfig:
    """What every kind of learning from scored rollouts has (objectives/policy_gradient.py).

    Attributes:
      deviation: what advantages are measured in, each group's own standard deviation or that of all rewards.
      min_spread, max_mean: groups with a smaller deviation than that fraction of all rewards', or a higher mean reward, teach
        nothing and are left out; so are unanimous ones.
      kl_weight: of the squared distance to the velocities of the model that training starts from; 0: that model is not kept.
    """

    deviation: Literal["group", "global"] = "group"
    min_spread: Annotated[float, at_least(0)] = 0.05
    max_mean: float = 0.9
    kl_weight: Annotated[float, at_least(0)] = 0.0


@dataclasses.dataclass(frozen=True)
class NftLossConfig(OnlineLossConfig):
    """Forward-process learning, DiffusionNFT.

    Attributes:
      beta: how far the two mixtures of new and old velocity lie from the old one.
      draws: of noise and time for each image token.
      timesteps: the distribution of the times.
    """

    beta: Annotated[float, above(0)] = 1.0
    draws: Positive = 4
    timesteps: TimestepDistribution = TimestepDistribution()


@dataclasses.dataclass(frozen=True)
class GrpoLossConfig(OnlineLossConfig):
    """GRPO on sampler steps.

    Attributes:
      weight: of a trained step, see `policy_gradient.step_weight`.
      clip: of the ratio; with one update for each rollout it never acts.
    """

    weight: Literal["likelihood", "cps", "none"] = "cps"
    clip: Annotated[float, above(0)] = 1e-4


@dataclasses.dataclass(frozen=True)
class OnlineConfig(ModelRunConfig):
    """The model on images that it makes of prompts in each step, scored by rewards (training/online.py)."""

    data: PromptMixtureConfig = PromptMixtureConfig()
    loss: OnlineLossConfig = OnlineLossConfig()
    rollouts: RolloutConfig = RolloutConfig()
    rewards: Mapping[str, RewardConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, entry in self.rewards.items():
            if not entry.reward:
                raise InputError(f"rewards.{name}.reward is missing")


@dataclasses.dataclass(frozen=True)
class NftConfig(OnlineConfig):
    """Images are made by the averaged parameters, where `ema_decay` asks for an average: they are the old policy."""

    objective: Literal["nft"] = "nft"
    loss: NftLossConfig = NftLossConfig()


@dataclasses.dataclass(frozen=True)
class GrpoConfig(OnlineConfig):
    """Images are made by the parameters themselves; one update follows each rollout."""

    objective: Literal["grpo"] = "grpo"
    loss: GrpoLossConfig = GrpoLossConfig()
    rollouts: RolloutConfig = RolloutConfig(trained_steps=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rollouts.trained_steps:
            raise InputError("rollouts.trained_steps must be at least 1 for GRPO, found 0")


@dataclasses.dataclass(frozen=True)
class ReconstructionLossConfig(Weights):
    """Weights of the terms of objectives/reconstruction.py. The networks behind the last two are named
    "package.module:function": the function returns (images, reconstructions) -> [B] distances, or a Linen module images ->
    logits.
    """

    perceptual_network: str = ""
    discriminator: str = ""


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig(RunConfig):
    """An image tokenizer on images (training/reconstruction.py)."""

    objective: Literal["reconstruction"] = "reconstruction"
    data: PixelsConfig = PixelsConfig()
    image_tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    loss: ReconstructionLossConfig = ReconstructionLossConfig()


RUNS: dict[str, type[RunConfig]] = {
    "few_step": FewStepConfig,
    "grpo": GrpoConfig,
    "multitask": MultitaskConfig,
    "nft": NftConfig,
    "preference": PreferenceConfig,
    "reconstruction": ReconstructionConfig,
}
