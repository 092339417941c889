"""What cheaper settings change: fewer or other flow-head steps, fewer steps late in the image, int8 weights,
and the jumps of a map head where the checkpoint has one.

    python -m benchmarks.shortcuts --json shortcuts.json [--checkpoint DIR] [--size 512]

Every setting draws the same prompts from the same noise; the reference is the converged ODE (`heun` with `--reference` steps,
weights as stored). `first_token` and `all_tokens` are root-mean-square distances of image tokens from the reference's, whose
own size is printed: the first token is sampled from the same condition, later ones also carry on the difference of those
before. `goldens` is the same distance for the PyTorch release's model in tests/goldens, every token from its stored condition,
and `release, int8` with the release's own sampler against the tokens that the release drew (the noise it adds at every
step leaves nothing to compare another sampler with). Seconds are those of the prompt and the token loop; `times_faster` is
against 20 Euler steps. To score a setting:

    nextstep-jax evaluate shapes --sampler ab2 --steps 10 --dtype int8

or several beside the checkpoint's own, with intervals: benchmarks/shortcut_scores.py.
"""

import argparse
import pathlib

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
    "ode 20 to 8": {"sampler": "ode", "steps": 20, "final_steps": 8},
    "ab2 12 to 6": {"sampler": "ab2", "steps": 12, "final_steps": 6},
    "ode 20, guidance 0.1 to 0.8": {"sampler": "ode", "steps": 20, "guidance_start": 0.1, "guidance_end": 0.8},
    "ode 20, int8": {"sampler": "ode", "steps": 20},
}
OF_MAP_HEADS = {f"map {steps}": {"sampler": "map", "steps": steps} for steps in (1, 2, 4)}


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
        settings = pipeline.settings(image_size=a.size, **changes)
        h, w = pipeline.grid(settings)
        branches = [[[prompt], [settings.negative_prompt], [settings.negative_prompt]] for prompt in PROMPTS]
        return pipeline.sample_tokens(branches, h, w, keys, settings, False)

    def pipeline_of(name: str):
        return small if "int8" in name else exact

    settings = SETTINGS | (OF_MAP_HEADS if exact.config.map_head else {})
    reference = tokens(exact, sampler="heun", steps=a.reference)
    drawn = {name: tokens(pipeline_of(name), **changes) for name, changes in settings.items()}
    runs = {name: lambda name=name: tokens(pipeline_of(name), **settings[name]) for name in settings}
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
    of_goldens = golden_distances(a.reference)
    for name, row in rows.items():
        row["goldens"] = of_goldens.get(name)
    weights = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(p.params)) for name, p in (("stored", exact), ("int8", small))}
    release = {name: of_goldens[name] for name in ("release, float32", "release, int8", "goldens_size")}
    return {"model": exact.name, "reference_size": distance(reference, 0), "settings": rows, "bytes": weights, **release}


def distance(x: np.ndarray, y: np.ndarray | int) -> float:
    return float(np.sqrt(np.mean(np.square(x - y))))


def golden_distances(reference_steps: int) -> dict[str, float]:
    """Distances of the golden model's tokens at guidance 3 from the converged ODE's, by the names of SETTINGS; and, with the
    release's sampler, from those of the release.
    """
    import jax

    from nextstep_jax.conversion.parity.goldens import Goldens
    from nextstep_jax.conversion.parity.integration import integrate_tokens, plan_steps
    from nextstep_jax.conversion.parity.reference import Reference, run_on_vectors
    from nextstep_jax.generation.config import GenerationConfig
    from nextstep_jax.models.param_layouts import fuse_projections, quantize_kernels

    goldens = Goldens(pathlib.Path(__file__).parents[1] / "tests" / "goldens")
    reference, case = Reference.load(goldens), goldens.arrays("t2i_cfg3_const")
    asked = reference.cases["e2e"]["t2i_cfg3_const"]
    conditions, noise = case["c"], case["noise"]
    projected = run_on_vectors(reference, "project_out", conditions.reshape(-1, conditions.shape[-1]))
    projected = projected.reshape(conditions.shape)
    guidance = GenerationConfig(cfg=asked["cfg"], schedule="constant").guidance(conditions.shape[1])
    quantized = jax.jit(lambda p: fuse_projections(quantize_kernels(p)))(reference.params)

    def draw(sampler: str, steps: int, params=reference.params) -> np.ndarray:
        planned = plan_steps(sampler, steps, 1.0)
        return integrate_tokens(reference.config, params, planned, noise[:, : planned[2]], projected, 2, guidance, "noise")

    converged, release = draw("heun", reference_steps), case["tokens"]
    found = {
        name: distance(draw(one["sampler"], one["steps"], quantized if "int8" in name else reference.params), converged)
        for name, one in SETTINGS.items()
        if not {"final_steps", "guidance_start"} & one.keys()
    }
    own = "august2025", asked["num_sampling_steps"]
    found |= {"release, float32": distance(draw(*own), release), "release, int8": distance(draw(*own, quantized), release)}
    return found | {"goldens_size": distance(release, 0)}


if __name__ == "__main__":
    main()
