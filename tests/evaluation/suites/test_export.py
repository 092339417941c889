"""Images in the official layout: the same for any number of processes, after a kill, and for any other prompts."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nextstep_jax.chat import ChatEndpoint
from nextstep_jax.data.image_output import read_record
from nextstep_jax.data.images import load
from nextstep_jax.errors import InputError, NextStepError
from nextstep_jax.evaluation.suites import export as exporting
from nextstep_jax.evaluation.suites.wise import Wise
from nextstep_jax.generation.generated_image import GeneratedImage
from tests.stand_in import chat_reply


@pytest.fixture(scope="module")
def suite(data) -> Wise:
    return Wise(data / "wise", unofficial=True)


class FakePipeline:
    """Draws the prompt's length and the seed at once; counts what it draws."""

    def __init__(self, delay: float = 0.0):
        self.drawn: list[str] = []
        self.batches: list[int] = []
        self._delay = delay

    def generate(self, prompts, *, seed, n, settings, height, width):
        time.sleep(self._delay)
        self.drawn += [prompt for prompt in prompts for _ in range(n)]
        self.batches.append(len(prompts))
        return [
            GeneratedImage(np.full((8, 8, 3), (s + j) % 251, np.uint8), np.zeros((1, 1)), {"prompt": p, "seed": s, "index": j})
            for p, s in zip(prompts, seed, strict=True)
            for j in range(n)
        ]


def plan(suite, pipeline, **changes) -> exporting.Plan:
    fields = dict(suite=suite, items=suite.items, settings=pipeline.settings(), checkpoint={"name": "m", "digest": "d"})
    return exporting.Plan(**fields | changes)


def pixels(folder: pathlib.Path) -> dict[str, np.ndarray]:
    paths = sorted(path for path in (folder / "images").rglob("*") if path.suffix == ".png")
    return {str(path.relative_to(folder)): np.asarray(load(path)) for path in paths}


def test_processes_and_interruptions_change_no_bit_and_batches_only_rounding(suite, tiny_pipeline, tmp_path):
    settings = tiny_pipeline.settings(steps=1, cfg=1)
    made = plan(suite, tiny_pipeline, settings=settings)
    for i in range(2):
        exporting.export(tiny_pipeline, made, tmp_path / "two", batch=2, shard=(i, 2))
    exporting.export(tiny_pipeline, made, tmp_path / "one", batch=2)
    exporting.export(tiny_pipeline, made, tmp_path / "large", batch=6)
    (tmp_path / "one" / "images" / "567.png").unlink()
    assert exporting.export(tiny_pipeline, made, tmp_path / "one", batch=2) == {"drawn": 1, "kept": 5}
    one, two, large = (pixels(tmp_path / name) for name in ("one", "two", "large"))
    assert one.keys() == two.keys() == large.keys() and len(one) == 6
    assert all((one[name] == two[name]).all() for name in one)
    assert all(np.abs(one[name].astype(int) - large[name].astype(int)).max() <= 1 for name in one)
    assert len({image.tobytes() for image in one.values()}) == 6


def test_an_image_is_what_generate_makes_of_its_prompt_and_seed(suite, tiny_pipeline, tmp_path):
    settings = tiny_pipeline.settings(steps=1, cfg=1)
    exporting.export(tiny_pipeline, plan(suite, tiny_pipeline, settings=settings), tmp_path, batch=2)
    record = json.loads((tmp_path / "nextstep.json").read_text())
    entry, other = record["prompts"][2:4]
    seeds = [entry["seed"], other["seed"]]
    image = tiny_pipeline.generate([entry["prompt"], other["prompt"]], seed=seeds, settings=settings)[0]
    assert (image.pixels == np.asarray(load(tmp_path / "images" / entry["files"][0]))).all()
    found = read_record(tmp_path / "images" / entry["files"][0])
    assert found["seed"] == entry["seed"] and found["suite_id"] == entry["id"]


def test_seeds_do_not_depend_on_the_other_prompts(suite, tiny_pipeline):
    whole = plan(suite, tiny_pipeline).record()["prompts"]
    part = plan(suite, tiny_pipeline, items=exporting.select(suite.items, 3)).record()["prompts"]
    assert [entry["id"] for entry in part] == ["400", "700", "900"] and all(entry in whole for entry in part)
    assert len({entry["seed"] for entry in whole}) == 6
    assert plan(suite, tiny_pipeline, seed=1).record()["prompts"][0]["seed"] != whole[0]["seed"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "another seed"),
        ({"height": 32}, "another height (this one: 32, found None)"),
        ({"checkpoint": {"name": "m", "digest": "e"}}, "another checkpoint: digest (this one: e, found d)"),
        ({"settings": {"steps": 7}}, "another settings: steps (this one: 7, found 3)"),
    ],
)
def test_an_export_made_otherwise_is_not_mixed_with(suite, tiny_pipeline, tmp_path, changes, message):
    exporting.export(FakePipeline(), plan(suite, tiny_pipeline), tmp_path)
    if "settings" in changes:
        changes = {"settings": dataclasses.replace(tiny_pipeline.settings(), **changes["settings"])}
    with pytest.raises(InputError) as error:
        exporting.export(FakePipeline(), plan(suite, tiny_pipeline, **changes), tmp_path)
    assert message in str(error.value)


