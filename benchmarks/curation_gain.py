"""Does curation help? The built-in model, trained further on pairs of which one in five is rubbish.

    python -m benchmarks.curation_gain DIR --seeds 0 [1 2] [--samples 20000] [--steps 120]

Three arms, trained for the same number of steps from the built-in model with the same seed, and scored by ShapeEval on the same
held-out prompts with the same noise. (From nothing, 2,000 smaller steps come to 0.02 on good pairs and on rubbish alike, too
little to tell them apart.)

    clean     the good pairs alone
    planted   the same and the rubbish: captions of other images (8 %), images that are blank (2 %), noise (2 %) or blurred
              (4 %), and near-duplicates of 50 images (4 %)
    curated   what `CUT` leaves of planted; its thresholds were set by 8,000 other pairs with other rubbish

Alignment is measured by an embedder that is trained on the planted pairs themselves, rubbish included, and written as the ONNX
files that a user would bring (benchmarks/shapes_embedder.py): the recipe is told nothing of what is planted. Whatever is done
already is not done again. DIR/report.json has what was kept of each kind of rubbish and the differences between the arms with
95 % intervals of a paired bootstrap over prompts.
"""

import argparse
import collections
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import post_training, shapes_embedder
from nextstep_jax.cli_data import image_encoder
from nextstep_jax.configs import shapes_sft
from nextstep_jax.data import records, shapes
from nextstep_jax.data.build import build
from nextstep_jax.data.curation.job import curate
from nextstep_jax.data.curation.recipe import Recipe, read_recipe
from nextstep_jax.data.encode import encode
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.source import Unused
from nextstep_jax.evaluation.evaluators import EVALUATORS
from nextstep_jax.evaluation.intervals import paired_interval
from nextstep_jax.launch.train import configure_logging
from nextstep_jax.training.config import source
from nextstep_jax.training.loop import train

BUILTIN = "nextstep_jax/builtin/shapes"
# Fraction of all pairs.
RUBBISH = {"wrong caption": 0.08, "blank": 0.02, "noise": 0.02, "blurred": 0.04, "duplicate": 0.04}
CUT = ("sharpness.laplacian >= 12", "sharpness.laplacian <= 20000", "alignment.score >= 0.5")
EMBEDDER_STEPS = 200
DUPLICATED = 50  # images that the near-duplicates are of
ARMS = ("clean", "planted", "curated")


class Planted:
    """Pairs of shapes of which a fifth is rubbish; `metadata["planted"]` says what each is, "" for a good one."""

    def __init__(self, length: int, seed: int, clean: bool = False):
        self.name, self.unused = "clean" if clean else "planted", Unused()
        self._seed = seed
        draw = np.random.default_rng(seed)
        self._what = draw.choice(["", *RUBBISH], length, p=[1 - sum(RUBBISH.values()), *RUBBISH.values()])
        self._others = draw.integers(0, length, length)
        self._indices = np.flatnonzero(self._what == "") if clean else np.arange(length)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> records.Sample:
        index = int(self._indices[number])
        what, other = str(self._what[index]), int(self._others[index])
        sample = shapes.sample("pair", index, seed=self._seed)
        text, image = sample.parts
        if what == "wrong caption":
            text = shapes.sample("pair", other, seed=self._seed + 1).parts[0]
        elif what == "duplicate":
            text, image = shapes.sample("pair", other % DUPLICATED, seed=self._seed).parts
            image = _recompressed(image, quality=60 + index % 30)
        elif what:
            image = records.ImagePart.from_pixels(_spoiled(what, image.pixels(), np.random.default_rng([self._seed, index])))
        return records.Sample((text, image), "pair", f"pair/{index}", {}, {"planted": what})

    def fingerprint(self, start: int, stop: int) -> str:
        return f"{self.name} {self._seed} {start} {stop}"

    def identity(self) -> str:
        return self.fingerprint(0, len(self))


def _recompressed(image: records.ImagePart, quality: int) -> records.ImagePart:
    data = io.BytesIO()
    Image.fromarray(image.pixels()).save(data, "JPEG", quality=quality)
    return records.ImagePart.from_bytes(data.getvalue())


def _spoiled(what: str, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if what == "blank":
        return np.full_like(pixels, rng.integers(0, 256, 3))
    if what == "noise":
        return rng.integers(0, 256, pixels.shape, np.uint8)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(3, 6))))


# --- data -------------------------------------------------------------------------------------------------------------


def make_arm(arm: str, folder: pathlib.Path, samples: int) -> pathlib.Path:
    """The encoded dataset of an arm."""
    pixels = folder / "pixels" / arm
    if arm == "curated":
        pixels = curated(folder)
    else:
        build(Planted(samples, seed=0, clean=arm == "clean"), pixels)
    out = folder / "data" / arm
    encode_fn, encoder = image_encoder(BUILTIN)
    encode(pixels, encode_fn, out, area=64, batch=64, encoder=encoder, threads=1)
    return out


