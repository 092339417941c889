"""How much memory a layer takes to read a long prompt, as the compiler counts it: nothing is executed.

    python -m benchmarks.prefill_memory --json prefill_memory.json
    python -m benchmarks.prefill_memory --positions 4224 --at-once

One block of the preset's decoder is compiled for this machine's CPU in bfloat16 to append `--positions` positions of `--rows`
rows to a cache with `--further` slots more. `temporaries` are the bytes beside arguments and result. `scores` is what the
attention scores of all queries would take in float32; `--at-once` compiles the layer that way.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks import measure
from nextstep_jax.config import preset
from nextstep_jax.models import attention
from nextstep_jax.models.layers import rope_table
from nextstep_jax.models.transformer import Block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="14b")
    parser.add_argument("--rows", type=int, default=3, help="guidance branches times images")
    parser.add_argument("--positions", type=int, nargs="+", default=[1152, 4224, 8448], help="of the prompt")
    parser.add_argument("--further", type=int, default=1024, help="slots of the image that follows")
    parser.add_argument("--at-once", action="store_true", help="all queries in one block")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """Bytes by number of positions."""
    if a.at_once:
        attention._SCORES_BYTES = 1 << 62
    return {"setting": {k: v for k, v in vars(a).items() if k != "json"}} | {str(n): layer(a, n) for n in a.positions}


def layer(a: argparse.Namespace, positions: int) -> dict:
    """The compiler's account of one block."""
    c = preset(a.preset).with_transformer(dtype="bfloat16", fused_projections=True).transformer
    block, slots = Block(c), positions + a.further

    def extend(params, x, at, cache, valid, index):
        rope = rope_table(at, c.head_dim, c.rope_theta)
        return block.apply({"params": params}, x, rope, cache, index, valid, method="extend")

    def array(shape, dtype=c.dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    def init():
        rope = rope_table(jnp.zeros((1, 8)), c.head_dim, c.rope_theta)
        return block.init(jax.random.key(0), jnp.zeros((1, 8, c.width)), rope, jnp.ones((1, 8), jnp.int32))["params"]

    cache = attention.LayerCache(*[array((a.rows, slots, c.kv_heads, c.head_dim))] * 2)
    inputs = (array((a.rows, positions, c.width)), array((a.rows, positions), jnp.int32), cache)
    inputs += (array((a.rows, slots), bool), array((), jnp.int32))
    params = jax.tree.map(lambda leaf: array(leaf.shape), jax.eval_shape(init))
    memory = jax.jit(extend).lower(params, *inputs).compile().memory_analysis()
    return {"temporaries": memory.temp_size_in_bytes, "scores": 4 * a.rows * c.heads * positions * slots}


if __name__ == "__main__":
    main()
