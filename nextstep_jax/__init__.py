"""NextStep-1 in JAX: one causal transformer over text ids and continuous image tokens, a language head and a flow head.

    from nextstep_jax import Pipeline

    Pipeline.from_checkpoint().generate("a red circle left of a blue square")[0].save("out.png")

The names below are loaded when they are first used: importing the package costs nothing, and using one brings in no more than
it needs (generating neither the data stack nor an optimizer).
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nextstep_jax.checkpoints import load_config, load_params, save_params
    from nextstep_jax.config import FlowHeadConfig, ImageTokenizerConfig, NextStepConfig, TransformerConfig, preset
    from nextstep_jax.conversion.from_torch import convert
    from nextstep_jax.conversion.to_torch import export
    from nextstep_jax.data.sources import open_source
    from nextstep_jax.data.vocabulary import Vocabulary
    from nextstep_jax.errors import DamagedDataError, InputError, NextStepError, UnfamiliarWarning
    from nextstep_jax.generation.config import GenerationConfig
    from nextstep_jax.generation.generated_image import GeneratedImage
    from nextstep_jax.generation.interleaved import generate_interleaved
    from nextstep_jax.generation.pipeline import Pipeline
    from nextstep_jax.models.image_tokenizer import ImageTokenizer
    from nextstep_jax.models.nextstep import NextStep
    from nextstep_jax.training.loop import train

_MODULES = {
    "DamagedDataError": "errors",
    "FlowHeadConfig": "config",
    "GeneratedImage": "generation.generated_image",
    "GenerationConfig": "generation.config",
    "ImageTokenizer": "models.image_tokenizer",
    "ImageTokenizerConfig": "config",
    "InputError": "errors",
    "NextStep": "models.nextstep",
    "NextStepConfig": "config",
    "NextStepError": "errors",
    "Pipeline": "generation.pipeline",
    "TransformerConfig": "config",
    "UnfamiliarWarning": "errors",
    "Vocabulary": "data.vocabulary",
    "convert": "conversion.from_torch",
    "export": "conversion.to_torch",
    "generate_interleaved": "generation.interleaved",
    "load_config": "checkpoints",
    "load_params": "checkpoints",
    "open_source": "data.sources",
    "preset": "config",
    "save_params": "checkpoints",
    "train": "training.loop",
}

__all__ = [
    "DamagedDataError",
    "FlowHeadConfig",
    "GeneratedImage",
    "GenerationConfig",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "InputError",
    "NextStep",
    "NextStepConfig",
    "NextStepError",
    "Pipeline",
    "TransformerConfig",
    "UnfamiliarWarning",
    "Vocabulary",
    "convert",
    "export",
    "generate_interleaved",
    "load_config",
    "load_params",
    "open_source",
    "preset",
    "save_params",
    "train",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'nextstep_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nextstep_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
