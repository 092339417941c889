"""Recipes carried out: what is kept, counted and named; interruption, workers, changed settings; the command."""

import collections
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import ImageFilter

from nextstep_jax.data.curation import job, scores, stages
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.curation.report import _histogram
from nextstep_jax.data.image_folder import FolderSource
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import InputError
from tests.data.curation.scenes import near_duplicates, photograph

RECIPE = {
    "name": "mine",
    "signals": {"size": {}, "sharpness": {}, "perceptual_hash": {}},
    "duplicates": {"perceptual_hash": {"keep": "sharpness.laplacian"}},
    "cuts": {"pretrain": ("sharpness.laplacian >= 30",), "anneal": ("sharpness.laplacian >= 30", "size.min_side >= 150")},
    "transforms": {},
}


def recipe(**changes):
    return read_recipe(RECIPE | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 photographs; of two there are near-duplicates, one is blurred, two are small, one damaged, one without caption."""
    directory = tmp_path_factory.mktemp("data") / "photos"
    directory.mkdir()
    images = {f"{seed:02d}": photograph(seed) for seed in range(20)}
    images |= {f"03-{name}x": image for name, image in near_duplicates(photograph(3)).items()}
    images |= {"04-mirrored": near_duplicates(photograph(4))["mirrored"]}
    images["05"] = images["05"].filter(ImageFilter.GaussianBlur(4))
    for name in ("06", "07"):
        images[name] = photograph(int(name), 96, 128)
    for name, image in images.items():
        image.save(directory / f"{name}.png")
        (directory / f"{name}.txt").write_text(f"photograph {name}")
    (directory / "broken.png").write_bytes((directory / "00.png").read_bytes()[:2000])
    (directory / "broken.txt").write_text("broken")
    photograph(50).save(directory / "silent.png")
    return directory


def keys(path) -> list[str]:
    source = ArrayRecordSource(path)
    return [pathlib.Path(source[n].key).stem for n in range(len(source))]


def contents(out) -> dict[str, str]:
    """Digest of every file that a user or a later step reads."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "progress" not in path.parts
    }


def test_what_is_kept_and_why_the_rest_is_not(folder, tmp_path):
    report = job.curate(FolderSource(folder), recipe(), tmp_path / "out", shard_samples=7)
    kept = [name for name in (f"{seed:02d}" for seed in range(20)) if name not in ("03", "04", "05")]
    found = keys(tmp_path / "out" / "pretrain")
    groups = [name for name in found if name[:2] in ("03", "04")]
    assert [name for name in found if name not in groups] == kept
    assert len(groups) == 2 and groups[0].startswith("03") and groups[1].startswith("04")  # one of each group
    assert keys(tmp_path / "out" / "anneal") == [name for name in found if name not in ("06", "07")]
    assert report["samples"] == 29 and report["duplicates"]["count"] == 7
    assert report["unusable"]["reasons"] == {"caption": 1, "damaged image": 1}
    pretrain, anneal = report["cuts"]["pretrain"], report["cuts"]["anneal"]
    assert pretrain["dropped"] == {"caption": 1, "damaged image": 1, "duplicate": 7, "not sharpness.laplacian >= 30": 1}
    assert anneal["dropped"]["not size.min_side >= 150"] == 2
    for counts in (pretrain, anneal):
        assert counts["written"] == counts["kept"] == 29 - sum(counts["dropped"].values())
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())


def test_of_near_duplicates_the_best_is_kept_with_what_was_measured(folder, tmp_path):
    out = tmp_path / "out"
    report = job.curate(FolderSource(folder), recipe(), out)
    values = json.loads((out / "scores" / "sharpness" / "shard-00000.json").read_text())["values"]
    groups = collections.defaultdict(list)
    for dropped, kept in report["duplicates"]["samples"]:
        groups[kept].append(dropped)
    assert sorted(map(len, groups.values())) == [1, 6]
    for kept, others in groups.items():
        assert all(values[n]["laplacian"] <= values[kept]["laplacian"] for n in others)
    source = ArrayRecordSource(out / "pretrain")
    stored = {source[n].metadata["curation"]["sharpness.laplacian"] for n in range(len(source))}
    assert {values[kept]["laplacian"] for kept in groups} <= stored


def test_samples_of_another_kind_are_left_out_and_counted(tmp_path):
    pairs, edits = open_source("shapes:pair:train:9"), open_source("shapes:edit:train:9")

    class Mixed(type(pairs)):
        """An edit among pairs."""

        def __getitem__(self, index):
            return edits[index] if index == 4 else super().__getitem__(index)

    mixed = Mixed("pair", "train", 9)
    for kinds, kept in ((("pair",), 8), (("edit",), 1), (("edit", "pair"), 9), ((), 9)):
        given = recipe(sample_kinds=kinds, cuts={"all": ()}, duplicates={})
        report = job.curate(mixed, given, tmp_path / "out")
        assert report["unusable"]["reasons"] == ({"another kind": 9 - kept} if kept < 9 else {})
        assert report["cuts"]["all"]["written"] == kept
    report = job.curate(mixed, recipe(sample_kinds=("pair",), cuts={"all": ()}, duplicates={}), tmp_path / "out")
    assert "expected a sample of kind pair, found edit" in report["unusable"]["samples"][0][2]


