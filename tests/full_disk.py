"""Commands that write to a file system which is too small for what they make; run in a namespace of its own:

    unshare --user --map-root-user --mount python -m tests.full_disk FOLDER

prints one JSON object per command and size: the exit code, what was said, and whether the result is there. A command is given
a fraction of the space that it took when there was enough.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax

from nextstep_jax import checkpoints
from nextstep_jax.cli import main
from nextstep_jax.generation.load import builtin_checkpoint
from tests.conftest import GOLDENS

FRACTIONS = (0.02, 0.5, 0.9, 0.99)
TRAINING = ("--config", "shapes_tokenizer:laptop", "--config.steps=2", "--config.optimizer.warmup_steps=0")
TRAINING += ("--config.checkpoint.every=1", "--config.data.sources=('shapes:pair:train:8',)", "--config.data.batch_size=2")
TRAINING += ("--config.image_tokenizer.stem_patch=8", "--config.image_tokenizer.channel_multipliers=(1,)")
TRAINING += ("--config.image_tokenizer.blocks_per_level=1", "--config.data.height=16", "--config.data.width=16")


def run(*arguments) -> tuple[int, str]:
    """(exit code, standard error) of the command line in this process."""
    sys.argv = ["nextstep-jax", *map(str, arguments)]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1, said.getvalue()
    return 0, said.getvalue()


def contents(folder: pathlib.Path, parts: tuple[str, ...]) -> dict[str, int]:
    """Sizes of the files of a result by name, arrays' own files left out: those are named at random. A run's files vary in
    size: of them the names, after a look at the parameters' digests.
    """
    if trained := (folder / "export").is_dir():
        checkpoints.load_params(folder / "export")
    roots = [folder / part for part in parts]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root]) if file.is_file()]
    named = [file for file in files if not {"d", "ocdbt.process_0"} & {*file.parts}]
    return {str(file.relative_to(folder)): 0 if trained else file.stat().st_size for file in named}


def commands(folder: pathlib.Path):
    """(name, arguments but for the place, option before the place or "", what of the place is the result)."""
    converted, pixels = folder / "converted", folder / "pixels"
    assert run("convert", GOLDENS / "tiny_model", converted, "--vae", GOLDENS / "tiny_vae")[0] == 0
    assert run("data", "build", "shapes:pair:train:40", pixels, "--workers", 1)[0] == 0
    encode = ("data", "encode", pixels, "--checkpoint", builtin_checkpoint(), "--area", 64, "--dtype", "float32")
    reward = ("--reward", "python:tests.full_disk:score", "--per-prompt", 8, "--steps", 2)
    yield "convert", ("convert", GOLDENS / "tiny_model", "--vae", GOLDENS / "tiny_vae"), "", ("",)
    yield "export", ("export", converted), "", ("",)
    yield "build", ("data", "build", "shapes:pair:train:40", "--workers", 1), "", ("index.json", "shard-00000.array_record")
    yield "encode", encode, "", ("index.json", "shard-00000.array_record")
    yield "candidates", ("data", "candidates", "shapes:colors:3", *reward), "", ("index.json", "shard-00000.array_record")
    yield "generate", ("generate", "a red circle", "--steps", 2), "--out", ("",)
    yield "train", ("train", *TRAINING), "--workdir", ("export", "checkpoints/2")


def score(requests) -> list[dict[str, float]]:
    """A reward of candidates: how bright an image is."""
    return [{"reward": float(request.image.mean())} for request in requests]


def mount(place: pathlib.Path, size: int) -> None:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)


def unmount(place: pathlib.Path) -> None:
    """Lazily: a command that failed in this process may leave a file open until its exception is collected."""
    subprocess.run(["umount", "--lazy", place], check=True)


def try_all(folder: pathlib.Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for name, arguments, option, result in commands(folder):
        place = folder / name
        target = place / ("out.png" if name == "generate" else "out")
        words = (*arguments, option, target) if option else (*arguments, target)
        mount(place, 1 << 30)
        code, said = run(*words)
        assert code == 0, (name, said)
        space, whole = os.statvfs(place), contents(target, result)
        used = (space.f_blocks - space.f_bfree) * space.f_frsize
        unmount(place)
        for fraction in FRACTIONS[-2:] if name == "train" else FRACTIONS:
            mount(place, max(4096, int(used * fraction) // 4096 * 4096))
            code, said = run(*words)
            there = contents(target, result) == whole
            print(json.dumps({"name": name, "fraction": fraction, "code": code, "said": said, "there": there}), flush=True)
            unmount(place)
        shutil.rmtree(place)


if __name__ == "__main__":
    try_all(pathlib.Path(sys.argv[1]))
