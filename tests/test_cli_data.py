"""`nextstep-jax data`: the commands, what they print, and their exit codes."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.cli import main
from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.data import images, shards
from nextstep_jax.data.image_output import save_image
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.models.image_tokenizer import ImageTokenizer, scale_latents


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "photos"
    directory.mkdir()
    for i in range(6):
        save_image(directory / f"{i}.png", np.full((32, 32 + 8 * i, 3), 40 * i, np.uint8))
        (directory / f"{i}.txt").write_text(f"picture {i}")
    return directory


def test_build_and_inspect(run, folder, tmp_path):
    code, out, err = run("build", folder, tmp_path / "out", "--workers", 1)
    assert (code, out) == (0, f"{tmp_path / 'out'}: 6 samples\n"), err
    code, out, _ = run("inspect", tmp_path / "out", "--sheet", tmp_path / "sheet.png", "--verify")
    assert code == 0
    assert out.startswith(
        "photos: 6 samples, 6 looked at: 6 pair\nimages    6 (6 png), 6 of them targets\n  height  32 to 32, median 32"
    )
    assert (tmp_path / "sheet.png").exists()
    code, out, _ = run("inspect", tmp_path / "out", "--json")
    assert (code, json.loads(out)["images"]["count"]) == (0, 6)


def test_skipped_samples_and_the_exit_code(run, folder, tmp_path):
    (folder / "2.png").write_bytes(b"junk")
    code, out, err = run("build", folder, tmp_path / "out", "--workers", 1)
    assert (code, out) == (2, "")
    assert (
        err.startswith(f"error: {tmp_path / 'out'}/report.json: 1 of 6 samples (16.67%) cannot be used")
        and err.count("\n") == 1
    )
    code, out, _ = run("build", folder, tmp_path / "out", "--workers", 1, "--max-skipped", 0.2, "--name", "mine")
    assert code == 0
    assert out == f"{tmp_path / 'out'}: 5 samples\n1 skipped (1 damaged image); {tmp_path / 'out' / 'report.json'} names them\n"
    assert ArrayRecordSource(tmp_path / "out").name == "mine"
    code, out, _ = run("build", folder, tmp_path / "out", "--workers", 1, "--max-skipped", 0.2, "--json")
    assert json.loads(out)["reasons"] == {"damaged image": 1}


def test_options_of_other_sources_are_named_as_they_were_given(run):
    code, _, err = run("inspect", "shapes:pair:train:5", "--image-feature", "x", "--caption-feature", "y")
    assert code == 2
    assert err == "error: shapes:pair:train:5: image_feature, caption_feature can only be given for a tfds: source\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "/no/such/folder", "OUT"],
        ["build", "shapes:pair:train:0", "OUT"],
        ["build", "shapes:pair:train:5", "OUT", "--workers", "0"],
        ["build", "shapes:pair:train:5", "OUT", "--max-skipped", "lots"],
        ["build", "shapes:pair:train:5", "OUT", "--kind", "poem"],
        ["build", "shapes:pair:train:5", "OUT", "--kind", "edit"],
        ["build", "shapes:pair:train:5", "OUT", "--data-dir", "x"],
        ["build", "shapes:pair:train:5"],
        ["inspect", "/no/such/folder"],
        ["inspect", "shapes:pair:train:5", "--verify"],
        ["inspect", "shapes:pair:train:5", "--sheet", "/no/such/folder/sheet.png"],
        ["encode", "/no/such/folder", "OUT", "--checkpoint", "/no/such/checkpoint"],
        ["encode", "/no/such/folder", "OUT"],
    ],
)
def test_bad_usage_is_exit_code_2(run, tmp_path, arguments):
    out = tmp_path / "out"
    code, _, err = run(*[out if argument == "OUT" else argument for argument in arguments])
    assert code == 2
    assert "Traceback" not in err and err
    assert not out.exists()


def test_damaged_data_is_exit_code_3(run, tmp_path):
    assert run("build", "shapes:pair:train:5", tmp_path / "out", "--workers", 1)[0] == 0
    path = tmp_path / "out" / shards.shard_name(0)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, _, err = run("inspect", tmp_path / "out", "--verify")
    assert code == 3 and "the file changed after it was built" in err
    path.write_bytes(b"")
    assert run("inspect", tmp_path / "out")[0] == 3


def test_encode_with_a_checkpoint(run, tmp_path):
    config = ImageTokenizerConfig(
        stem_patch=8, channels=8, channel_multipliers=(1,), blocks_per_level=1, latent_channels=4, norm_groups=4
    )
    shapes = jax.eval_shape(ImageTokenizer(config).init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    checkpoints.save_params(
        tmp_path / "checkpoint", {"image_tokenizer": params}, {"model": None, "image_tokenizer": config.to_released()}
    )
    checkpoints.save_params(
        tmp_path / "without", {"model": {"a": np.ones(1, np.float32)}}, {"model": {}, "image_tokenizer": None}
    )
    assert run("build", "shapes:edit:train:3", tmp_path / "pixels", "--workers", 1)[0] == 0
    arguments = ["--area", 64, "--batch", 4, "--dtype", "float32"]
    code, out, err = run(
        "encode", tmp_path / "pixels", tmp_path / "latents", "--checkpoint", tmp_path / "checkpoint", *arguments
    )
    assert (code, out) == (0, f"{tmp_path / 'latents'}: 3 samples, 6 images encoded\n"), err
    before, after = (ArrayRecordSource(tmp_path / name)[1].images[1] for name in ("pixels", "latents"))
    pixels = images.to_float(before.pixels())[None]
    posterior = jax.jit(lambda pixels: ImageTokenizer(config).apply({"params": params}, pixels, method="encode"))(pixels)
    np.testing.assert_allclose(after.latents(), scale_latents(posterior.mean, config)[0], atol=2e-5)
    code, _, err = run("encode", tmp_path / "pixels", tmp_path / "other", "--checkpoint", tmp_path / "without")
    assert code == 2 and "has no image tokenizer" in err


def test_the_commands_are_light_to_import():
    code = "import sys, nextstep_jax.cli_data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "numpy", "PIL", "grain"} & set(loaded)


def test_candidates_are_drawn_scored_and_counted(run, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle\nleft\nred\na blue square\n")
    reward = "2 python:tests.training.test_preference:brightness"
    drawn_with = ("--reward", reward, "--per-prompt", 3, "--steps", 2, "--json")
    code, text, _ = run("candidates", prompts, "shapes:counting:1:80x48", out, *drawn_with)
    report = json.loads(text)
    assert code == 0 and (report["prompts"], report["samples"], report["images"]) == (5, 3, 9)
    assert report["skipped"] == {"not scored": 1, "all scores equal": 1}
    found = json.loads(run("inspect", out, "--json")[1])["images"]
    assert [found[side]["max"] for side in ("height", "width")] == [64, 80] and found["height"]["min"] == 48
    for arguments, message in [
        (("--reward", "beauty"), "reward must be shapes, ocr,"),
        (("--reward", "much shapes"), "WEIGHT REWARD"),
        (("--reward", "shapes", "--per-prompt", 1), "--per-prompt"),
    ]:
        code, _, error = run("candidates", prompts, tmp_path / "other", *arguments)
        assert code == 2 and message in error and not (tmp_path / "other").exists()
