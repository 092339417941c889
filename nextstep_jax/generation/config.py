"""How to generate: guidance, sampler and prompts around the prompt, with each release's recommended values."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nextstep_jax.config import NextStepConfig
from nextstep_jax.errors import InputError
from nextstep_jax.flow.guidance import SCHEDULES, guided_times, num_branches, schedule
from nextstep_jax.flow.samplers import timesteps
from nextstep_jax.generation.arguments import require_bool, require_float, require_int, require_str
from nextstep_jax.generation.jacobi import JacobiConfig
from nextstep_jax.generation.token_loop import SamplerConfig

STEP_SCHEDULE_PIECES = 4  # stages in which a number of steps that changes along the image falls
MAX_WINDOW = 1024  # of Jacobi decoding: more than an image has tokens is of no use

_SHARES = ("noise_level", "jacobi_tolerance", "guidance_start", "guidance_end")  # from 0 to 1

# Old names -> the ones that took their place.
RENAMED = {
    "positive": "prompt_suffix",
    "negative": "negative_prompt",
    "last_steps": "final_steps",
    "think": "thinking",
    "size": "image_size",
}


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How one generation is done.

    Attributes:
      cfg: guidance towards the prompt; 1 is none.
      image_cfg: guidance towards the input images of an edit; 1 is none.
      schedule: how cfg and image_cfg change along the tokens, one of flow.guidance.SCHEDULES.
      guidance_start, guidance_end: guidance applies at flow times from the first up to the second, 0 being noise and 1 the
        image; at others the flow head is asked for the prompt alone.
      sampler, steps, shift, noise_level: the flow sampler, see flow.samplers.
      final_steps: steps of an image's last tokens; the number falls to it from `steps` in a few stages (`steps_along`). 0: no
        change. Later tokens depend on more of the image and leave less for the flow head to decide.
      normalize_tokens: LayerNorm over each sampled token (the releases' use_norm).
      rescale: shrink guided velocities to the conditional norm.
      prompt_suffix: appended to the prompt, after a space.
      negative_prompt: what the unconditional branch reads.
      sources_last: an edit's input images follow the instruction instead of coming first, where it does not place them itself.
        A model trained this way reads its input knowing what to look for.
      thinking: the model thinks in text before it draws (self-CoT, paper section 4.2). Does not apply where it writes text and
        images in turn (`interleaved.generate_interleaved`).
      thinking_temperature: of these thoughts, 0 for the most likely ones; above, other seeds think otherwise.
      image_size: side in pixels of the square whose area an image has when only its aspect (or nothing) is given.
      jacobi_window: image tokens that a transformer step works on at once (generation/jacobi.py); 1: one after another.
      jacobi_tolerance: the largest relative change of a token with which such a step accepts the tokens after it; 0 waits until
        nothing changes.

    Raises:
      InputError: a value of another type, out of range, or one that the sampler cannot run with.
    """

    cfg: float = 7.5
    image_cfg: float = 1.0
    schedule: str = "constant"
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    sampler: str = "sde"
    steps: int = 30
    final_steps: int = 0
    shift: float = 1.0
    noise_level: float = 0.8
    normalize_tokens: bool = False
    rescale: bool = False
    prompt_suffix: str = ""
    negative_prompt: str = ""
    sources_last: bool = False
    thinking: bool = False
    thinking_temperature: float = 0.0
    image_size: int = 512
    jacobi_window: int = 1
    jacobi_tolerance: float = 0.01

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.schedule not in SCHEDULES:
            raise InputError(f"guidance schedule must be one of {', '.join(SCHEDULES)}, found {self.schedule!r}")
        num_branches(self.cfg, self.image_cfg)
        for steps in (self.steps, self.final_steps or self.steps):
            times = timesteps(self.sampler, steps, self.shift)  # refuses what the sampler cannot run with
            if not guided_times(times, self.guidance_start, self.guidance_end).any():
                interval = f"from guidance_start {self.guidance_start:g} up to guidance_end {self.guidance_end:g}"
                raise InputError(f"none of the times of sampler {self.sampler!r} with {steps} steps lies {interval}")
        if self.final_steps > self.steps:
            raise InputError(f"final_steps must be at most steps ({self.steps}), found {self.final_steps}")
        if self.sampler == "map" and (self.image_cfg > 1 or self.rescale):
            setting = "image_cfg above 1" if self.image_cfg > 1 else "rescale"
            raise InputError(f"sampler 'map' was distilled with guidance towards the prompt alone: it has no {setting}")
        if self.sampler == "map" and (self.guidance_start, self.guidance_end) != (0, 1):
            raise InputError("sampler 'map' was distilled with guidance at all times: it has no guidance_start or guidance_end")
        if self.jacobi_window > MAX_WINDOW:
            raise InputError(f"jacobi_window must be at most {MAX_WINDOW}, found {self.jacobi_window}")

    def require_model(self, model: NextStepConfig) -> None:
        """InputError for a sampler whose head the model does not have."""
        if self.sampler == "map" and not model.map_head:
            raise InputError("sampler 'map' needs a checkpoint with a map head (configs/shapes_distill.py), this one has none")

    def sampler_config(self, has_image: bool) -> SamplerConfig:
        """What the compiled loop is specialized to."""
        return SamplerConfig(
            branches=num_branches(self.cfg, self.image_cfg, has_image),
            sampler=self.sampler,
            steps=self.steps,
            shift=self.shift,
            noise_level=self.noise_level,
            normalize_tokens=self.normalize_tokens,
            rescale=self.rescale,
            guidance_start=self.guidance_start,
            guidance_end=self.guidance_end,
        )

    def jacobi_config(self, row: int) -> JacobiConfig | None:
        """How several tokens are decoded at once, for images of `row` tokens in a row; None where one follows another."""
        return JacobiConfig(self.jacobi_window, row) if self.jacobi_window > 1 else None

    def steps_along(self, tokens: int) -> list[tuple[int, int]]:
        """(stop, steps) of each stage: tokens before `stop` take that many steps. Every stage has a compiled program."""
        if not self.final_steps:
            return [(tokens, self.steps)]
        stages = min(STEP_SCHEDULE_PIECES, tokens)
        counts = np.rint(np.linspace(self.steps, self.final_steps, stages)).astype(int).tolist()
        return [(tokens * (i + 1) // stages, count) for i, count in enumerate(counts)]

    def guidance(self, tokens: int) -> np.ndarray:
        """[n, 2] float32: cfg and image_cfg at each of n tokens."""
        rows = [
            [schedule(self.schedule, strength, k, tokens) for strength in (self.cfg, self.image_cfg)] for k in range(tokens)
        ]
        return np.asarray(rows, np.float32)

    def replace(self, **changes) -> "GenerationConfig":
        """A copy with some values changed; None leaves a value as it is.

        Raises:
          InputError: a setting that does not exist, or a value that cannot be used.
        """
        _require_known(changes)
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """The value of a setting as its declared type."""
    if field.type is bool:
        return require_bool(field.name, value)
    if field.type is str:
        return require_str(field.name, value)
    if field.type is int:
        return require_int(field.name, value, 1 if field.name in ("image_size", "jacobi_window") else 0)
    return require_float(field.name, value, 0, 1 if field.name in _SHARES else math.inf)


def _require_known(names: Iterable[str], source: str = "") -> None:
    """InputError for a setting that does not exist, with its new name or the nearest one."""
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    unknown = sorted(set(names) - set(known))
    if old := [name for name in unknown if name in RENAMED]:
        raise InputError(source + "; ".join(f"{name} is now {RENAMED[name]}" for name in old))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise InputError(f"{source}unknown generation settings {', '.join(unknown)}{hint}")


_NEGATIVE = (
    "lowres, bad anatomy, bad hands, {text}, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)

# What each release's own example or serving default uses (NextStep-1 README and example; 2026 inference script).
RECOMMENDED = {
    "1.0": GenerationConfig(
        sampler="august2025",
        steps=50,
        normalize_tokens=True,
        prompt_suffix="masterpiece, film grained, best quality.",
        negative_prompt=_NEGATIVE.format(text="text"),
    ),
    "1.0-edit": GenerationConfig(
        image_cfg=2.0, sampler="august2025", steps=50, shift=3.2, normalize_tokens=True, negative_prompt="Copy original image."
    ),
    "1.1": GenerationConfig(negative_prompt=_NEGATIVE.format(text="bad texts, bad layout")),
}


def recommended(release: str, overrides: Mapping[str, Any] | None = None, edit: bool = False) -> GenerationConfig:
    """The settings for a checkpoint: of its release, changed by what the checkpoint's own config asks for.

    Args:
      release: NextStepConfig.release.
      overrides: the `generation` entry of the checkpoint's config.json: settings, with those of edits in `edit`, and
        `trained_sizes` (sizes.py).

    Raises:
      InputError: a release or setting that does not exist.
    """
    name = "1.0-edit" if edit and release == "1.0" else release
    if name not in RECOMMENDED:
        raise InputError(f"release must be one of {', '.join(RECOMMENDED)}, found {release!r}")
    changes = dict(overrides or {})
    changes.pop("trained_sizes", None)
    of_edits = changes.pop("edit", None) or {}
    _require_known([*changes, *of_edits], "config.json: generation: ")
    if edit:
        changes |= of_edits
    settings = RECOMMENDED[name].replace(**changes)
    # Image guidance means something in edits only.
    return settings if edit else dataclasses.replace(settings, image_cfg=1.0)
