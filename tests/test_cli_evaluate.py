"""`nextstep-jax evaluate`: what it prints and its exit codes."""

import json
import sys

import numpy as np
import pytest

from nextstep_jax.cli import main
from nextstep_jax.data.image_output import save_image
from nextstep_jax.generation.pipeline import Pipeline


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of `nextstep-jax evaluate`, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


def test_prompts_from_a_file(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\nmake the background navy\n")
    code, out, err = run("shapes", "--prompts", tmp_path / "prompts.txt", "--json", tmp_path / "scores.json")
    assert code == 0, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["n"] == 2 and scores["edits"].keys() == {"background"} and "overall" in out


def test_the_seed_draws_the_prompts_too(run, monkeypatch):
    from nextstep_jax.evaluation import responses

    asked = []

    def respond(pipeline, prompts, seed, update):
        asked.append(([(prompt.text, prompt.scene) for prompt in prompts], seed))
        return ["" if prompt.category == "captions" else np.zeros((64, 64, 3), np.uint8) for prompt in prompts]

    monkeypatch.setattr(responses, "generate_responses", respond)
    for seed in (0, 1, 1):
        assert run("shapes", "--per-category", 2, "--seed", seed)[0] == 0
    assert [seed for _, seed in asked] == [0, 1, 1]
    assert asked[0][0] != asked[1][0] == asked[2][0]


def test_options_reach_pictures_and_edits(run, tmp_path, monkeypatch):
    from nextstep_jax.evaluation import responses

    def respond(pipeline, prompts, seed, update):
        for settings in (pipeline.settings(), pipeline.settings(edit=True)):
            assert (settings.thinking, settings.steps) == (False, 3)
        return [np.zeros((64, 64, 3), np.uint8) for _ in prompts]

    monkeypatch.setattr(responses, "generate_responses", respond)
    assert Pipeline.from_checkpoint().settings(edit=True).thinking
    (prompts := tmp_path / "prompts.txt").write_text("a red circle\n")
    assert run("shapes", "--prompts", prompts, "--no-thinking", "--steps", 3)[0] == 0


def test_a_tokenizer(run):
    code, out, _ = run("tokenizer", "shapes:pair:heldout:8", "--area", 64, "--limit", 8, "--batch", 8)
    assert code == 0 and out.startswith("8 images, PSNR ") and "scene accuracy " in out
    code, out, _ = run("tokenizer", "shapes:pair:heldout:8", "--area", 64, "--limit", 8, "--batch", 8, "--json")
    assert code == 0 and json.loads(out)["n"] == 8


def test_a_tokenizer_counts_what_it_cannot_read(run, tmp_path):
    for i in range(2):
        save_image(tmp_path / f"{i}.png", np.full((32, 32, 3), 90 + i, np.uint8))
        (tmp_path / f"{i}.txt").write_text("gray")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:-30])
    code, out, err = run("tokenizer", tmp_path, "--area", 32, "--json")
    assert code == 0 and json.loads(out)["n"] == 1 and json.loads(out)["skipped"] == 1
    assert f"warning: 1 of {tmp_path} cannot be read" in err and "1.png: " in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokenizer", "/no/such/folder"], "/no/such/folder"),
        (["tokenizer", "shapes:pair:heldout:8", "--area", "60"], "60 is not a multiple of 16"),
        (["shapes", "--prompts", "/no/such/file"], "/no/such/file"),
        (["shapes", "--cfg", "much"], "'much'"),
    ],
)
def test_bad_input_is_exit_2(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err


def test_the_commands_are_those_of_the_suites(run):
    from nextstep_jax import cli_suites
    from nextstep_jax.evaluation.suites.loading import SUITES

    assert list(cli_suites.SUITES) == list(SUITES)
    assert {name for name, suite in SUITES.items() if suite.quirks} == set(cli_suites._QUIRKS)
    code, out, _ = run("--help")
    assert code == 0 and all(f"\n  {name} " in out for name in SUITES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["geneval", "export", "--out", "x", "--shard", "2/2"], "'2/2' is not I/N"),
        (["geneval", "export", "--out", "x", "--rewrite", "http://localhost"], "expected openai:URL#MODEL"),
        (["geneval", "export", "--out", "x", "--height", "7"], "height must be a multiple"),
        (
            ["geneval", "judge", "x", "--endpoint", "http://localhost", "--model", "m", "--body", "1"],
            "--body must be a JSON object",
        ),
        (["wise", "export", "--out", "x"], "wise: --data must name the folder"),
        (["wise", "score", "x", "--data", "/no/such/folder"], "/no/such/folder: not a folder"),
        (["geneval", "score", "/no/such/file"], "/no/such/file"),
        (["geneval", "score", "x", "--official-quirks"], "No such option"),
    ],
)
def test_suites_refuse_before_anything_is_made(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err and not list(tmp_path.iterdir())
