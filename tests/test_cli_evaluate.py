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
    assert scores["counts"]["scored"] == 2 and scores["groups"].keys() == {"colors", "edits"} and "overall" in out
    assert scores["export"]["checkpoint"]["name"] == "shapes" and len(scores["export"]["files"]["prompts"]) == 64


def test_the_seed_draws_the_prompts_too(run, monkeypatch):
    from nextstep_jax.evaluation import responses

    asked = []

    def respond(pipeline, prompts, seed, update, canvas):
        asked.append(([(prompt.text, prompt.scene) for prompt in prompts], seed))
        return ["" if prompt.category == "captions" else np.zeros((64, 64, 3), np.uint8) for prompt in prompts]

    monkeypatch.setattr(responses, "generate_responses", respond)
    for seed in (0, 1, 1):
        assert run("shapes", "--per-category", 2, "--seed", seed)[0] == 0
    assert [seed for _, seed in asked] == [0, 1, 1]
    assert asked[0][0] != asked[1][0] == asked[2][0]


def test_stories_and_other_canvases(run, tmp_path):
    score = tmp_path / "score.json"
    code, out, err = run(
        "shapes", "--category", "stories", "--per-category", 1, "--json", score, "--sheet", tmp_path / "page.html"
    )
    assert code == 0 and out.startswith("stories"), err
    assert (
        json.loads(score.read_text())["groups"].keys() == {"stories"} and "image/jpeg" in (tmp_path / "page.html").read_text()
    )
    options = ["--canvas", "96x64", "--category", "words", "--category", "colors", "--per-category", 1, "--json", score]
    code, out, err = run("shapes", *options)
    scores = json.loads(score.read_text())
    assert code == 0 and [*scores["groups"]] == ["words", "colors"] and scores["export"]["canvas"] == "96x64", err
    (prompts := tmp_path / "prompts.txt").write_text("a red circle\n")
    for refused, message in (
        (["--category", "edits", "--canvas", "80x48"], "edits can't be asked for on 80x48 pixels"),
        (["--category", "dances"], "no such category: 'dances'"),
        (
            ["--category", "words", "--prompts", prompts],
            "--category chooses among held-out prompts and cannot go with --prompts",
        ),
        (["--per-category", 3, "--prompts", prompts], "--per-category chooses among held-out prompts"),
    ):
        code, _, err = run("shapes", *refused)
        assert code == 2 and message in err


def test_options_reach_pictures_and_edits(run, tmp_path, monkeypatch):
    from nextstep_jax.evaluation import responses

    def respond(pipeline, prompts, seed, update, canvas):
        for settings in (pipeline.settings(), pipeline.settings(edit=True)):
            assert (settings.thinking, settings.steps) == (False, 3)
        return [np.zeros((64, 64, 3), np.uint8) for _ in prompts]

    monkeypatch.setattr(responses, "generate_responses", respond)
    assert Pipeline.from_checkpoint().settings(edit=True).thinking
    (prompts := tmp_path / "prompts.txt").write_text("a red circle\n")
    assert run("shapes", "--prompts", prompts, "--no-thinking", "--steps", 3)[0] == 0


