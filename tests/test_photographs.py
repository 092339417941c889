"""From a folder of photographs with captions to a picture, by nothing but the commands that the README names."""

import pathlib
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from nextstep_jax import checkpoints
from nextstep_jax.cli import main
from nextstep_jax.data.images import load
from nextstep_jax.launch import train as launch_train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
CAPTIONS = ("hills under a cloudy sky", "a lake at dusk", "Dunes, seen from above.", "fog over the city")


def landscape(rng, height, width):
    """Something with a photograph's statistics: smooth, noisy, every color a little different. [height, width, 3] uint8."""
    size = max(height, width)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    spectrum = np.fft.fft2(rng.normal(size=(3, size, size))) / (frequency + 1 / size) ** 1.5
    field = np.fft.ifft2(spectrum).real[:, :height, :width]
    field = (field - field.mean()) / field.std() * 45 + 120 + np.linspace(60, -40, height)[:, None]
    return np.clip(field + rng.normal(size=field.shape) * 4, 0, 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.fixture
def photographs(tmp_path):
    """Twelve JPEGs of several sizes, portrait and landscape, each with a caption beside it."""
    folder, rng = tmp_path / "my photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        height, width = ((120, 160), (150, 100), (96, 96))[i % 3]
        Image.fromarray(landscape(rng, height, width)).save(folder / f"IMG {i:04d}.jpg", quality=88)
        (folder / f"IMG {i:04d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])
    return folder


@pytest.fixture
def command(monkeypatch):
    """Run `nextstep-jax` with arguments; it must succeed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nextstep-jax", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0, arguments

    return run


@pytest.fixture
def train(monkeypatch):
    """Run launch/train.py with arguments; it must succeed."""

    def run(*arguments):
        argv = ["launch/train.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        assert launch_train.main(argv) == 0
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS["workdir"].value = flags.FLAGS["config"].value = None

    return run


def test_photographs_become_a_model_that_draws(photographs, command, train, tmp_path):
    pixels, latents, runs = tmp_path / "data" / "pixels", tmp_path / "data" / "pairs", tmp_path / "runs"
    command("data", "build", photographs, pixels, "--workers", 1)

    own = ("--config.steps=3", "--config.checkpoint.every=0")
    pictures = (f"--config.data.sources=('{pixels}',)", "--config.data.batch_size=4")
    train("--config", f"{CONFIGS}/tokenizer_f8ch16.py:laptop", "--workdir", runs / "tokenizer", *pictures, *own)
    tokenizer = runs / "tokenizer" / "export"
    command("data", "encode", pixels, latents, "--checkpoint", tokenizer, "--area", 64, "--batch", 4)

    model = (f"--config.data.root={tmp_path / 'data'}", f"--config.image_tokenizer_checkpoint={tokenizer}")
    only_pairs = ("--config.data.sources.text.weight=0.0", "--config.data.sources.interleaved.weight=0.0")
    source = ("--config.data.sources.pairs.path=pairs", "--config.data.seq_len=128", "--config.data.batch_size=2")
    train(
        "--config", f"{CONFIGS}/nextstep_14b_stage1.py:laptop", "--workdir", runs / "model", *model, *only_pairs, *source, *own
    )

    checkpoint, picture = runs / "model" / "export", tmp_path / "out.png"
    assert checkpoints.load_config(checkpoint)["image_tokenizer"]
    size = ("--height", 32, "--width", 64, "--steps", 2, "--cfg", 2)
    command("generate", "a lake under a cloudy sky", "--checkpoint", checkpoint, "--out", picture, *size)
    assert load(picture).size == (64, 32)
