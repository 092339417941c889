"""The wheel, installed on its own and used from another folder: it generates, trains and knows its configs."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*command, cwd, **environment):
    dropped = ("PYTHONPATH", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """bin folder of a virtual environment that holds the wheel, and sees this environment's packages for everything else."""
    try:
        importlib.metadata.version("build")  # not a search for a module: `pip install .` leaves a folder build/ in the checkout
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "zz_shared.pth").write_text("\n".join(shared))  # adds folders; their own .pth files are not read
    pip = [sys.executable, "-m", "pip", "--python", folder / "env" / "bin" / "python"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "env" / "bin"


def test_the_package_is_the_installed_one(installed, tmp_path):
    code = "import nextstep_jax as n, importlib.resources as r; print(n.__file__, r.files(n).joinpath('py.typed').is_file())"
    assert run(installed / "python", "-c", code, cwd=tmp_path).split() == [
        str(next((installed.parent / "lib").glob("python*/site-packages/nextstep_jax/__init__.py"))),
        "True",
    ]


def test_the_wheel_generates(installed, tmp_path):
    assert run(installed / "nextstep-jax", "--version", cwd=tmp_path).startswith("nextstep-jax, version ")
    assert run(installed / "nextstep-jax", "generate", "a red circle", "--out", "x.png", cwd=tmp_path) == "x.png\n"
    assert (tmp_path / "x.png").stat().st_size > 100


def test_the_wheel_trains_a_shipped_config(installed, tmp_path):
    overrides = ("--config.steps=2", "--config.optimizer.warmup_steps=0")
    run(
        installed / "nextstep-jax", "train", "--config", "shapes_tokenizer:laptop", "--workdir", "run", *overrides, cwd=tmp_path
    )
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    names = run(installed / "nextstep-jax", "train", "--help", cwd=tmp_path)
    names += run(installed / "nextstep-jax", "data", "curate", "--help", cwd=tmp_path)
    assert all(path.stem in names for path in (ROOT / "configs").glob("[!_]*.py"))


def test_the_build_requirements_are_an_extra():
    """Building without isolation needs what pyproject asks for: the extra dev brings it."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    extra = (ROOT / "setup.cfg").read_text().partition("\ndev =")[2]
    assert all(requirement.replace(">=", " >=") in extra for requirement in required)
