"""The measurements and trainings behind notebooks/paper.ipynb: the paper's central claims, at small scale.

    python -m benchmarks.paper_claims [PART ...] [--results DIR] [--work DIR] [--tiny]

    statistics   mean and variance of every token under guidance, with and without per-token normalization (Figure 5)
    latents      how the built-in tokenizer's latents are spread (Figure 7)
    tokenizers   trains tokenizers with different gamma, and reconstructs from noisy latents (Figure 6)
    generators   trains models on these tokenizers' latents and with flow heads of three sizes (Figure 6, Tables 6 and 7)

Every result is a small JSON file that says what it was made with. One that is there and was made with the same settings (and,
for the first two parts, with the same built-in model) is not made again, and an interrupted training continues. On one CPU core
the parts take about 2, 1, 13 and 24 minutes. --tiny shrinks all to a trial that proves nothing.
"""

import argparse
import functools
import hashlib
import pathlib
import random
from typing import Any

import jax
import numpy as np

from benchmarks.result_files import result, rounded
from nextstep_jax import checkpoints
from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.configs import paper_generator, paper_tokenizer
from nextstep_jax.data import shapes
from nextstep_jax.data.build import build
from nextstep_jax.data.encode import encode
from nextstep_jax.data.images import to_float
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.shards import INDEX
from nextstep_jax.evaluation.latents import distance_to_normal, encode_latents, reconstruct_noisy
from nextstep_jax.evaluation.reconstruction import psnr, ssim
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.evaluation.shapes import evaluate
from nextstep_jax.evaluation.traces import token_statistics, trace
from nextstep_jax.generation.load import builtin_checkpoint
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.rewards.scene_reader import parse_scene
from nextstep_jax.training.loop import train
from nextstep_jax.training.run_logs import read_metrics

PARTS = ("statistics", "latents", "tokenizers", "generators")
RESULTS = pathlib.Path(__file__).parents[1] / "notebooks" / "paper_results"

GUIDANCE = (1.5, 3.0, 5.0, 10.0)
GAMMAS = (0.0, 0.3, 1.0)
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
HEADS = {"small": (2, 64), "base": (4, 96), "large": (8, 128)}  # layers x width, in the paper's proportions
HEAD_GAMMA = 0.3  # of the tokenizer behind the models that differ in their head
EDGES = np.linspace(-5, 5, 81)  # of histograms
SEEDS = (0, 1)  # of generations; trainings use their config's


def builtin_digest() -> str:
    """Which built-in model it is."""
    return hashlib.sha256((builtin_checkpoint() / "manifest.json").read_bytes()).hexdigest()[:16]


# --- Figures 5 and 7: the built-in model ------------------------------------------------------------------------------


def measure_statistics(per_category: int) -> dict[str, Any]:
    """Statistics of every token, and ShapeEval, for each strength of guidance with and without normalization."""
    pipeline, runs = Pipeline.from_checkpoint(), []
    prompts = [prompt for name in shapes.CATEGORIES for prompt in shapes.prompts("heldout", name, per_category)]
    for cfg in GUIDANCE:
        for normalize in (True, False):
            settings = pipeline.settings(cfg=cfg, normalize_tokens=normalize)
            traces = [
                trace(pipeline, [prompt.text for prompt in prompts[i : i + 14]], seed=seed, settings=settings)
                for seed in SEEDS
                for i in range(0, len(prompts), 14)
            ]
            pixels = [image for one in traces for image in pipeline.decode_images(one.tokens, one.h, one.w)]
            run: dict[str, Any] = {"cfg": cfg, "normalize": normalize}
            for name in ("sampled", "tokens"):
                mean, variance = token_statistics(np.concatenate([getattr(one, name) for one in traces]))
                run[name] = {"mean": rounded(mean), "variance": rounded(variance)}
            report = evaluate(prompts * len(SEEDS), pixels)
            runs.append(run | {"shape_eval": round(report["overall"], 4), "images": report["n"]})
    return {"runs": runs}


def heldout_images(count: int) -> np.ndarray:
    """Held-out images [count, 64, 64, 3] in [-1, 1]."""
    return np.stack([to_float(shapes.render(shapes.sample_scene(i, split="heldout"))) for i in range(count)])


def spread(latents: np.ndarray) -> dict[str, Any]:
    """Histogram over EDGES and distance from the standard normal distribution."""
    counts, _ = np.histogram(latents, EDGES)
    return {
        "counts": counts.tolist(),
        "numbers": latents.size,
        **{k: round(v, 5) for k, v in distance_to_normal(latents).items()},
    }


