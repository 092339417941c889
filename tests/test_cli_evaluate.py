"""`nextstep-jax evaluate`: what it prints and its exit codes."""

import json
import sys

import pytest

from nextstep_jax.cli import main


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


def test_a_tokenizer(run):
    code, out, _ = run("tokenizer", "shapes:pair:heldout:8", "--area", 64, "--limit", 8, "--batch", 8)
    assert code == 0 and out.startswith("8 images, PSNR ") and "read alike " in out
    code, out, _ = run("tokenizer", "shapes:pair:heldout:8", "--area", 64, "--limit", 8, "--batch", 8, "--json")
    assert code == 0 and json.loads(out)["n"] == 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tokenizer", "/no/such/folder"], "/no/such/folder"),
        (["tokenizer", "shapes:pair:heldout:8", "--area", "60"], "multiple of 16, found 60"),
        (["shapes", "--prompts", "/no/such/file"], "/no/such/file"),
        (["shapes", "--cfg", "much"], "'much'"),
    ],
)
def test_bad_input_is_exit_2(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
