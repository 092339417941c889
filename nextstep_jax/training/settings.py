"""Every setting of a training run, its default, and what it may be. What a run reads is in data_settings.py; stages after
supervised training are in post_training_settings.py.

`config.py` makes these from a config file's values; from there on a run knows nothing else. Architectures are spelled out field
by field, so that any of them can be changed from the command line (`--config.model.transformer.layers=2`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import TimestepDistribution
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.sizes import trained_sizes
from nextstep_jax.objectives.reconstruction import Weights
from nextstep_jax.schema import NonNegative, Pattern, Positive, at_least, below, read
from nextstep_jax.training.data_settings import DataConfig, Fraction, MixtureConfig, PixelsConfig, Seed
from nextstep_jax.training.optimizer import OptimizerConfig, learning_rate_schedule


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
      watch: the evaluator's number that says how good a step is, the higher the better: the best step is kept and exported
        instead of the last; "": none. At most one evaluation of a run is watched.
      patience: evaluations in a row without a better step that end the run; 0: it goes on to its last step.
    """

    evaluator: str = ""
    every: NonNegative = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    watch: str = ""
    patience: NonNegative = 0

    def __post_init__(self) -> None:
        if self.patience and not self.watch:
            raise InputError(f"watch must name a number where patience is {self.patience}")


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
      webhook: the environment variable that holds an address which is told when the run ends or a loss is not finite
        (training/webhook.py); "": nobody is told.
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
    webhook: str = ""
    data: DataConfig = DataConfig()

    def __post_init__(self) -> None:
        self.learning_rate_schedule()
        if len(watched := [name for name, entry in sorted(self.evals.items()) if entry.watch]) > 1:
            raise InputError(f"evals: one of them can be watched, found {' and '.join(watched)}")

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
