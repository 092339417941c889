"""The Batch: all that the data pipeline and the models say to each other.

Letters: B batch, S sequence, C channels of one image token.
"""

import dataclasses
from typing import Any

import jax

AnyArray = Any  # np.ndarray where rows are packed, jax.Array on devices, jax.ShapeDtypeStruct where a step is only lowered


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows of mixed text ids and continuous image tokens; every shape is static.

    A position holds either a text id or an image token (`is_image`). The weights say how much a position counts *as a
    target*; the hidden state at s predicts the target at s + 1. Samples packed into one row carry different segment ids
    and do not see each other; segment id 0 is padding.

    Attributes:
      text_ids: [B, S] int32; at image positions the placeholder id (never looked up).
      image_tokens: [B, S, C] float32; zeros at text positions.
      is_image: [B, S] bool.
      positions: [B, S] int32 RoPE positions, from 0 in each segment.
      segment_ids: [B, S] int32, 0 for padding.
      text_weight: [B, S] float32 weight in the cross-entropy.
      image_weight: [B, S] float32 weight in the velocity error.
    """

    text_ids: AnyArray
    image_tokens: AnyArray
    is_image: AnyArray
    positions: AnyArray
    segment_ids: AnyArray
    text_weight: AnyArray
    image_weight: AnyArray

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S)."""
        rows, positions = self.text_ids.shape
        return rows, positions
