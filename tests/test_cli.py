"""The command line end to end: released folder -> checkpoint -> image, and what it says of bad input."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from nextstep_jax.cli import cli, main
from nextstep_jax.data.image_output import read_record
from nextstep_jax.errors import NextStepError
from tests.stand_in import chat_reply


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of `nextstep-jax`, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


def test_converted_release_draws_an_image(run, goldens, tmp_path):
    code, out, err = run("convert", goldens / "tiny_model", tmp_path / "ckpt", "--vae", goldens / "tiny_vae")
    assert code == 0 and "parameters" in out and "text tokenizer" in err
    code, out, _ = run("info", tmp_path / "ckpt", "--json")
    assert code == 0 and json.loads(out)["parameters"]["total"] > 0
    code, out, _ = run("export", tmp_path / "ckpt", tmp_path / "back")
    assert code == 0 and (tmp_path / "back" / "model.safetensors").exists()
    code, _, err = run(
        "generate", "a cat", "--checkpoint", tmp_path / "ckpt", "--out", tmp_path / "a.png", "--height", 32, "--width", 32
    )
    assert code == 2 and "tokenizer.json" in err and not (tmp_path / "a.png").exists()


def test_generate_edit_complete_caption(run, tiny_checkpoint, tmp_path):
    out_file, options = tmp_path / "out.png", ("--checkpoint", tiny_checkpoint, "--json")
    code, out, _ = run("generate", "a red circle", "--out", out_file, "--seed", 7, *options)
    assert code == 0
    (record,) = json.loads(out)
    assert record["path"] == str(out_file) and record["seed"] == 7 and record["settings"]["steps"] == 3
    code, out, _ = run("edit", out_file, "a blue square", "--out", tmp_path / "edit.png", "--image-cfg", 2, *options)
    assert code == 0 and json.loads(out)[0]["settings"]["image_cfg"] == 2
    assert Image.open(tmp_path / "edit.png").size == (64, 64)
    code, out, err = run("complete", "a red", "--max-tokens", 4, "--profile", *options)
    assert code == 0 and "text" in json.loads(out)["parts"][0]
    parts = [line.split()[0] for line in err.splitlines() if line.endswith(" s")]
    assert parts[:2] == ["import", "load"] and "text" in parts and parts[-1] == "total"
    code, out, _ = run("caption", out_file, out_file, "--max-tokens", 4, *options)
    assert code == 0 and [line["image"] for line in json.loads(out)] == [str(out_file)] * 2
    code, out, _ = run("complete", "--image", out_file, "--max-tokens", 4, *options)
    assert code == 0 and "parts" in json.loads(out)


def test_several_images_are_numbered_and_previews_kept(run, tiny_checkpoint, tmp_path):
    files = ("--out", tmp_path / "x.png", "--preview", tmp_path / "now.png")
    code, out, _ = run("generate", "a red circle", "blue", "--n", 2, *files, "--checkpoint", tiny_checkpoint)
    assert code == 0 and out.split() == [str(tmp_path / f"x-{i}.png") for i in range(4)]
    assert Image.open(tmp_path / "now.png").size == (64, 64)


def test_the_output_has_the_format_of_its_name(run, tiny_checkpoint, tmp_path):
    for name, made, kind in [
        ("cat.jpg", "cat.jpg", "JPEG"),
        ("cat.webp", "cat.webp", "WEBP"),
        ("run1.5", "run1.5.png", "PNG"),
        ("run", "run.png", "PNG"),
    ]:
        code, out, err = run("generate", "a red circle", "--out", tmp_path / name, "--checkpoint", tiny_checkpoint)
        assert (code, out.strip()) == (0, str(tmp_path / made)), err
        with Image.open(tmp_path / made) as image:
            assert image.format == kind
        record = read_record(tmp_path / made)
        assert (record["prompt"], record["seed"], record["settings"]["steps"]) == ("a red circle", 0, 3)


@pytest.fixture
def truncated_png(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def test_bad_input_is_exit_2_and_one_line(run, tiny_checkpoint, tmp_path, truncated_png):
    ckpt, out = ("--checkpoint", tiny_checkpoint), ("--out", tmp_path / "never.png")
    (tmp_path / "file").write_text("")
    cases = [
        (("generate", "", *ckpt), "empty"),
        (("generate", "a", "--height", 30, *ckpt), "multiple of 16"),
        (("generate", "a", "--cfg", 0.5, *ckpt), "0.5 is not in the range x>=1"),
        (("generate", "a", "--steps", 0, *ckpt), "steps"),
        (("generate", "a", "--sampler", "best", *ckpt), "'best' is not one of august2025, 1.1"),
        (("generate", "a", "--n", 0, *ckpt), "'--n': 0 is not in the range x>=1"),
        (("generate", "a", "--seed", -1, *ckpt), "'--seed': -1 is not in the range 0<=x<=9223372036854775807"),
        (("generate", "a", "--height", 0, *ckpt), "'--height': 0 is not"),
        (("generate", "a", "--shift", "nan", *ckpt), "'nan' is not a finite number"),
        (("generate", "a", "--schedule", "up", *ckpt), "not one of constant, linear, rising"),
        (("complete", "a", "--interleave", tmp_path / "file" / "new", *ckpt), "cannot be written"),
        (("generate", "a", "--checkpoint", tmp_path / "none"), "none"),
        (("generate", "a", "--out", tmp_path / "file" / "x.png", *ckpt), "cannot be written"),
        (("generate", "a", "--out", tmp_path / "x.gif", "--checkpoint", "/none"), "x.gif: an image's name must end in"),
        (("edit", "in.png", "a", "--out", tmp_path / "x.tiff", "--checkpoint", "/none"), "x.tiff: an image's name must"),
        (("generate", "a", "--preview", tmp_path / "now", "--checkpoint", "/none"), "now: an image's name must end in"),
        (("generate", "a red circle " * 3000, *ckpt), "window"),
        (("edit", tmp_path / "none.png", "a", *ckpt), "none.png"),
        (("edit", truncated_png, "a", *ckpt), "truncated"),
        (("complete", "", *ckpt), "empty"),
        (("parity", tmp_path / "none"), "none"),
        (("convert", tmp_path / "none", tmp_path / "dst"), "none"),
        (("export", tmp_path / "none", tmp_path / "dst"), "none"),
        (("info", tmp_path / "none"), "none"),
    ]
    for arguments, message in cases:
        if arguments[0] in ("generate", "edit") and "--out" not in arguments:
            arguments = (*arguments, *out)
        code, _, err = run(*arguments)
        lines = err.strip().splitlines()
        assert code == 2 and message in lines[-1] and "Traceback" not in err, (arguments[:3], err)
        assert len([line for line in lines if line.startswith("error:")]) == 1
    assert not (tmp_path / "never.png").exists() and not (tmp_path / "dst").exists()


def test_damaged_checkpoint_is_exit_3(run, tiny_checkpoint, tmp_path):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged)
    file = max((p for p in (damaged / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    code, _, err = run("generate", "a red circle", "--checkpoint", damaged, "--out", tmp_path / "x.png")
    assert code == 3 and err.count("\n") == 1 and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("generate",), "Missing argument 'PROMPTS...'"),
        (("nonsense",), "no command 'nonsense'; there are"),
        (("generat",), "did you mean generate"),
        (("data", "biuld"), "did you mean build?"),
        (("generate", "a", "--sed", 1), "--seed"),
        (("write", "a"), "`write` is now `complete` (text) or `caption` (an image)"),
        (("generate", "a", "--think"), "--think is now --thinking"),
        (("generate", "a", "--positive", "b"), "--positive is now --prompt-suffix"),
        (("evaluate", "shapes", "--last-steps", 3), "--last-steps is now --final-steps"),
    ],
)
def test_usage_errors_are_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0 and all(
        verb in out for verb in ("convert", "export", "parity", "info", "generate", "edit", "complete", "caption", "data")
    )


def test_generating_imports_no_training_stack():
    """Generation runs where grain, tensorflow-datasets, ml_collections, optax, absl and torch do not exist."""
    forbidden = ["grain", "tensorflow", "tensorflow_datasets", "ml_collections", "optax", "torch"]
    block = f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))"
    code = f"{block}\nimport nextstep_jax.generation.pipeline, nextstep_jax.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_raised_error_has_an_exit_code():
    assert {error.exit_code for error in NextStepError.__subclasses__()} == {2, 3}
    assert CliRunner().invoke(cli, ["--version"]).exit_code == 0


def test_train_passes_on_overrides_and_takes_a_shipped_name(run, monkeypatch, tmp_path):
    from nextstep_jax.launch import shipped, train

    calls = []
    monkeypatch.setattr(train, "main", lambda argv: calls.append(argv) or 0)
    assert (
        run("train", "--config.steps=7", "--config", "shapes_tokenizer:laptop", "--workdir", tmp_path, "--config.x", "y")[0]
        == 0
    )
    assert calls == [
        [
            "nextstep-jax train",
            "--config=shapes_tokenizer:laptop",
            f"--workdir={tmp_path}",
            "--config.steps=7",
            "--config.x",
            "y",
        ]
    ]
    assert pathlib.Path(shipped.config_file("shapes_tokenizer:laptop").removesuffix(":laptop")).is_file()
    assert shipped.config_file("some/where.py:laptop") == "some/where.py:laptop"
    code, out, _ = run("train", "--help")
    assert code == 0 and all(name in out for name in shipped.config_names()) and "nextstep_14b_stage1" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--config", "shapes_tokeniser", "--workdir", "x"), "did you mean shapes_tokenizer"),
        (("--config", "zzz", "--workdir", "x"), "there are flow_head_157m, "),
        (("--config", "zzz.py", "--workdir", "x"), "zzz.py"),
        (("--config", "shapes_tokenizer"), "'--workdir'"),
        (("--config", "shapes_tokenizer", "--workdir", "x", "steps=3"), "unexpected argument 'steps=3'"),
        (("--config", "shapes_tokenizer", "--workdir", "x", "--config.steps=3", "steps=3"), "unexpected argument 'steps=3'"),
        (("--config", "shapes_tokenizer", "--workdir", "x", "--wrkdir=3"), "no option --wrkdir; did you mean --workdir?"),
    ],
)
def test_usage_errors_of_train_are_one_line(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", *arguments)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_submit_prints_what_it_would_run(run):
    train = ("--config", "shapes_tokenizer:laptop", "--workdir", "runs/x")
    code, out, _ = run("submit", "gpu", *train, "--dry-run", "--", "--config.steps=7")
    assert code == 0 and out.rstrip().endswith("-m nextstep_jax train " + " ".join((*train, "--config.steps=7")))
    assert run("submit", "gpu", "--config", "x")[0] == 2


def test_a_missing_extra_is_named():
    block = "import sys; sys.modules.update(absl=None); sys.argv[1:] = ['train', '--config', 'x', '--workdir', 'y']"
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\nimport nextstep_jax.cli as c; c.main()"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: absl is not installed: pip install 'nextstep_jax[train]'\n")


def test_a_prompt_can_be_rewritten_before_it_is_drawn(run, tmp_path, server, tiny_checkpoint):
    server.answer = lambda path, body, count: chat_reply("a blue square")
    out, where = tmp_path / "a.png", f"openai:{server.url}/v1#m"
    code, text, _ = run("generate", "a red circle", "--rewrite", where, "--checkpoint", tiny_checkpoint, "--out", out, "--json")
    (record,) = json.loads(text)
    assert code == 0 and out.exists()
    assert (record["prompt"], record["original_prompt"], record["rewritten_by"]) == ("a blue square", "a red circle", where)
    server.answer = lambda path, body, count: chat_reply("")
    code, _, error = run(
        "generate", "a red circle", "--rewrite", where, "--checkpoint", tiny_checkpoint, "--out", tmp_path / "b.png"
    )
    assert code == 1 and "did not rewrite the prompt 'a red circle'" in error and not (tmp_path / "b.png").exists()
    code, _, error = run("generate", "a red circle", "--rewrite", "gpt", "--out", tmp_path / "b.png")
    assert code == 2 and "expected openai:URL#MODEL" in error


def test_what_the_model_does_not_know_is_one_line_each(run, tmp_path):
    options = ("--out", tmp_path / "a.png", "--steps", 1)
    code, _, err = run("generate", "a cat", "--width", 112, *options)
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert code == 0 and len(warnings) == 2 and "'cat'" in warnings[0] and "112x64" in warnings[1] and "Traceback" not in err
    code, _, err = run("generate", 'the word "cat" in red', *options)
    assert code == 0 and "warning" not in err