def measure_latents(count: int) -> dict[str, Any]:
    """Latents of the built-in tokenizer, with per-token normalization and without it (then scaled as a whole)."""
    pipeline, images = Pipeline.from_checkpoint(), heldout_images(count)
    arguments = (pipeline.tokenizer_config, pipeline.tokenizer_params, images)
    normalized, raw = encode_latents(*arguments), encode_latents(*arguments, normalize=False)
    return {"edges": EDGES.tolist(), "normalized": spread(normalized), "raw": spread((raw - raw.mean()) / raw.std())}


# --- Figure 6: tokenizers ---------------------------------------------------------------------------------------------


def train_tokenizer(gamma: float, work: pathlib.Path, steps: int, tiny: bool) -> pathlib.Path:
    """The checkpoint folder of a tokenizer trained with noise up to gamma; from where it stopped, if it did."""
    folder = work / f"tokenizer_gamma_{gamma:g}_steps_{steps}"
    if not (folder / "export").exists():
        config = paper_tokenizer.get_config("laptop" if tiny else None)
        config.image_tokenizer.perturbation = gamma
        config.steps = steps
        train(config, folder)
    return folder / "export"


def load_tokenizer(checkpoint: pathlib.Path) -> tuple[ImageTokenizerConfig, dict]:
    config = ImageTokenizerConfig.from_released(checkpoints.load_config(checkpoint)["image_tokenizer"], str(checkpoint))
    return config, checkpoints.load_params(checkpoint, subtree="image_tokenizer")


def inventory(scene: shapes.Scene) -> list[tuple[str, str]]:
    return sorted((thing.shape, thing.color) for thing in scene.objects)


def measure_tokenizer(checkpoint: pathlib.Path, count: int) -> dict[str, Any]:
    """Reconstruction against noise in the latents: PSNR, SSIM, and the share of images still read as what they show."""
    config, params = load_tokenizer(checkpoint)
    images = heldout_images(count)
    made = reconstruct_noisy(config, params, images, STRENGTHS)
    scenes = [shapes.sample_scene(i, split="heldout") for i in range(count)]
    levels = np.round((made + 1) * 127.5).astype(np.uint8)
    alike = [
        np.mean([inventory(parse_scene(image)) == inventory(scene) for image, scene in zip(some, scenes, strict=True)])
        for some in levels
    ]
    return {
        "strengths": list(STRENGTHS),
        "psnr": rounded(psnr(images, some).mean() for some in made),
        "ssim": rounded(ssim(images, some).mean() for some in made),
        "scene_accuracy": rounded(alike),
        "images": count,
        "latents": spread(encode_latents(config, params, images)),
    }


# --- Figure 6, Tables 6 and 7: models -----------------------------------------------------------------------------------


class OneObject:
    """Captioned images of a single object: a source for `build`."""

    def __init__(self, split: str, length: int):
        self.name, self._split, self._scenes, index = f"one-object-{split}", split, [], 0
        while len(self._scenes) < length:
            scene = shapes.sample_scene(index, split=split)
            if len(scene.objects) == 1 and scene.word is None:
                self._scenes.append(scene)
            index += 1

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        scene, key = self._scenes[index], f"{self.name}/{index}"
        text = shapes.caption(scene, random.Random(key))
        return Sample((TextPart(text), ImagePart.from_pixels(shapes.render(scene))), "pair", key)

    def fingerprint(self, start: int, stop: int) -> str:
        return f"{self.name} {start} {stop}"


def make_data(work: pathlib.Path, tokenizer: pathlib.Path, gamma: float, sizes: dict[str, int]) -> pathlib.Path:
    """A folder with the datasets `pair` and `heldout` as latents of a tokenizer."""
    config, params = load_tokenizer(tokenizer)
    root = work / "data" / tokenizer.parent.name
    for name, split in (("pair", "train"), ("heldout", "heldout")):
        pixels = work / "pixels" / f"{name}_{sizes[name]}"
        if not (pixels / INDEX).exists():
            build(OneObject(split, sizes[name]), pixels)
        encode(
            pixels,
            functools.partial(encode_latents, config, params),
            root / name,
            area=64,
            batch=64,
            dtype="float32",
            encoder={"gamma": gamma},
        )
    return root


def train_generator(
    gamma: float, head: str, work: pathlib.Path, tokenizer: pathlib.Path, data: pathlib.Path, steps: int, tiny: bool
) -> pathlib.Path:
    """The run's folder of a model on a tokenizer's latents, its export inside; from where it stopped, if it did."""
    folder = work / f"generator_gamma_{gamma:g}_head_{head}_steps_{steps}"
    if not (folder / "export").exists():
        config = paper_generator.get_config("laptop" if tiny else None)
        layers, width = HEADS[head]
        config.model.flow_head.update({"layers": layers, "width": width})
        config.image_tokenizer_checkpoint, config.data.root = str(tokenizer), str(data)
        config.steps = steps
        train(config, folder)
    return folder


