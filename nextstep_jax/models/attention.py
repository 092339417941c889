"""Grouped-query attention: masks, the key/value cache, and the choice of kernel.

Letters: B batch, S queries, T keys, N query heads, K key/value heads, H head dim. Query head n uses key head n // (N / K).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from nextstep_jax.errors import InputError
from nextstep_jax.sharding.mesh import target_platform
from nextstep_jax.sharding.rules import LOGICAL_RULES, constrain

Array = jax.Array
Queries = Float[Array, "B S N H"]
Keys = Float[Array, "B T K H"]
NewKeys = Float[Array, "B S K H"]
Mask = Bool[Array, "B S T"]
Index = Int[Array, "*#B"]  # a slot, one for all rows or [B]

# Names of what the attention's backward pass needs, for rematerialization policies: its arguments, and the rest.
QUERIES, KEYS_AND_VALUES, ATTENTION_OUT = "q", "kv", "attention_out"

_MASKED = -1e30  # finite, so that a row with no visible key averages instead of turning into NaN
_SCORES_BYTES = 1 << 26  # float32 scores that are held at a time where queries go through in blocks
_AVERAGED_QUERIES = 128  # whose weights are held at a time where they are averaged
_CUDNN_QUERIES = 1024  # of a block: cuDNN takes its mask as an array, [B, block, S]


# What the dimensions of a layer's cached keys and values are.
CACHE_AXES = ("batch", None, "kv_heads", "head_dim")


class LayerCache(NamedTuple):
    """Keys and values of one layer, [B, T, K, H] each."""

    keys: Array
    values: Array


def segment_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """[B, S, S] bool: a query sees keys of its own segment that are not later than itself."""
    s = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & (jnp.arange(s)[:, None] >= jnp.arange(s)[None, :])


def cache_mask(valid: Bool[Array, "B T"], index: Index, queries: int) -> Mask:
    """[B, S, T] bool for S queries written at slots index, index + 1, …: earlier slots and their own, where valid [B, T]."""
    slots = jnp.arange(valid.shape[1])
    own = jnp.asarray(index)[..., None] + jnp.arange(queries)
    return valid[:, None, :] & (slots <= own[..., None])


@jax.named_scope("write_cache")
def write_cache(cache: LayerCache, keys: NewKeys, values: NewKeys, index: Index) -> LayerCache:
    """Put [B, S, K, H] keys and values at slots index, index + 1, …; where rows have an index each, every row at its own."""

    def write(cached: Array, new: Array) -> Array:
        new = new.astype(cached.dtype)
        if jnp.ndim(index) == 0:
            return jax.lax.dynamic_update_slice(cached, new, (0, index, 0, 0))
        return jax.vmap(lambda row, entries, at: jax.lax.dynamic_update_slice(row, entries, (at, 0, 0)))(cached, new, index)

    return LayerCache(shard_cache(write(cache.keys, keys)), shard_cache(write(cache.values, values)))


def shard_cache(x: Array) -> Array:
    """Cached keys or values [B, T, K, H] where they belong on a mesh: rows and heads split, slots not."""
    return constrain(x, *CACHE_AXES)


@jax.named_scope("attention_weights")
def attention_weights(q: Queries, k: Keys, mask: Mask) -> Float[Array, "B K G S T"]:
    """Softmax weights [B, K, N / K, S, T] in float32; mask is [B, S, T]."""
    b, s, n, h = q.shape
    grouped = q.reshape(b, s, k.shape[2], n // k.shape[2], h)
    scores = jnp.einsum("BSKGH,BTKH->BKGST", grouped, k, preferred_element_type=jnp.float32) * h**-0.5
    return jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1)


@jax.named_scope("mean_attention_weights")
def mean_attention_weights(q: Queries, k: Keys, mask: Mask) -> Float[Array, "B S T"]:
    """`attention_weights` averaged over heads, [B, S, T] float32. Blocks of queries go through one after another."""

    def of_one(one: tuple[Array, Array]) -> Array:
        query, visible = one
        return attention_weights(query[:, None], k, visible[:, None]).mean((1, 2))[:, 0]

    by_query = jnp.moveaxis(q, 1, 0), jnp.moveaxis(mask, 1, 0)
    return jnp.moveaxis(jax.lax.map(of_one, by_query, batch_size=_AVERAGED_QUERIES), 0, 1)


@jax.named_scope("masked_attention")
def masked_attention(q: Queries, k: Keys, v: Keys, mask: Mask) -> Queries:
    """Attention of q [B, S, N, H] over k, v [B, T, K, H] where mask [B, S, T]; returns [B, S, N, H]."""
    weights = attention_weights(q, k, mask).astype(v.dtype)
    return jnp.einsum("BKGST,BTKH->BSKGH", weights, v).reshape(q.shape)


@jax.named_scope("cached_attention")
def cached_attention(q: Queries, cache: LayerCache, valid: Bool[Array, "B T"], index: Index) -> Queries:
    """Attention of queries [B, S, N, H] at slots index, index + 1, … over a cache that holds their own keys, see `cache_mask`.

    Many queries go through block by block, each with its whole softmax: memory follows the slots, not their product with the
    queries, and every number is the one that all queries at once would give.
    """

    def attend(start: Array, queries: Array) -> Array:
        mask = cache_mask(valid, index + start, queries.shape[1])
        return masked_attention(queries, cache.keys, cache.values, mask)

    scores_of_a_query = 4 * q.shape[0] * q.shape[2] * valid.shape[1]
    return _in_blocks(q, max(1, _SCORES_BYTES // scores_of_a_query), attend)


def _in_blocks(q: Array, largest: int, attend: Callable[[Array, Array], Array]) -> Array:
    """`attend(start, queries)` of blocks of at most `largest` queries, one after another; its results [B, S, N, H]."""
    b, s, n, h = q.shape
    count = -(-s // largest)
    if count == 1:
        return attend(jnp.zeros((), jnp.int32), q)
    block = -(-s // count)
    blocks = jnp.pad(q, ((0, 0), (0, count * block - s), (0, 0), (0, 0))).reshape(b, count, block, n, h)
    y = jax.lax.map(lambda one: attend(*one), (block * jnp.arange(count), jnp.moveaxis(blocks, 1, 0)))
    return jnp.moveaxis(y, 0, 1).reshape(b, count * block, n, h)[:, :s]


@jax.named_scope("causal_attention")
def causal_attention(q: Queries, k: NewKeys, v: NewKeys, segment_ids: Int[Array, "B S"], kernel: str = "auto") -> Queries:
    """Segment-aware causal attention of whole rows: q [B, S, N, H], k and v [B, S, K, H], segment_ids [B, S].

    `kernel` is one of config.ATTENTION_KERNELS; "auto" takes what the platform is best at.
    """
    kernel = _choose(kernel, q)
    if kernel == "splash":
        # It does not scale. Queries that are kept are not scaled again.
        return _splash(*_named(q * q.shape[-1] ** -0.5, k, v), segment_ids)
    q, k, v = _named(q, k, v)
    y = _cudnn(q, k, v, segment_ids) if kernel == "cudnn" else masked_attention(q, k, v, segment_mask(segment_ids))
    return checkpoint_name(y, ATTENTION_OUT)


def _named(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    return checkpoint_name(q, QUERIES), checkpoint_name(k, KEYS_AND_VALUES), checkpoint_name(v, KEYS_AND_VALUES)


def _choose(kernel: str, q: Array) -> str:
    if kernel != "auto":
        return kernel
    platform = target_platform()
    if platform == "tpu" and q.shape[1] % _LANES == 0 and q.shape[-1] % _LANES == 0:
        return "splash"
    if platform in ("gpu", "cuda", "rocm") and q.dtype != jnp.float32:
        return "cudnn"
    return "xla"


# --- the GPU kernel ---------------------------------------------------------------------------------------------------


def _cudnn(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """`causal_attention` by cuDNN, in blocks of queries, so that no mask [B, S, S] is ever there.

    The backward pass makes each block's mask again, and with it the block, and sums gradients of keys and values in float32.
    """
    keys, values = k.astype(jnp.float32), v.astype(jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend(start: Array, queries: Array) -> Array:
        own = start + jnp.arange(queries.shape[1])
        # Queries beyond the row fill its last block up; they see what its last position sees.
        ids = jnp.take(segment_ids, own, axis=1, mode="clip")
        mask = (ids[:, :, None] == segment_ids[:, None, :]) & (own[:, None] >= jnp.arange(segment_ids.shape[1]))
        of_keys = (keys.astype(k.dtype), values.astype(v.dtype))
        return jax.nn.dot_product_attention(queries, *of_keys, mask=mask[:, None], implementation="cudnn")

    return _in_blocks(q, _CUDNN_QUERIES, attend)


# --- the TPU kernel ---------------------------------------------------------------------------------------------------

_LANES = 128  # the kernel's blocks are multiples of it
_BLOCK = 1024  # queries and keys of a block, where they divide the row
_BLOCK_KEYS = 2048  # keys of a block in the backward kernel


def _splash(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """`causal_attention` of scaled queries by the splash kernel, on every device for its own rows, heads and queries.

    Keys and values are gathered over the `sequence` axis, their heads are never repeated. Off TPU the kernel is interpreted. It
    names what its backward pass needs itself.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q.shape[1:3]
    mesh = jax.sharding.get_abstract_mesh()
    rows, along, across = _axes(mesh, "batch"), _axes(mesh, "sequence"), _axes(mesh, "kv_heads")
    if k.shape[2] % _size(mesh, across):
        across = ()  # some device would hold part of a head
    queries = length // _size(mesh, along)
    if queries % _LANES:
        raise InputError(f"attention_kernel splash needs rows of a multiple of {_LANES} positions a device, found {queries}")
    block, keys = math.gcd(queries, _BLOCK), math.gcd(length, _BLOCK)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=keys,
        block_q_dkv=block,
        block_kv_dkv=math.gcd(length, _BLOCK_KEYS),
        block_kv_dkv_compute=keys,
        use_fused_bwd_kernel=True,  # one pass over the scores gives the gradients of q, k and v
    )
    attend = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * (heads // _size(mesh, across))),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=_size(mesh, along),
        residual_checkpoint_name=ATTENTION_OUT,
        interpret=target_platform() != "tpu",
    )

    def local(attend, q, k, v, query_ids, key_ids):
        def one_row(q, k, v, query_ids, key_ids):
            q, k, v = (jnp.swapaxes(x, 0, 1) for x in (q, k, v))  # heads first
            return jnp.swapaxes(_attend(attend, q, k, v, splash.SegmentIds(query_ids, key_ids)), 0, 1)

        return jax.vmap(one_row)(q, k, v, query_ids, key_ids)

    arguments = (attend, q, k, v, segment_ids, segment_ids)
    if _size(mesh, (*rows, *along, *across)) == 1:
        return local(*arguments)
    of_queries = PartitionSpec(rows or None, along or None, across or None)
    of_keys = PartitionSpec(rows or None, None, across or None)
    mask_spec = jax.sharding.NamedSharding(mesh, PartitionSpec(None, along or None))
    specs: tuple = (attend.manual_sharding_spec(mask_spec), of_queries, of_keys, of_keys, of_queries[:2], of_keys[:2])
    specs = tuple(PartitionSpec(*spec) if isinstance(spec, tuple) else spec for spec in specs)
    # The kernel does not say over which axes its result varies, hence no check of it.
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=of_queries, check_vma=False)(*arguments)