def curated(folder: pathlib.Path) -> pathlib.Path:
    """The pixels that the recipe leaves of the planted pairs."""
    planted, embedder = ArrayRecordSource(folder / "pixels" / "planted"), folder / "embedder"
    if not (embedder / "text_model.onnx").exists():
        pairs = [planted[index] for index in range(len(planted))]
        captions = [pair.texts[0].text for pair in pairs]
        tokenizer = shapes_embedder.make_tokenizer(captions)
        images = np.stack([pair.images[0].pixels() for pair in pairs])
        params = shapes_embedder.train(images, captions, tokenizer, EMBEDDER_STEPS)
        shapes_embedder.write(params, tokenizer, embedder)
    curate(planted, recipe(embedder), folder / "curated", workers=1)
    return folder / "curated" / "train"


def recipe(embedder: pathlib.Path) -> Recipe:
    return read_recipe(
        {
            "name": "shapes",
            "signals": {"sharpness": {}, "alignment": {"embedder": f"onnx:{embedder}"}},
            "duplicates": {},
            "cuts": {"train": CUT},
            "transforms": {},
        }
    )


# --- training ---------------------------------------------------------------------------------------------------------


def settings(data: pathlib.Path, steps: int, seed: int) -> Any:
    """The built-in model goes on with the pairs of `data` alone, as in the pieces of its second stage."""
    config, recipe = shapes_sft.continued("multitask", "curation_gain"), shapes_sft.base()
    config.seed, config.steps = seed, steps
    config.optimizer = recipe.optimizer
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20})
    config.max_target_fraction.image = recipe.max_target_fraction.image
    config.data.update({"root": str(data.parent), "batch_size": 6, "seq_len": 160})
    config.data.sources.pairs = source(data.name, image_first=0.0, caption_dropout=0.1)
    config.checkpoint.every, config.log_every = 200, 50
    config.validation.every = config.samples.every = 0
    return config


# --- scores -----------------------------------------------------------------------------------------------------------


def kept_by_kind(folder: pathlib.Path) -> dict[str, Mapping[str, int]]:
    """Planted and kept samples of each kind, "good" for those that are no rubbish."""
    found: dict[str, Mapping[str, int]] = {}
    for name, path in (("planted", folder / "pixels" / "planted"), ("kept", folder / "curated" / "train")):
        pairs = ArrayRecordSource(path)
        found[name] = collections.Counter(str(pairs[n].metadata["planted"]) or "good" for n in range(len(pairs)))
    return found


def compare(judged: Mapping[str, Sequence[post_training.Judged]], before: str, after: str) -> dict[str, Any]:
    """The difference between two arms in each category and over all; a prompt's score is its mean over the seeds."""

    def of(arm: str, category: str) -> np.ndarray:
        return np.mean([post_training.scores(seed[category]["verdicts"]) for seed in judged[arm]], axis=0)

    groups = {category: [category] for category in shapes.CATEGORIES} | {"overall": list(shapes.CATEGORIES)}
    table = {}
    for name, categories in groups.items():
        pair = [{category: of(arm, category) for category in categories} for arm in (before, after)]
        means = [float(np.mean([scores.mean() for scores in side.values()])) for side in pair]
        table[name] = {before: means[0], after: means[1], **paired_interval(*pair)._asdict()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training runs [0]")
    parser.add_argument("--samples", type=int, default=20_000, help="pairs, rubbish included [20000]")
    parser.add_argument("--steps", type=int, default=120, help="of each run [120]")
    parser.add_argument("--prompts", type=int, default=40, help="of each category [40]")
    arguments = parser.parse_args()
    configure_logging()
    asked = post_training.Asked(arguments.prompts, images=2, seed=7, cfg=None, readers=False)
    judged: dict[str, list[post_training.Judged]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        for arm in ARMS:
            data = make_arm(arm, arguments.folder, arguments.samples)
            run = arguments.folder / f"{arm}-{seed}-{arguments.steps}"
            if not (run / "export").exists():
                train(settings(data, arguments.steps, seed), str(run), EVALUATORS)
            results = arguments.folder / "results" / run.name
            judged[arm].append(post_training.judge_checkpoint(str(run / "export"), shapes.CATEGORIES, asked, results))
        report = {"seeds": arguments.seeds[: len(judged["clean"])], "kept": kept_by_kind(arguments.folder)}
        report |= {f"{a} to {b}": compare(judged, a, b) for a, b in (("planted", "clean"), ("planted", "curated"))}
        (arguments.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
