"""Two image tokens a transformer step, an experiment on the built-in model: what a guessed condition costs in ShapeEval.

    python -m benchmarks.two_tokens --threads 1 --clock cpu --json two_tokens.json

The paper names multi-token prediction as a way to fewer steps. Here the model stays as it is. A small network guesses, from the
condition of one image token and the token drawn from it, the condition that the transformer would give for the next; the flow
head draws that from the guess, and the transformer then reads both in one step. (EAGLE, Li et al. 2024, drafts so; nothing is
verified here, so an image always takes half the steps.)

The network learns from images that the model draws of training prompts: the mean squared error of conditions whose numbers have
a variance of 1. Beside it stands the control, for which the condition of the token before is taken unchanged.

  explained    of the next conditions' variance, of images that the network was not trained on
  compared     ShapeEval on held-out prompts from the same noise, against one token a step: benchmarks/post_training.py
  seconds      of a token of one image

Letters: B images, M branches, R = M * B rows, n tokens of C numbers, D width of a condition, E noise arrays of the sampler.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.post_training import compare, format_comparison, judge
from nextstep_jax.data import shapes
from nextstep_jax.data.sequence import image_prefix
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import align_rows, frame_prompt
from nextstep_jax.models.nextstep import NextStep

SIDE, BATCH, WIDTH, SAMPLES = 64, 60, 512, 1024  # pixels; images; of the network; pairs in a step of training


class Guess(NamedTuple):
    """The network: its layers, and mean and deviation [D] of a condition's numbers."""

    layers: list[tuple[jax.Array, jax.Array]]
    mean: jax.Array
    deviation: jax.Array

    def __call__(self, condition: jax.Array, token: jax.Array, place: jax.Array) -> jax.Array:
        """The next conditions [R, D] from conditions [R, D], tokens [R, C] and one-hot places [R, n / 2]."""
        plain = (condition - self.mean) / self.deviation
        x = jnp.concatenate([plain, token, place], axis=-1)
        for number, (kernel, bias) in enumerate(self.layers):
            x = x @ kernel + bias
            x = jax.nn.silu(x) if number + 1 < len(self.layers) else x
        return (plain + x) * self.deviation + self.mean