def measure_generator(folder: pathlib.Path, per_category: int) -> dict[str, Any]:
    """ShapeEval on held-out prompts of one object, and what the run reported."""
    pipeline, metrics = Pipeline.from_checkpoint(folder / "export"), read_metrics(folder)
    prompts = [prompt for name in ("single object", "colors") for prompt in shapes.prompts("heldout", name, per_category)]
    responses = [response for seed in SEEDS for response in generate_responses(pipeline, prompts, seed=seed)]
    report = evaluate(prompts * len(SEEDS), responses)
    pairs = [
        (prompt.truth, inventory(parse_scene(response)))
        for prompt, response in zip(prompts * len(SEEDS), responses, strict=True)
    ]
    right = {"shape": 0, "color": 0}
    for truth, found in pairs:
        wanted = truth.mentions[0]
        right["shape"] += wanted.shape in [shape for shape, _ in found]
        right["color"] += wanted.color in (None, *[color for _, color in found])
    losses = {name: rounded(metrics[name][1]) for name in ("image_loss", "validation/image_loss") if name in metrics}
    return {
        "head_parameters": sum(leaf.size for leaf in jax.tree.leaves(pipeline.params["flow_head"])),
        "model_parameters": sum(leaf.size for leaf in jax.tree.leaves(pipeline.params)),
        "images": report["n"],
        "correct": report["correct"],
        "categories": report["categories"],
        "right_shape": right["shape"] / len(pairs),
        "right_color": right["color"] / len(pairs),
        "steps_of_losses": metrics["image_loss"][0].tolist(),
        "losses": losses,
        "step_seconds": round(1 / float(np.median(metrics["steps_per_second"][1])), 4),
    }


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [all]")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/paper"), help="folder of trainings and data")
    parser.add_argument("--tokenizer-steps", type=int, help="of each tokenizer's training [its config's]")
    parser.add_argument("--generator-steps", type=int, help="of each model's training [its config's]")
    parser.add_argument("--tiny", action="store_true", help="a trial that proves nothing")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts, tiny = args.parts or PARTS, args.tiny
    per_category, count = (2, 8) if tiny else (8, 256)
    sizes = {"pair": 32, "heldout": 8} if tiny else {"pair": 10_000, "heldout": 256}
    builtin = {"builtin": builtin_digest(), "tiny": tiny}
    if "statistics" in parts:
        made_with = builtin | {"guidance": GUIDANCE, "seeds": SEEDS, "prompts_per_category": per_category}
        result(args.results / "statistics.json", made_with, functools.partial(measure_statistics, per_category))
    if "latents" in parts:
        made_with = builtin | {"images": count}
        result(args.results / "latents.json", made_with, functools.partial(measure_latents, count))

    config = paper_tokenizer.get_config()
    tokenizer_steps = args.tokenizer_steps or (4 if tiny else config.steps)
    trained = {"tiny": tiny, "tokenizer_steps": tokenizer_steps, "seed": config.seed}
    for gamma in GAMMAS if "tokenizers" in parts else ():

        def make(gamma=gamma):
            return measure_tokenizer(train_tokenizer(gamma, args.work, tokenizer_steps, tiny), count)

        result(args.results / f"tokenizer_gamma_{gamma:g}.json", trained | {"gamma": gamma, "images": count}, make)

    config = paper_generator.get_config()
    steps = args.generator_steps or (4 if tiny else config.steps)
    trained |= {"generator_steps": steps, "generator_seed": config.seed, "seeds": SEEDS, "data": sizes}
    # In the order in which they say most, should the time run out.
    models = [(HEAD_GAMMA, "base"), (HEAD_GAMMA, "large"), (HEAD_GAMMA, "small"), (0.0, "base"), (1.0, "base")]
    for gamma, head in models if "generators" in parts else ():

        def make(gamma=gamma, head=head):
            tokenizer = train_tokenizer(gamma, args.work, tokenizer_steps, tiny)
            data = make_data(args.work, tokenizer, gamma, sizes)
            return measure_generator(train_generator(gamma, head, args.work, tokenizer, data, steps, tiny), 5 * per_category)

        made_with = trained | {"gamma": gamma, "head": [head, *HEADS[head]]}
        result(args.results / f"generator_gamma_{gamma:g}_head_{head}.json", made_with, make)


if __name__ == "__main__":
    main()
