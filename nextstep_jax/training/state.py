"""The training state: everything a step changes, in one donated tree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nextstep_jax.training.optimizer import merge, split_frozen

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State before a step.

    Attributes:
      step: int32, batches seen.
      params: {"model": ...} or {"image_tokenizer": ...}; float32 master weights, scanned form where the model scans.
      opt_state: of the trainable parameters.
      ema: moving average of the trainable parameters (None at frozen ones), or None.
      skipped: int32, updates skipped for a non-finite loss or gradient.
      skipped_in_a_row: int32, of those, the ones since the last applied update.
    """

    step: Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: Array
    skipped_in_a_row: Array

    @property
    def updates(self) -> Array:
        """Applied updates."""
        return self.step - self.skipped

    @property
    def averaged_params(self) -> Any:
        """The EMA with the frozen parameters filled in; the parameters themselves without an EMA."""
        return self.params if self.ema is None else merge(self.ema, self.params)


def create_state(params, optimizer: optax.GradientTransformation, frozen=(), ema: bool = False) -> TrainState:
    """The state at step 0. Traceable, so that it can be made in its place on a mesh."""
    trainable, _ = split_frozen(params, frozen)
    step, skipped, in_a_row = jnp.zeros((3,), jnp.int32)
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    return TrainState(step, params, optimizer.init(trainable), average, skipped, in_a_row)