class Drawing(NamedTuple):
    """What a batch of images begins with."""

    state: token_loop.DecodeState
    noise: jax.Array
    guidance: jax.Array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4800, help=f"that the network learns from, a multiple of {BATCH}")
    parser.add_argument("--steps", type=int, default=2000, help="of its training")
    parser.add_argument("--prompts", type=int, default=20, help="of each category and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="of the prompts")
    measure.options(parser)
    a = parser.parse_args()
    measure.prepare(a)
    pipeline = Pipeline.from_checkpoint()
    conditions, tokens = collect(pipeline, a.images)
    guess, explained = train(conditions, tokens, a.steps)
    unchanged = guess._replace(layers=[(jnp.zeros_like(kernel), bias) for kernel, bias in guess.layers])
    ways = {"one token": None, "two tokens": guess, "two tokens, condition unchanged": unchanged}
    verdicts = {name: judge_all(pipeline, way, a.prompts, a.seeds) for name, way in ways.items()}
    compared = {name: compare(verdicts["one token"], verdicts[name]) for name in list(ways)[1:]}
    for name, found in compared.items():
        print(format_comparison(name, found), flush=True)
    setting = {name: value for name, value in vars(a).items() if name != "json"}
    figures = {"setting": setting, "explained": explained, "compared": compared}
    measure.report(figures | {"seconds": time_tokens(pipeline, guess, a.rounds)}, a.json)


# --- drawing ----------------------------------------------------------------------------------------------------------


def begin(pipeline: Pipeline, texts: Sequence[str], seeds: Sequence[int]) -> Drawing:
    """Prompts through the transformer, and noise of each image's own."""
    settings = pipeline.settings()
    how, (h, w) = settings.sampler_config(has_image=False), pipeline.grid(settings, SIDE, SIDE)
    texts = [*texts, *[settings.negative_prompt] * len(texts) * (how.branches - 1)]
    prefix = image_prefix(pipeline.special, h, w)
    rows = [frame_prompt([text, prefix], pipeline.special, pipeline.config, pipeline.vocabulary) for text in texts]
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    noise = token_loop.draw_noise(keys, h * w, how.num_noise_draws, pipeline.config.token_channels)
    state = token_loop.prefill(pipeline.config, pipeline.params, align_rows(rows), how.branches, h * w)
    return Drawing(state, noise, settings.guidance(h * w))


def draw(pipeline: Pipeline, guess: Guess | None, drawing: Drawing) -> tuple[jax.Array, jax.Array | None]:
    """Tokens [B, n, C], and where no condition is guessed the conditions [n, R, D]."""
    how = pipeline.settings().sampler_config(has_image=False)
    if guess is None:
        return draw_one_by_one(pipeline.config, how, pipeline.params, *drawing)
    return draw_in_pairs(pipeline.config, how, pipeline.params, guess, *drawing), None


@functools.partial(jax.jit, static_argnames=("config", "how"))
def draw_one_by_one(config, how, params, state, noise, guidance):
    """Tokens [B, n, C] and conditions [n, R, D]."""
    times = token_loop.embed_times(config, how, params)
    step = functools.partial(token_loop.sample_step, config, how, params, times)
    state, conditions = jax.lax.scan(lambda state, inputs: step(state, *inputs), state, (noise, guidance))
    return state.tokens, conditions


@functools.partial(jax.jit, static_argnames=("config", "how"))
def draw_in_pairs(config, how, params, guess, state, noise, guidance):
    """Tokens [B, n, C], the second of each pair from a guessed condition."""
    model, variables, pairs = NextStep(config), {"params": params}, len(noise) // 2
    times = token_loop.embed_times(config, how, params)
    flow = functools.partial(token_loop.flow_step, config, how, params)

    def pair(condition, k):
        """Tokens [B, 2, C] from the first one's condition."""
        first = flow(condition, times, noise[2 * k], *guidance[2 * k])
        place = jnp.broadcast_to(jax.nn.one_hot(k, pairs), (len(condition), pairs))
        guessed = guess(condition, jnp.tile(first, (how.branches, 1)), place)
        return jnp.stack([first, flow(guessed, times, noise[2 * k + 1], *guidance[2 * k + 1])], axis=1)

    def step(carry, k):
        before, positions, cache = carry
        embedded = model.apply(variables, jnp.tile(before, (how.branches, 1, 1)), method="embed_image")
        hidden, cache = model.apply(variables, embedded, positions, cache, state.valid, method="extend")
        tokens = pair(model.apply(variables, hidden[:, -1], method="project_out"), k)
        return (tokens, positions + 2, cache), tokens

    condition, cache = token_loop.next_condition(config, params, state)
    first = pair(condition, 0)
    positions = state.positions[:, None] + jnp.array([1, 2])
    _, others = jax.lax.scan(step, (first, positions, cache), jnp.arange(1, pairs))
    return jnp.concatenate([first[None], others]).swapaxes(0, 1).reshape(state.tokens.shape)


# --- the network ------------------------------------------------------------------------------------------------------


def collect(pipeline: Pipeline, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Conditions [images * M, n, D] and tokens [images * M, n, C] of images of training prompts."""
    asked = (shapes.prompts("train", category, -(-count // len(shapes.CATEGORIES))) for category in shapes.CATEGORIES)
    texts = [prompt.text for group in zip(*asked, strict=True) for prompt in group]
    conditions, tokens = [], []
    for first in range(0, count, BATCH):
        found, given = draw(pipeline, None, begin(pipeline, texts[first : first + BATCH], range(first, first + BATCH)))
        conditions.append(np.asarray(given).swapaxes(0, 1))
        tokens.append(np.tile(found, (conditions[-1].shape[0] // BATCH, 1, 1)))
    return np.concatenate(conditions), np.concatenate(tokens)


def train(conditions: np.ndarray, tokens: np.ndarray, steps: int) -> tuple[Guess, float]:
    """The network after so many steps, and what it explains of the last twentieth of the images, held back."""
    rows, n, width = conditions.shape
    mean, deviation = conditions.mean((0, 1)), conditions.std((0, 1)) + 1e-6
    places = np.broadcast_to(np.eye(n // 2, dtype=np.float32), (rows, n // 2, n // 2))
    inputs = (conditions[:, ::2], tokens[:, ::2], places)
    kept = rows - rows // 20
    learned, held = ([x[part].reshape(-1, x.shape[-1]) for x in (*inputs, conditions[:, 1::2])] for part in _split(kept))
    sizes = [width + tokens.shape[-1] + n // 2, WIDTH, WIDTH, width]
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    layers = [
        (jax.random.normal(key, (a, b)) / np.sqrt(a), jnp.zeros(b)) for key, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=1e-4)

    def error(layers, batch):
        *given, wanted = batch
        return jnp.mean(((Guess(layers, mean, deviation)(*given) - wanted) / deviation) ** 2)

    @jax.jit
    def update(layers, moments, batch):
        changes, moments = optimizer.update(jax.grad(error)(layers, batch), moments, layers)
        return optax.apply_updates(layers, changes), moments

    moments, order = optimizer.init(layers), np.random.default_rng(0)
    for _ in range(steps):
        at = order.integers(len(learned[0]), size=SAMPLES)
        layers, moments = update(layers, moments, [x[at] for x in learned])
    explained = 1 - float(error(layers, held) / np.mean(((held[-1] - held[-1].mean(0)) / deviation) ** 2))
    return Guess(layers, jnp.asarray(mean), jnp.asarray(deviation)), explained


def _split(kept: int) -> tuple[slice, slice]:
    return slice(None, kept), slice(kept, None)


# --- figures ----------------------------------------------------------------------------------------------------------


def judge_all(pipeline: Pipeline, guess: Guess | None, count: int, seeds: Sequence[int]) -> dict[str, dict]:
    """By category the verdicts on `count` held-out prompts of each seed, every one with noise of its own."""
    found = {}
    for category in shapes.CATEGORIES:
        asked = [(seed * 100_000 + k, p) for seed in seeds for k, p in enumerate(_held_out(category, count, seed))]
        tokens, _ = draw(pipeline, guess, begin(pipeline, [p.text for _, p in asked], [seed for seed, _ in asked]))
        side = SIDE // pipeline.token_pixels
        images = pipeline.decode_batch(np.asarray(tokens), side, side)
        found[category] = {"verdicts": [judge(p, [image]) for (_, p), image in zip(asked, images, strict=True)]}
    return found


def _held_out(category: str, count: int, seed: int) -> list[shapes.Prompt]:
    return shapes.prompts("heldout", category, count, seed=seed)


def time_tokens(pipeline: Pipeline, guess: Guess, rounds: int) -> dict[str, float]:
    """Seconds of a token of one image, drawn alone."""
    one = begin(pipeline, ["a red circle"], [0])
    runs = {"one token": lambda: draw(pipeline, None, one)[0], "two tokens": lambda: draw(pipeline, guess, one)[0]}
    return {name: seconds / len(one.noise) for name, seconds in measure.alternate(runs, rounds).items()}


if __name__ == "__main__":
    main()