def test_what_the_model_thinks_is_kept_with_its_image(suite, tiny_pipeline, tmp_path, monkeypatch):
    special = tiny_pipeline.special
    (word,) = tiny_pipeline.vocabulary.encode("red")
    thought = [special.begin_of_thinking, word, special.end_of_thinking]
    monkeypatch.setattr(type(tiny_pipeline), "think", lambda self, *arguments: thought)
    settings = tiny_pipeline.settings(steps=1, cfg=1, thinking=True)
    exporting.export(tiny_pipeline, plan(suite, tiny_pipeline, settings=settings, items=suite.items[:1]), tmp_path)
    assert read_record(tmp_path / "images" / "400.png")["thinking"] == "red"
    assert json.loads((tmp_path / "nextstep.json").read_text())["settings"]["thinking"] is True


@pytest.mark.parametrize("name", ["a.png", "a.jpeg", "a.webp"])
def test_an_image_cut_off_is_not_whole(tmp_path, name):
    from nextstep_jax.data.image_output import save_image

    save_image(tmp_path / name, np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    assert exporting.is_whole(tmp_path / name) and not exporting.is_whole(tmp_path / "none.png")
    data = (tmp_path / name).read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        (tmp_path / name).write_bytes(data[:size])
        assert not exporting.is_whole(tmp_path / name)


def test_rewritten_prompts_are_asked_for_once_and_recorded(suite, tiny_pipeline, tmp_path, server):
    server.answer = lambda path, body, count: chat_reply(f"rewritten {count}") if count < 4 else (500, b"")
    rewriter = ChatEndpoint(f"openai:{server.url}/v1#m", concurrency=2, retries=0)
    made, pipeline = plan(suite, tiny_pipeline, rewriter=rewriter), FakePipeline()
    with pytest.raises(NextStepError, match="did not rewrite"):
        exporting.export(pipeline, made, tmp_path)
    assert not pipeline.drawn
    asked = len(server.bodies)
    server.answer = lambda path, body, count: chat_reply("later")
    exporting.export(pipeline, made, tmp_path)
    assert len(server.bodies) - asked == 4 and sorted(pipeline.drawn[2:]) == ["later"] * 4
    assert pipeline.drawn[0].startswith("rewritten")
    lines = [json.loads(line) for line in (tmp_path / "rewritten-0-of-1.jsonl").read_text().splitlines()]
    assert [line["rewritten"] for line in lines] == pipeline.drawn and lines[0]["prompt"] == suite.items[0].prompt
    assert json.loads((tmp_path / "nextstep.json").read_text())["rewritten_by"] == rewriter.name
    assert read_record(tmp_path / "images" / "400.png")["original_prompt"] == suite.items[0].prompt
    exporting.export(pipeline, made, tmp_path)
    assert len(server.bodies) - asked == 4


PROGRAM = """
import pathlib, sys
from nextstep_jax.evaluation.suites import export as exporting
from nextstep_jax.evaluation.suites.geneval import GenEval
from nextstep_jax.generation.config import GenerationConfig
from tests.evaluation.suites.test_export import FakePipeline

suite = GenEval()
plan = exporting.Plan(suite, exporting.select(suite.items, 60), GenerationConfig(), {"name": "m", "digest": "d"})
pipeline = FakePipeline(0.02)
print("start", flush=True)
counts = exporting.export(pipeline, plan, pathlib.Path(sys.argv[1]), batch=2)
print(counts["drawn"], counts["kept"], len(pipeline.drawn), flush=True)
"""


def test_a_killed_export_goes_on_and_draws_nothing_twice(tmp_path):
    """At every kill the files are whole images; those written before are kept, and only a batch cut in two is drawn again."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    images = tmp_path / "images"
    before = 0
    for delay in (0.15, 0.3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"start\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = list(images.rglob("*.png"))
        assert all(exporting.is_whole(path) for path in there if not path.name.startswith("."))
        assert len(there) > before
        before = len(there)
    kept = {path: path.stat().st_mtime_ns for path in images.rglob("[0-9]*.png")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    drawn, known, generated = map(int, done.stdout.splitlines()[-1].split())
    assert known == len(kept) and drawn == 240 - known and drawn <= generated < drawn + 8
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert len(list(images.rglob("*"))) == 60 * (2 + 1 + 4)  # folders, metadata and images: nothing else is left behind
