"""Does attention to words find the objects? On the built-in model, 40 prompts a line.

    python -m benchmarks.word_attention

Prompts are "a red circle left of a blue square" and the like, with two shapes and two colors. Of each image: does the word of
the object named first have a larger share of its attention on that object's half than the other object's word has there? For
shape words and color words, with the weights themselves and with what is shown of them. The block was settled on with these
prompts; tests/generation/test_word_attention.py has others.
"""

import itertools
import random

import numpy as np

from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.word_attention import contrast, word_attention

COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
LINES = (("left of", 0), ("left of", 40), ("right of", 120), ("above", 80), ("below", 160))


def first_half(maps: np.ndarray, relation: str) -> np.ndarray:
    """Of maps [W, h, w], the part on the half of the object that is named first."""
    h, w = maps.shape[1] // 2, maps.shape[2] // 2
    return {"left of": maps[..., :w], "right of": maps[..., w:], "above": maps[:, :h], "below": maps[:, h:]}[relation]


def main() -> None:
    pipeline = Pipeline.from_checkpoint()
    pairs = list(itertools.product(itertools.permutations(COLORS, 2), itertools.permutations(SHAPES, 2)))
    random.Random(0).shuffle(pairs)
    for relation, first in LINES:
        prompts = [f"a {a} {s} {relation} a {b} {t}" for (a, b), (s, t) in pairs[first : first + 40]]
        wins = []
        for prompt, image in zip(prompts, pipeline.generate(prompts, seed=0), strict=True):
            weights = word_attention(pipeline, prompt, pipeline.settings(), image.tokens, 4, 4).weights
            for maps in (weights, contrast(weights)):
                maps = maps.reshape(-1, 4, 4)
                share = first_half(maps, relation).sum((1, 2)) / maps.sum((1, 2))
                wins.append((share[2] > share[-1], share[1] > share[-2]))
        shape, color = np.asarray(wins).reshape(len(prompts), 2, 2).sum(0).T
        print(f"{relation:8} shapes {shape[0]} and shown {shape[1]}, colors {color[0]} and shown {color[1]}, of {len(prompts)}")


if __name__ == "__main__":
    main()
