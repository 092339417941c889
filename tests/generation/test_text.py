"""The text loop against the model run on whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.generation import text
from nextstep_jax.generation.token_loop import Prompt
from nextstep_jax.models.nextstep import NextStep, empty_batch
from nextstep_jax.models.param_layouts import fuse_projections


@pytest.fixture(scope="module")
def writer(tiny_config, tiny_params):
    config, params = tiny_config.with_transformer(fused_projections=True), fuse_projections(tiny_params)

    def write(ids, count=5, temperature=0.0, top_p=1.0, stop=(), seed=0, banned=()):
        rows, length = np.asarray(ids).shape
        channels = config.token_channels
        prompt = Prompt(
            np.asarray(ids, np.int32), np.zeros((rows, length, channels)), np.zeros((rows, length), bool), np.full(rows, length)
        )
        allowed = np.ones(config.transformer.vocab_size, bool)
        allowed[list(banned)] = False
        keys = jax.random.split(jax.random.key(seed), rows)
        state = text.prefill_ids(config, params, prompt, 8)
        stops = np.asarray(stop or [-1], np.int32)
        state = text.decode_ids(config, params, state, keys, temperature, top_p, allowed, stops, count)
        return np.asarray(state.ids), np.asarray(state.lengths)

    return write


def test_greedy_text_is_the_argmax_of_whole_passes(writer, tiny_config, tiny_params):
    prompt, count = [3, 14, 15], 4
    ids, lengths = writer([prompt], count)
    written = ids[0, :count].tolist()
    assert lengths.tolist() == [count]
    batch = empty_batch(tiny_config, 1, len(prompt) + count)
    sequence = jnp.asarray([prompt + written])
    batch = type(batch)(**{**vars(batch), "text_ids": sequence, "positions": jnp.arange(sequence.shape[1])[None]})
    model, variables = NextStep(tiny_config), {"params": tiny_params}
    logits = model.apply(variables, model.apply(variables, batch), method="logits")[0]
    assert np.argmax(logits[len(prompt) - 1 : -1], axis=-1).tolist() == written


def test_stop_ids_end_a_row_and_banned_ids_are_not_written(writer):
    ids, _ = writer([[3, 14, 15], [9, 2, 6]])
    stop = int(ids[0, 1])
    stopped, lengths = writer([[3, 14, 15], [9, 2, 6]], stop=[stop])
    assert lengths[0] == ids[0].tolist().index(stop) + 1
    np.testing.assert_array_equal(stopped[1, : lengths[1]], ids[1, : lengths[1]])
    without, _ = writer([[3, 14, 15]], banned=[int(ids[0, 0])])
    assert without[0, 0] != ids[0, 0]


def test_rows_draw_from_their_own_keys(writer):
    together, _ = writer([[3, 14], [9, 2]], temperature=1.0)
    again, _ = writer([[3, 14], [5, 5]], temperature=1.0)
    np.testing.assert_array_equal(together[0], again[0])
    other, _ = writer([[3, 14], [9, 2]], temperature=1.0, seed=1)
    assert (together[:, :5] != other[:, :5]).any()


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 300)

    def drawn(top_p):
        return {int(i) for i in jax.vmap(lambda key: text.sample_ids(key, logits, 1.0, top_p)[0])(keys)}

    assert drawn(0.5) == {0} and drawn(0.6) == {0, 1} and drawn(0.9) == {0, 1, 2} and drawn(1.0) == {0, 1, 2, 3}