def test_a_tokenizer_by_the_protocol_of_llamagen(run, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        save_image(tmp_path / f"{i}.png", rng.integers(0, 256, (40, 50 + i, 3)).astype(np.uint8))
    score = tmp_path / "score.json"
    options = ["--area", 32, "--protocol", "llamagen", "--mode", "own", "--batch", 2, "--json", score]
    code, out, err = run("tokenizer", tmp_path, *options)
    assert code == 0, err
    assert out.startswith("3 images, ADM's center crop, a draw from the posterior") and "rFD-own " in out
    found = json.loads(score.read_text())
    assert found["metrics"].keys() == {"psnr", "ssim", "ssim_llamagen", "rfid"} and found["metrics"]["rfid"]["weights"] is None
    assert found["export"]["settings"] == {"protocol": "llamagen", "area": 32, "limit": None, "mode": "own"}
    assert len(found["groups"]["psnr"]) == 3


def test_distances_of_folders(run, tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        for i in range(4):
            (tmp_path / folder).mkdir(exist_ok=True)
            save_image(tmp_path / folder / f"{i}.png", rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    (tmp_path / "b" / "x.jpg").write_bytes(b"\xff\xd8\xff broken")
    code, out, err = run("fid", tmp_path / "a", tmp_path / "b", "--mode", "own", "--json", tmp_path / "x.json")
    assert code == 0, err
    assert out.startswith("4 images against 4\nFD-own ") and "KID" in out and "FID" not in out
    assert f"warning: 1 of {tmp_path / 'b'} cannot be read" in err and "x.jpg" in err and "far too high" in err
    numbers = json.loads((tmp_path / "x.json").read_text())["numbers"]
    assert numbers["FD-own"] > 0.001

    reference = tmp_path / "a.npz"
    assert run("statistics", tmp_path / "a", reference, "--mode", "own")[0] == 0
    code, out, _ = run("fid", tmp_path / "a", reference, "--mode", "own")
    assert code == 0 and "FD-own 0.0000\n" in out.replace("-0.0000", "0.0000") and "KID" not in out
    code, _, err = run("statistics", tmp_path / "a", reference, "--mode", "own", "--crop", 32)
    assert code == 0, err


def test_a_tokenizer(run):
    code, out, _ = run("tokenizer", "shapes:pair:heldout:8", "--area", 64, "--limit", 8, "--batch", 8)
    assert code == 0 and out.startswith("8 images, ") and "scene accuracy " in out and "FID" not in out
    assert "(Gaussian 11x11, range 1)" in out and "(uniform 7x7, range 2: LlamaGen)" in out


def test_a_folder_of_unreadable_images(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    for arguments in (["tokenizer", tmp_path, "--area", 32], ["statistics", tmp_path, tmp_path / "x.npz", "--mode", "own"]):
        code, _, err = run(*arguments)
        assert code == 2 and f"warning: 1 of {tmp_path} cannot be read and are not counted, first: {tmp_path}/a.png" in err
    assert not (tmp_path / "x.npz").exists()


def test_a_tokenizer_counts_what_it_cannot_read(run, tmp_path):
    for i in range(2):
        save_image(tmp_path / f"{i}.png", np.full((32, 32, 3), 90 + i, np.uint8))
        (tmp_path / f"{i}.txt").write_text("gray")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:-30])
    (folder := tmp_path / "scores").mkdir()
    code, _, err = run("tokenizer", tmp_path, "--area", 32, "--json", folder / "a.json")
    scores = json.loads((folder / "a.json").read_text())
    assert code == 0 and scores["counts"]["scored"] == 1 and scores["skipped"] == 1
    assert f"warning: 1 of {tmp_path} cannot be read" in err and "1.png: " in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokenizer", "/no/such/folder"], "/no/such/folder"),
        (["tokenizer", "shapes:pair:heldout:8", "--area", "60"], "60 is not a multiple of 16"),
        (["shapes", "--prompts", "/no/such/file"], "/no/such/file"),
        (["shapes", "--cfg", "much"], "'much'"),
        (["fid", "/no/such/folder", "."], "/no/such/folder: there is no such folder"),
        (["fid", ".", "/no/such.npz"], "/no/such.npz: cannot be read"),
        (["fid", "launch", "launch", "--mode", "own"], "launch: no images"),
        (["fid", "launch", "launch"], "no images"),
        (["statistics", ".", "x.npy"], "x.npy: expected a name that ends in .npz"),
        (["tokenizer", "shapes:pair:heldout:8", "--features-of", "x"], "--features-of needs --mode own"),
        (["tokenizer", "shapes:pair:heldout:8", "--unofficial"], "--unofficial needs --inception"),
        (["tokenizer", "shapes:pair:heldout:8", "--mode", "own", "--inception", "x"], "--inception cannot go with --mode own"),
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
        (
            ["geneval", "judge", "x", "--endpoint", "openai:http://localhost", "--model", "m"],
            "endpoint must be an address such as",
        ),
        (["wise", "export", "--out", "x"], "wise: data must name the folder"),
        (["wise", "score", "x", "--data", "/no/such/folder"], "/no/such/folder: not a folder"),
        (["geneval", "score", "/no/such/file"], "/no/such/file"),
        (["geneval", "score", "x", "--official-quirks"], "No such option"),
    ],
)
def test_suites_refuse_before_anything_is_made(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err and not list(tmp_path.iterdir())


def test_scores_side_by_side(run, tmp_path, monkeypatch):
    from nextstep_jax.evaluation import responses

    (prompts := tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    for name, shade in (("a", 0), ("b", 200)):
        answer = [np.full((64, 64, 3), shade, np.uint8)] * 2
        monkeypatch.setattr(responses, "generate_responses", lambda *_, answer=answer: answer)
        options = ["--prompts", prompts, "--json", tmp_path / f"{name}.json", "--sheet", tmp_path / f"{name}.html"]
        assert run("shapes", *options, *(["--cfg", 2] if name == "b" else []))[0] == 0
    code, out, err = run("compare", tmp_path / "a.json", tmp_path / "b.json", "--json", tmp_path / "c.json")
    assert code == 0, err
    assert out.startswith("ShapeEval\n  settings: cfg: ") and "+0 to +0" in out and "overall" in out
    assert json.loads((tmp_path / "c.json").read_text())["rows"][0]["change"] == {"difference": 0, "low": 0, "high": 0}
    page = (tmp_path / "a.html").read_text()
    assert "a red circle" in page and page.count("data:image/jpeg;base64,") == 2
    assert run("compare", tmp_path / "a.json")[1].splitlines()[1].split() == ["value", "paper"]


def test_a_sheet_needs_an_export(run, tmp_path):
    code, _, err = run("sheet", tmp_path, tmp_path / "x.html")
    assert code == 2 and "nextstep.json: cannot be read" in err and not (tmp_path / "x.html").exists()
