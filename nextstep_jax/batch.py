"""The Batch: all that the data pipeline and the models say to each other. Preferences come as two of them.

Letters: B batch, S sequence, C channels of one image token.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class PairedBatch(NamedTuple):
    """Rows of preferences: segment k of a row of `winners` is preferred to segment k of the same row of `losers`.

    The images of a pair have one size. What is each one's own before its image, a plan, may differ in length, so that the two
    need not stand at the same positions.

    Attributes:
      winners, losers: of the same shape.
    """

    winners: Batch
    losers: Batch

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S) of either."""
        return self.winners.shape

    def interleaved(self) -> Batch:
        """Both as one Batch of 2 B rows, the winners' even ones: a row and its counterpart stay on one device."""

        def join(winner: jax.Array, loser: jax.Array) -> jax.Array:
            return jnp.stack([winner, loser], axis=1).reshape(2 * winner.shape[0], *winner.shape[1:])

        return jax.tree.map(join, self.winners, self.losers)