@jax.custom_vjp
def _attend(kernel: Any, q: Array, k: Array, v: Array, segment_ids: Any) -> Array:
    """The kernel on one row, q [N, S, H], k and v [K, T, H], with its backward pass as `_adding_parts` has it."""
    return kernel(q, k, v, segment_ids=segment_ids)


def _attend_forward(kernel: Any, q: Array, k: Array, v: Array, segment_ids: Any):
    return jax.vjp(functools.partial(kernel, segment_ids=segment_ids), q, k, v)


def _attend_backward(pull: Callable, gradient: Array):
    return None, *_adding_parts(pull, gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


def _adding_parts(pull: Callable, gradient: Array) -> Sequence[Array]:
    """`pull(gradient)`, the gradients of queries, keys and values, where sums over the first of four axes are additions.

    The kernel leaves the gradient of the queries in parts, one for each block of keys. Their sum is a reduction that the TPU
    compiler gives seven times the cycles of additions, a quarter of a layer's attention (v6e, rows of 16,384).
    """

    def evaluate(jaxpr: jex.core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))
        narrow: dict[Any, Any] = {}  # what wider values were made of
        for e in jaxpr.eqns:
            inputs = [x.val if isinstance(x, jex.core.Literal) else values[x] for x in e.invars]
            if e.primitive.name in ("jit", "pjit"):
                outputs = evaluate(e.params["jaxpr"].jaxpr, e.params["jaxpr"].consts, inputs)
            elif e.primitive.name == "reduce_sum" and e.params["axes"] == (0,) and inputs[0].ndim == 4:
                # Each part is widened by itself: all of them together would go through memory.
                parts = list(narrow.get(e.invars[0], inputs[0]))
                outputs = [functools.reduce(jnp.add, (part.astype(inputs[0].dtype) for part in parts))]
            else:
                with jax.named_scope(str(e.source_info.name_stack)):  # what a kernel is called in the compiled program
                    found = e.primitive.bind(*inputs, **e.primitive.get_bind_params(e.params))
                outputs = found if e.primitive.multiple_results else [found]
            values.update(zip(e.outvars, outputs, strict=True))
            if e.primitive.name == "convert_element_type":
                narrow[e.outvars[0]] = inputs[0]
        return [x.val if isinstance(x, jex.core.Literal) else values[x] for x in jaxpr.outvars]

    program = jax.make_jaxpr(pull)(gradient)
    return evaluate(program.jaxpr, program.consts, [gradient])


def _axes(mesh, name: str) -> tuple[str, ...]:
    """The axes of `mesh` that a logical dimension is really split over."""
    return tuple(axis for axis in LOGICAL_RULES[name] if mesh.shape.get(axis, 1) > 1)


def _size(mesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
