"""Curation: samples a second of each stage on one core, what Beam costs, and whether a job survives kill -9.

    python -m benchmarks.curation stages [--side 512] [--samples 24]
    python -m benchmarks.curation beam [--samples 4000]
    python -m benchmarks.curation kills [--kills 50] [--workers 2] [--json FILE] [--minutes 10]

stages   every signal and transform that needs no endpoint and no file of the user's, on images like photographs with a line of
         text; processor time of this process, on one thread, after a first sample
beam     a job over pairs of shapes by itself and by Beam's direct runner in memory, in turns, and the ratio of their processor
         times; needs the extra beam
kills    a job is killed at random moments, with all its workers, and started again; what it has made at the end must be, byte
         for byte, what a job made that was left alone. Then the next one begins, until there were enough kills. With --json,
         kills that are in the file already are not done again, and are compared with the same job that was left alone
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextstep_jax.data import records
from nextstep_jax.data.curation import job
from nextstep_jax.data.curation.recipe import SIGNALS, TRANSFORMS, read_recipe
from nextstep_jax.data.curation.stages import generator
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.worker_pool import map_jobs

OWN_MODEL = ("alignment", "aesthetics", "judgement", "recaption", "storyline", "check_list", "characters")
RECIPE: dict[str, Any] = {
    "name": "benchmark",
    "signals": {"size": {}, "sharpness": {}, "perceptual_hash": {}},
    "duplicates": {"perceptual_hash": {"max_distance": 0}},
    "cuts": {"all": ("sharpness.laplacian >= 30",), "few": ("sharpness.laplacian >= 500",)},
    "transforms": {"degradations": {}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stages", "beam", "kills"))
    parser.add_argument("--side", type=int, default=512, help="pixels of the images of stages [512]")
    parser.add_argument("--samples", type=int, help="[24 for stages, 4000 for beam]")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2, help="of the jobs that are killed [2]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills [0]")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after so many, no other job is killed")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.what == "stages":
        figures = time_stages(arguments.side, arguments.samples or 24)
    elif arguments.what == "beam":
        figures = time_beam(arguments.samples or 4000)
    else:
        figures = kill(arguments.kills, arguments.workers, arguments.seed, arguments.minutes, arguments.json)
    for name, value in figures.items():
        print(f"{name:36}{value:g}")
    if arguments.json and arguments.what != "kills":
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


# --- stages -----------------------------------------------------------------------------------------------------------


def time_stages(side: int, samples: int) -> dict[str, float]:
    """Samples a second of processor time by the names of stages."""
    import cv2

    cv2.setNumThreads(1)
    pairs = [pair(n, side) for n in range(samples)]
    views = [object_views(n, side) for n in range(samples)]
    found = {}
    for name, kind in SIGNALS.items():
        if name not in OWN_MODEL:
            measure = kind().prepare()
            found[name] = rate(measure, pairs)
    for name, kind in TRANSFORMS.items():
        if name not in OWN_MODEL:
            make, given = kind().prepare(), views if name in ("moves", "distinct_frames", "screen_text") else pairs
            found[name] = rate(lambda sample, make=make, name=name: list(make(sample, {}, generator(sample, name))), given)
    return found


def rate(run: Any, samples: Sequence[records.Sample]) -> float:
    run(samples[0])
    start = time.process_time()
    for sample in samples[1:]:
        run(sample)
    return round((len(samples) - 1) / max(1e-9, time.process_time() - start), 2)


def pair(seed: int, side: int) -> records.Sample:
    text = "A harbor in the morning, with boats of many colors, and the hills behind the town in the light of the sun."
    return records.Sample(
        (records.TextPart(text), records.ImagePart.from_bytes(photograph(seed, side))), "pair", f"pair {seed}"
    )


def object_views(seed: int, side: int) -> records.Sample:
    """Four views of something, 30 degrees from each other."""
    images = [records.ImagePart.from_bytes(photograph(1000 + 4 * seed + n, side)) for n in range(4)]
    cameras = [[30 * n, 10] for n in range(4)]
    return records.Sample((records.TextPart("A thing."), *images), "interleaved", f"views {seed}", {}, {"cameras": cameras})


def photograph(seed: int, side: int) -> bytes:
    """A JPEG file of smooth areas, edges, grain and a line of text."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, w, h = (float(value) * side for value in rng.uniform((0, 0, 0.05, 0.05), (0.9, 0.9, 0.3, 0.3)))
        draw.ellipse((x, y, x + w, y + h), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    draw.text((side // 8, side // 2), f"Street number {seed}", fill="white", font=ImageFont.load_default(side // 16))
    noisy = np.clip(np.asarray(image) + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)
    with tempfile.TemporaryFile() as file:
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        file.seek(0)
        return file.read()


# --- Beam -------------------------------------------------------------------------------------------------------------


def time_beam(samples: int, rounds: int = 3) -> dict[str, float]:
    from nextstep_jax.data.curation.beam_job import BeamRunner

    runners = {"plain": map_jobs, "beam": BeamRunner(["runner=DirectRunner", "direct_running_mode=in_memory"])}
    source, recipe = open_source(f"shapes:pair:train:{samples}"), read_recipe(RECIPE)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, rounds):
            warm_up = number < 0
            for name, runner in runners.items():
                given = open_source("shapes:pair:train:40") if warm_up else source
                start = time.process_time()
                job.curate(given, recipe, pathlib.Path(folder) / f"{name}{number}", shard_samples=200, runner=runner)
                if not warm_up:
                    seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    found = {f"{name}, seconds": round(value, 2) for name, value in medians.items()}
    return found | {"beam over plain": round(medians["beam"] / medians["plain"], 3)}


# --- kills ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from benchmarks.curation import RECIPE
from nextstep_jax.data.curation import job
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.sources import open_source
job.curate(open_source("shapes:pair:train:600"), read_recipe(RECIPE), sys.argv[1], shard_samples=20, workers=int(sys.argv[2]))
"""


def kill(kills: int, workers: int, seed: int, minutes: float, kept: pathlib.Path | None) -> dict[str, float]:
    """The figures; SystemExit names what differed. `kept`: a file of what was done, one entry a job."""
    record: dict[str, Any] = {"workers": workers, "seed": seed, "jobs": []}
    if kept and kept.exists():
        record = json.loads(kept.read_text())
        if (record["workers"], record["seed"]) != (workers, seed):
            raise SystemExit(f"{kept}: made with {record['workers']} workers and seed {record['seed']}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if "alone" not in record:
            finish(start(folder / "alone", workers))
            record |= {"seconds": round(time.monotonic() - began, 1), "alone": contents(folder / "alone")}
        while (done := sum(job["kills"] for job in record["jobs"])) < kills and time.monotonic() - began < 60 * minutes:
            number = len(record["jobs"])
            killed = kill_one(folder / str(number), workers, record["seconds"], kills - done, random.Random(f"{seed} {number}"))
            require_same(record["alone"], contents(folder / str(number)))
            record["jobs"].append({"kills": killed, "identical": True})
            shutil.rmtree(folder / str(number))
            print(f"{done + killed} kills, {number + 1} jobs: identical", file=sys.stderr, flush=True)
            if kept:
                kept.write_text(json.dumps(record, indent=1) + "\n")
    found = {"kills": sum(job["kills"] for job in record["jobs"]), "jobs": len(record["jobs"])}
    return found | {"files of a job": len(record["alone"]), "seconds of a job left alone": record["seconds"]}


def kill_one(out: pathlib.Path, workers: int, seconds: float, most: int, draw: random.Random) -> int:
    """How often a job was killed, at most `most` times, before it ended by itself."""
    for killed in range(most):
        process = start(out, workers)
        try:
            if code := process.wait(draw.uniform(0.2, 1.1) * seconds):
                raise SystemExit(f"a job ended with exit code {code}")
            return killed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finish(start(out, workers))
    return most


def start(out: pathlib.Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(out), str(workers)]
    return subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[1], start_new_session=True)


def finish(process: subprocess.Popen) -> None:
    if code := process.wait(600):
        raise SystemExit(f"a job ended with exit code {code}")


def contents(out: pathlib.Path) -> dict[str, str]:
    """Digest of every file that a user or a later step reads."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "progress" not in path.relative_to(out).parts
    }


def require_same(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if different:
        raise SystemExit(f"{len(different)} files differ from those of the job left alone, the first is {different[0]}")


if __name__ == "__main__":
    main()
