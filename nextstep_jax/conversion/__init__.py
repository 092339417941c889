"""Released weights to this library's checkpoints and back."""

from nextstep_jax.conversion.from_torch import Conversion, convert, load_released
from nextstep_jax.conversion.to_torch import export

__all__ = ["Conversion", "convert", "export", "load_released"]
