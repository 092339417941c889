"""The compiled text loop: transformer step -> language head -> id -> transformer step.

Letters: B rows, T cache slots, D width, V vocabulary, n new ids.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from nextstep_jax.config import NextStepConfig
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.generation.token_loop import Prompt, prefill_cache, transformer_step
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.models.transformer import Cache

Array = jax.Array

_BANNED = -1e30


class TextState(NamedTuple):
    """Where B rows of text stand.

    Attributes:
      cache, valid, positions, embedding: as in `token_loop.DecodeState`.
      ids: [B, n] int32 so far; `stop_ids` are kept in it.
      lengths: [B] how many ids of each row count, its stop id included.
      done: [B] rows that met a stop id.
      step: how many steps were taken.
    """

    cache: Cache
    valid: Array
    positions: Array
    embedding: Array
    ids: Array
    lengths: Array
    done: Array
    step: Array


def without_thinking(ids: Sequence[int], special: SpecialIds) -> list[int]:
    """Ids without what stands between the thinking tokens, and without these. Thinking that does not end goes to the end;
    what stands before an end without a beginning is thinking, too.
    """
    kept: list[int] = []
    thinking = False
    for id in ids:
        if id == special.begin_of_thinking:
            thinking = True
        elif id == special.end_of_thinking:
            kept, thinking = (kept if thinking else []), False
        elif not thinking:
            kept.append(id)
    return kept


@jax.named_scope("sample_ids")
def sample_ids(
    key: Array, logits: Float[Array, "B V"], temperature: Float[Array, ""], top_p: Float[Array, ""]
) -> Int[Array, " B"]:
    """Ids [B] drawn from logits [B, V]: the most likely at temperature 0, else from the smallest set of mass >= top_p."""
    greedy = jnp.argmax(logits, axis=-1)
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    kept = jnp.sum(mass < top_p, axis=-1, keepdims=True)  # index of the last kept logit
    least = jnp.take_along_axis(ordered, jnp.minimum(kept, logits.shape[-1] - 1), axis=-1)
    drawn = jax.random.categorical(key, jnp.where(scaled >= least, scaled, _BANNED), axis=-1)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "length"))
def prefill_ids(config: NextStepConfig, params: dict, prompt: Prompt, length: int) -> TextState:
    """Prefill and room for `length` new ids."""
    rows, prompt_length = prompt.text_ids.shape
    cache, valid, positions, embedding = prefill_cache(config, params, prompt, prompt_length + length)
    zeros = jnp.zeros(rows, jnp.int32)
    ids = jnp.zeros((rows, length), jnp.int32)
    return TextState(cache, valid, positions, embedding, ids, zeros, zeros.astype(bool), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def decode_ids(
    config: NextStepConfig,
    params: dict,
    state: TextState,
    keys: Array,
    temperature: Array,
    top_p: Array,
    allowed: Bool[Array, " V"],
    stop_ids: Int[Array, " k"],
    stop: Array,
) -> TextState:
    """Write ids until `stop` steps were taken or every row is done.

    Args:
      keys: [B] one key a row; step i draws with fold_in(key, i), so a row does not depend on its neighbours.
      temperature: 0 for greedy.
      top_p: in (0, 1].
      allowed: [V] bool, ids that may be written.
      stop_ids: [k] int32, ids that end a row.
    """
    model, variables = NextStep(config), {"params": params}

    def body(state: TextState) -> TextState:
        hidden, cache = transformer_step(config, params, state.embedding, state.positions, state.cache, state.valid)
        logits = jnp.where(allowed, model.apply(variables, hidden, method="logits"), _BANNED)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(keys)
        ids = jax.vmap(lambda key, row: sample_ids(key, row[None], temperature, top_p)[0])(step_keys, logits)
        return TextState(
            cache=cache,
            valid=state.valid,
            positions=state.positions + 1,
            embedding=model.apply(variables, ids, method="embed_text"),
            ids=jax.lax.dynamic_update_slice(state.ids, ids[:, None], (0, state.step)),
            lengths=jnp.where(state.done, state.lengths, state.step + 1),
            done=state.done | jnp.any(ids[:, None] == stop_ids, axis=-1),
            step=state.step + 1,
        )

    return jax.lax.while_loop(lambda s: (s.step < stop) & ~jnp.all(s.done), body, state)
