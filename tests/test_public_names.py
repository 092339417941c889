"""The package's own names: all there, each from where it lives, and nothing loaded before it is used."""

import pathlib
import subprocess
import sys

import pytest

import nextstep_jax

HEAVY = ("jax", "flax", "numpy", "optax", "grain", "tensorflow_datasets", "ml_collections", "absl", "torch")


def modules_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", nextstep_jax.__all__)
def test_every_public_name_is_its_modules(name):
    value = getattr(nextstep_jax, name)
    assert value.__module__.startswith("nextstep_jax.") and value.__name__ == name
    assert name in dir(nextstep_jax) and value.__doc__


def test_the_list_the_table_and_the_types_name_the_same():
    assert set(nextstep_jax.__all__) == set(nextstep_jax._MODULES)
    source = pathlib.Path(nextstep_jax.__file__).read_text().split("TYPE_CHECKING:")[1].split("_MODULES")[0]
    imported = {
        name.strip(" ,\n") for line in source.splitlines() if "import" in line for name in line.split("import")[1].split(",")
    }
    assert imported == set(nextstep_jax.__all__)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'pipeline_of_dreams'"):
        nextstep_jax.pipeline_of_dreams  # noqa: B018


def test_importing_the_package_loads_nothing_else():
    assert not modules_after("import nextstep_jax").intersection(HEAVY)


def test_generating_needs_no_training_stack():
    loaded = modules_after("from nextstep_jax import Pipeline, GenerationConfig, load_params, generate_interleaved")
    assert "jax" in loaded and not loaded.intersection({"optax", "grain", "tensorflow_datasets", "ml_collections", "torch"})
