"""Settings of the stages after supervised training: preferences, distillation, online training."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from nextstep_jax.config import NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import TimestepDistribution
from nextstep_jax.generation.rollouts import RolloutConfig
from nextstep_jax.schema import Positive, above, at_least
from nextstep_jax.training.data_settings import PromptMixtureConfig
from nextstep_jax.training.optimizer import OptimizerConfig
from nextstep_jax.training.settings import ModelRunConfig, MultitaskConfig


@dataclasses.dataclass(frozen=True)
class PreferenceLossConfig:
    """Diffusion-DPO (objectives/preference.py).

    Attributes:
      beta: how strongly the reference, the model that training starts from, holds the flow head back.
      beta_text: the same of the language head, on the mean of a plan's tokens, where each image was drawn after a plan of its
        own; 0: plans are not learned from.
      winner_weight: of the error of the preferred images themselves.
      winner_text_weight: of the cross-entropy of the preferred plans themselves.
      draws: of noise and time for each image token; all of an image's stand inside one sigmoid.
      timesteps: the distribution of the times.
    """

    beta: Annotated[float, at_least(0)] = 2000.0
    beta_text: Annotated[float, at_least(0)] = 0.0
    winner_weight: Annotated[float, at_least(0)] = 0.0
    winner_text_weight: Annotated[float, at_least(0)] = 0.0
    draws: Positive = 8
    timesteps: TimestepDistribution = TimestepDistribution()

    def __post_init__(self) -> None:
        if not (self.beta or self.beta_text):
            raise InputError("beta or beta_text must be above 0, found 0 for both: nothing would be preferred")

    @property
    def with_text(self) -> bool:
        """Whether plans are learned from."""
        return self.beta_text > 0 or self.winner_text_weight > 0


@dataclasses.dataclass(frozen=True)
class PreferenceConfig(MultitaskConfig):
    """The flow head on pairs of images of one prompt, of which one is preferred (training/preference.py).

    Attributes:
      reference: how the reference's errors are found, which are the same bit for bit. "copy": before each step, from a copy of
        its parameters beside those that are trained. "ahead": those of all steps whenever the run is started, and the copy is
        dropped before the first step; 8 bytes for each image slot of each step remain.
    """

    objective: Literal["preference"] = "preference"  # type: ignore[assignment]  # narrower in each kind of run
    loss: PreferenceLossConfig = PreferenceLossConfig()  # type: ignore[assignment]
    reference: Literal["copy", "ahead"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.grids:
            raise InputError("data.grids: the release's packing knows no preferences")
        if self.reference == "ahead" and self.data.validation and self.validation.every:
            raise InputError(
                "reference must be copy where config.validation.every is not 0, found ahead: other pairs come then"
            )
        for name, source in self.data.sources.items():
            if source.augmentation.preferred_only:
                raise InputError(f"data.sources.{name}.augmentation.preferred_only leaves no image to prefer another to")
        if self.init.reinit:
            raise InputError("init.reinit: the model that training starts from is the reference, it keeps its parameters")


@dataclasses.dataclass(frozen=True)
class FewStepLossConfig:
    """Distillation of the flow head to few evaluations (objectives/few_step.py).

    Attributes:
      method: "regression", or its controls "lagrangian" and "shortcut".
      draws: of noise for each image token.
      min_guidance, max_guidance: strengths are drawn between them, log w evenly.
      normalize_power: p of the weight in "lagrangian".
    """

    method: Literal["regression", "lagrangian", "shortcut"] = "regression"
    draws: Positive = 8
    min_guidance: Annotated[float, at_least(1)] = 1.0
    max_guidance: Annotated[float, at_least(1)] = 8.0
    normalize_power: Annotated[float, at_least(0)] = 0.5

    def __post_init__(self) -> None:
        if self.max_guidance < self.min_guidance:
            raise InputError(f"max_guidance must be at least min_guidance ({self.min_guidance}), found {self.max_guidance}")


@dataclasses.dataclass(frozen=True)
class FewStepConfig(MultitaskConfig):
    """A map head, distilled from the flow head with everything else frozen (training/few_step.py)."""

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