def test_the_result_does_not_depend_on_workers_or_shards_of_work(folder, tmp_path):
    for workers in (1, 2):
        job.curate(FolderSource(folder), recipe(), tmp_path / str(workers), workers=workers, shard_samples=5)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_another_threshold_measures_nothing_and_another_signal_only_itself(folder, tmp_path, monkeypatch):
    source = FolderSource(folder)
    job.curate(source, recipe(), tmp_path / "out")
    measured = []
    original = scores._measure

    def measure(state, indices, names):
        measured.append(list(names))
        return original(state, indices, names)

    monkeypatch.setattr(scores, "_measure", measure)
    job.curate(source, recipe(cuts={"all": ()}), tmp_path / "out")
    assert measured == [] and len(keys(tmp_path / "out" / "all")) == 20
    signals = {"size": {}, "sharpness": {"side": 100}, "perceptual_hash": {}}
    job.curate(source, recipe(signals=signals), tmp_path / "out")
    assert measured == [["sharpness"]]


def test_a_changed_file_is_measured_again(folder, tmp_path):
    import shutil

    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    job.curate(FolderSource(photos), recipe(), tmp_path / "out")
    photograph(8).filter(ImageFilter.GaussianBlur(5)).save(photos / "08.png")
    job.curate(FolderSource(photos), recipe(), tmp_path / "out")
    assert "08" not in keys(tmp_path / "out" / "pretrain")


def test_a_recipe_is_tried_on_a_few_samples(tmp_path):
    source = open_source("shapes:pair:train:100")
    report = job.curate(source, read_recipe(RECIPE | {"cuts": {"all": ()}, "duplicates": {}}), tmp_path / "out", limit=5)
    assert report["samples"] == 5
    assert keys(tmp_path / "out" / "all") == [pathlib.Path(source[n].key).stem for n in (0, 20, 40, 60, 80)]
    with pytest.raises(InputError, match="holds a dataset made otherwise"):
        job.curate(source, recipe(), tmp_path / "out")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"signals": {"ask": {"kind": "judgement", "question": "?"}}}, "signal ask: endpoint of a judgement is not set"),
        ({"transforms": {"recaption": {}}}, "transform recaption: endpoint of a recaption is not set"),
    ],
)
def test_a_stage_without_its_model_fails_before_anything_is_done(folder, tmp_path, settings, message):
    given = RECIPE | {"cuts": {"all": ()}, "duplicates": {}, **settings}
    with pytest.raises(InputError, match=message):
        job.curate(FolderSource(folder), read_recipe(given), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_not_there_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    stages._prepare.cache_clear()
    with pytest.raises(
        InputError, match=r"signal sharpness needs the package opencv-python: pip install 'nextstep_jax\[curate\]'"
    ):
        job.curate(FolderSource(folder), recipe(), tmp_path / "out")


@pytest.mark.parametrize(
    "options, name", [({"workers": 0}, "workers"), ({"shard_samples": 0}, "shard_samples"), ({"limit": 0}, "limit")]
)
def test_options_are_checked(folder, tmp_path, options, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, found 0"):
        job.curate(FolderSource(folder), recipe(), tmp_path / "out", **options)


def test_the_page_shows_samples_near_thresholds_and_escapes_what_it_shows(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(4):
        photograph(seed).save(photos / f"<script>{seed}.png")
        (photos / f"<script>{seed}.txt").write_text("a")
    job.curate(FolderSource(photos), recipe(), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == 3 * 4 and "data:image/jpeg;base64," in page  # three conditions
    assert "&lt;script&gt;0.png" in page and "<script" not in page and "http" not in page


@pytest.mark.parametrize("threshold, line, bars", [(4.0, 400, (0, 100)), (-2.0, 0, (200, 300)), (1.0, 200, (0, 200))])
def test_a_threshold_is_drawn_where_it_lies_even_beyond_all_values(threshold, line, bars):
    summary = {"counts": [2, 1], "edges": [0.0, 1.0, 2.0], "min": 0.0, "max": 2.0, "mean": 0.8, "missing": 0}
    drawn = _histogram(summary, threshold)
    assert [float(x) for x in re.findall(r'<rect x="([^"]*)"', drawn)] == list(bars)
    assert f'<line x1="{line:.1f}"' in drawn


# --- interruption -----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from nextstep_jax.data.curation import job
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.curation.report import _histogram
from nextstep_jax.data.sources import open_source
from tests.data.curation.test_job import RECIPE
job.curate(open_source("shapes:pair:train:400"), read_recipe(RECIPE), sys.argv[1], shard_samples=20, workers=int(sys.argv[2]))
print("done")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_job_goes_on_to_the_same_result(tmp_path, workers):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}

    def start(out):
        command = [sys.executable, "-c", PROGRAM, str(out), str(workers)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)

    whole = start(tmp_path / "whole")
    assert whole.communicate(timeout=120)[0] == b"done\n"
    delays = random.Random(workers)
    for _ in range(4):
        process = start(tmp_path / "killed")
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "scores").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delays.uniform(0, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert start(tmp_path / "killed").communicate(timeout=120)[0] == b"done\n"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
