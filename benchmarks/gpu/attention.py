"""Part "attention": ways to attend within the segments of a packed row, forward and backward, at 16,384 positions.

  library        `causal_attention` as training calls it
  cudnn, mask    jax.nn.dot_product_attention's cuDNN kernel, given the mask of all pairs of positions
  cudnn, packed  the same kernel, told where segments begin: no array of all pairs (an internal function of JAX)
  triton         the Pallas kernel with segment ids, keys and values repeated for every query head
  xla            scores of all pairs in memory, at 4,096 positions

`distance` is the largest difference of the output from XLA's on a short row, over the largest output. `flops` counts visible
pairs: two products forward and five backward.
"""

import functools

from benchmarks import measure as timing
from benchmarks.gpu.record import Record, run_part

HEADS, KV_HEADS, HEAD_DIM = 12, 2, 128  # of the 1.5B model
SEGMENT = 300
ROUNDS = 5


def measure(record: Record, _) -> None:
    import jax
    import jax.numpy as jnp

    from nextstep_jax.models.attention import causal_attention

    length, short = (384, 256) if record.tiny else (16384, 4096)
    for name, attend in kernels().items():
        if name != "library" and name != "xla" and jax.default_backend() == "cpu":
            continue

        def run(attend=attend, length=short if name == "xla" else length):
            q, k, v, ids = inputs(length, jnp.bfloat16)
            forward = jax.jit(lambda *qkv: attend(*qkv, ids))
            both = jax.jit(jax.grad(lambda *qkv: attend(*qkv, ids).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
            compiled = both.lower(q, k, v).compile()
            found = timing.alternate({"forward": lambda: forward(q, k, v), "both": lambda: compiled(q, k, v)}, ROUNDS)
            flops = 2 * 7 * HEADS * HEAD_DIM * visible_pairs(length)
            figures = {"positions": length, "seconds": found, "flops_a_second": flops / found["both"]}
            exact = causal_attention(*inputs(short, jnp.bfloat16), "xla").astype(jnp.float32)
            ours = attend(*inputs(short, jnp.bfloat16)).astype(jnp.float32)
            figures["distance"] = float(jnp.abs(ours - exact).max() / jnp.abs(exact).max())
            return figures | {"temporary_bytes": timing.compiled_memory(compiled)["temporaries"]}

        record.attempt(name, run, needs=5)


def kernels() -> dict:
    """{name: function of q [B, S, N, H], k and v [B, S, K, H], segment_ids [B, S]}."""
    from nextstep_jax.models.attention import causal_attention

    return {
        "library": causal_attention,
        "cudnn, packed": _cudnn_packed,
        "triton": _triton,
        "cudnn, mask": functools.partial(causal_attention, kernel="cudnn"),
        "xla": functools.partial(causal_attention, kernel="xla"),
    }


def inputs(length: int, dtype):
    """q, k, v and segment ids of one row of segments, its end padding (segment 0)."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, length, heads, HEAD_DIM), dtype)
        for key, heads in zip(keys, (HEADS, KV_HEADS, KV_HEADS), strict=True)
    )
    at = jnp.arange(length)
    return q, k, v, jnp.where(at < length // SEGMENT * SEGMENT, at // SEGMENT + 1, 0)[None].astype(jnp.int32)


def visible_pairs(length: int) -> int:
    return length // SEGMENT * SEGMENT * (SEGMENT + 1) // 2


def _cudnn_packed(q, k, v, segment_ids):
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    offsets, lengths = packed_segments(segment_ids, segment_ids.shape[1] // SEGMENT + 1)
    how = dict(scale=HEAD_DIM**-0.5, mask_type=MaskType.PADDING_CAUSAL)
    return dot_product_attention(q, k, v, None, None, lengths, lengths, offsets, offsets, **how)


def packed_segments(segment_ids, most: int):
    """Where at most `most` segments of rows [B, S] begin, [B, most + 1] with the last one's end, and their lengths [B, most].

    Places beyond the last segment hold -1, as cuDNN wants it; padding at a row's end is a segment of its own.
    """
    import jax.numpy as jnp

    begins = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
    length = segment_ids.shape[1]
    starts = jnp.stack([jnp.nonzero(row, size=most + 1, fill_value=length)[0] for row in begins]).astype(jnp.int32)
    lengths = jnp.diff(starts, axis=1)
    used = (lengths > 0).sum(axis=1, keepdims=True)
    return jnp.where(jnp.arange(most + 1) <= used, starts, -1), jnp.where(lengths > 0, lengths, -1)


def _triton(q, k, v, segment_ids):
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.gpu.attention import mha

    k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    return mha(q, k, v, segment_ids, sm_scale=HEAD_DIM**-0.5, causal=True)


if __name__ == "__main__":
    run_part(measure)
