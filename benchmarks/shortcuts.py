"""What cheaper settings change: fewer or other flow-head steps, fewer steps late in the image, int8 weights.

    python -m benchmarks.shortcuts --json shortcuts.json [--checkpoint DIR] [--size 512]

Every setting draws the same prompts from the same noise; the reference is the converged ODE (`heun` with `--reference` steps,
weights as stored). `first_token` and `all_tokens` are root-mean-square distances of image tokens from the reference's, whose
own size is printed: the first token is sampled from the same condition, later ones also carry on the difference of those
before. Seconds are those of the prompt and the token loop; `times_faster` is against 20 Euler steps. To score a setting:

    nextstep-jax evaluate shapes --sampler ab2 --steps 10 --dtype int8
"""

import argparse

import numpy as np

from benchmarks import measure

PROMPTS = (
    "a red circle left of a blue square",
    "three purple diamonds",
    "a green triangle above a yellow cross",
    "a small star",
)
SETTINGS = {
    "ode 20": {"sampler": "ode", "steps": 20},
    "ode 10": {"sampler": "ode", "steps": 10},
    "ab2 20": {"sampler": "ab2", "steps": 20},
    "ab2 10": {"sampler": "ab2", "steps": 10},
    "ab2 6": {"sampler": "ab2", "steps": 6},
    "heun 10": {"sampler": "heun", "steps": 10},
    "heun 5": {"sampler": "heun", "steps": 5},
    "ode 20 to 8": {"sampler": "ode", "steps": 20, "last_steps": 8},
    "ab2 12 to 6": {"sampler": "ab2", "steps": 12, "last_steps": 6},
    "ode 20, int8": {"sampler": "ode", "steps": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a checkpoint [the built-in model]")
    parser.add_argument("--size", type=int, help="side in pixels [the checkpoint's]")
    parser.add_argument("--reference", type=int, default=100, help="steps of the converged ODE")
    measure.options(parser)
    arguments = parser.parse_args()
    measure.prepare(arguments)
    measure.report(run(arguments), arguments.json)


def run(a: argparse.Namespace) -> dict:
    """Distances and seconds of each setting."""
    import jax

    from nextstep_jax.generation.pipeline import Pipeline

    exact, small = Pipeline.from_checkpoint(a.checkpoint), Pipeline.from_checkpoint(a.checkpoint, dtype="int8")
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(len(PROMPTS)))

    def tokens(pipeline, **changes):
        settings = pipeline.settings(size=a.size, **changes)
        h, w = pipeline.grid(settings)
        branches = [[[prompt], [settings.negative], [settings.negative]] for prompt in PROMPTS]
        return pipeline.sample_tokens(branches, h, w, keys, settings, False)

    def pipeline_of(name: str):
        return small if "int8" in name else exact

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x - y))))

    reference = tokens(exact, sampler="heun", steps=a.reference)
    drawn = {name: tokens(pipeline_of(name), **changes) for name, changes in SETTINGS.items()}
    runs = {name: lambda name=name: tokens(pipeline_of(name), **SETTINGS[name]) for name in SETTINGS}
    seconds = measure.alternate(runs, a.rounds)
    rows = {
        name: {
            "first_token": distance(found[:, 0], reference[:, 0]),
            "all_tokens": distance(found, reference),
            "seconds": seconds[name],
            "times_faster": seconds["ode 20"] / seconds[name],
        }
        for name, found in drawn.items()
    }
    weights = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(p.params)) for name, p in (("stored", exact), ("int8", small))}
    size = float(np.sqrt(np.mean(np.square(reference))))
    return {"model": exact.name, "reference_size": size, "settings": rows, "bytes": weights}


if __name__ == "__main__":
    main()
