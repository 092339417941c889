"""Two tokens a step: the first of each pair is the model's own, whatever was guessed before."""

import jax.numpy as jnp
import numpy as np

from benchmarks import two_tokens
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.pipeline import Pipeline


def test_first_tokens_of_pairs_follow_from_all_before_them():
    pipeline = Pipeline.from_checkpoint()
    how, width, pairs = pipeline.settings(steps=2).sampler_config(has_image=False), pipeline.config.transformer.width, 8
    sizes = [width + pipeline.config.token_channels + pairs, width]
    random = np.random.default_rng(0)
    layers = [(jnp.asarray(0.1 * random.normal(size=sizes), jnp.float32), jnp.zeros(width))]
    guess = two_tokens.Guess(layers, jnp.zeros(width), jnp.ones(width))
    begun = two_tokens.begin(pipeline, ["two red circles", "a blue square"], [0, 1])
    noise = begun.noise[:, :1]
    found = two_tokens.draw_in_pairs(pipeline.config, how, pipeline.params, guess, begun.state, noise, begun.guidance)

    times, state = token_loop.embed_times(pipeline.config, how, pipeline.params), begun.state
    for k in range(2 * pairs):
        condition, cache = token_loop.next_condition(pipeline.config, pipeline.params, state)
        token = token_loop.flow_step(pipeline.config, how, pipeline.params, condition, times, noise[k], *begun.guidance[k])
        assert np.allclose(token, found[:, k], atol=1e-4) == (k % 2 == 0)
        state = token_loop.append_token(pipeline.config, pipeline.params, state, cache, found[:, k], how.branches)
