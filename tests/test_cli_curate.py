"""`nextstep-jax data curate`, end to end."""

import importlib
import sys

import numpy as np
import pytest

from nextstep_jax import cli
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.launch.shipped import config_names
from tests.data.curation.onnx_files import write_face_models
from tests.data.curation.scenes import photograph
from tests.data.curation.test_characters import write_film


@pytest.fixture
def folder(tmp_path):
    """Four photographs with captions, and one that is damaged."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for seed in range(5):
        photograph(seed).save(directory / f"{seed}.png")
        (directory / f"{seed}.txt").write_text(f"photograph {seed}")
    (directory / "4.png").write_bytes((directory / "4.png").read_bytes()[:1000])
    return directory


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Curates the folder into tmp_path/out; returns exit code, output and errors."""

    def call(*arguments, source=folder):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", "data", "curate", str(source), str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("name", ["control", "restoration"])
def test_pairs_become_edits(run, tmp_path, name):
    code, out, _ = run("--config", f"curate_{name}:laptop", "--workers", "1")
    assert code == 0 and "5 samples, 1 unusable, 0 near-duplicates" in out and "sft: 8 samples of 4 kept" in out
    source = ArrayRecordSource(tmp_path / "out" / "sft")
    for sample in (source[n] for n in range(len(source))):
        assert sample.kind == "edit" and [part.loss for part in sample.images] == [False, True]
        assert not np.array_equal(sample.images[0].pixels(), sample.images[1].pixels())


def test_pairs_without_an_endpoint(run, tmp_path):
    code, out, _ = run("--config", "curate_pairs:laptop", "--config.cuts.pretrain=('size.min_side >= 300',)")
    assert code == 0 and "pretrain: 0 samples of 0 kept" in out and "anneal: 4 samples of 4 kept" in out
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "curate_pears"], "did you mean curate_pairs"),
        (
            ["--config", "curate_pairs", "--config.signals.ocr.min_confidenc=1"],
            "did you mean config.signals.ocr.min_confidence",
        ),
        (["--config", "curate_pairs", "--configs.x=1"], "no option --configs.x"),
        (["--config", "curate_pairs"], "signal aesthetics: endpoint of a judgement is not set"),
        (["--config", "curate_pairs", "--endpoint", "localhost"], "expected openai:URL#MODEL"),
        (["--config", "shapes_sft"], "not a recipe of curation"),
        (
            ["--config", "curate_pairs:laptop", "--endpoint", "openai:http://localhost:9#m", "--max-requests", "3"],
            "endpoint, max_requests: the recipe has no stage that asks a language model",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(run, tmp_path, arguments, message):
    code, out, errors = run(*arguments)
    assert code == 2 and out == "" and message in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", config_names(curation=True))
def test_a_source_of_another_kind_than_the_recipe_takes_is_refused(run, tmp_path, name):
    kind = importlib.import_module(f"nextstep_jax.configs.{name}").get_config("laptop").sample_kinds[0]
    given = "edit" if kind == "pair" else "pair"
    code, out, errors = run("--config", f"{name}:laptop", source=f"shapes:{given}:train:20")
    assert code == 2 and out == "" and errors.count("\n") == 1
    assert f"shapes-{given}-train: the recipe {name.removeprefix('curate_')} takes samples of kind {kind} " in errors
    assert f"found {given} (8 of 20 looked at)" in errors
    assert not (tmp_path / "out").exists()


def test_people_of_a_video_get_sequences(folder, run, tmp_path):
    """Eight shots; one person is in four of them and another in three, as subtitles say."""
    pytest.importorskip("av")
    write_film(folder)
    for photo in folder.glob("?.*"):
        photo.unlink()
    models = write_face_models(tmp_path)
    options = [f"--config.transforms.b_characters.{name}={path}" for name, path in models.items()]
    code, out, errors = run("--config", "curate_characters:laptop", "--workers", "1", *options, source=f"videos:{folder}")
    assert code == 0, errors
    assert "pretrain: 2 samples of 1 kept" in out
    source = ArrayRecordSource(tmp_path / "out" / "pretrain")
    said = [[part.text for part in source[n].texts] for n in range(2)]
    assert said == [[f"shot {n}" for n in shots] for shots in ((0, 2, 4, 6), (1, 2, 5))]
    code, _, errors = run("--config", "curate_characters:laptop", source=f"videos:{folder}")
    assert code == 2 and "transform b_characters: detector is not set" in errors
