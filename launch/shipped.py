"""The configs that ship with the library, by name."""

import difflib
import os
import pathlib

from nextstep_jax import configs
from nextstep_jax.errors import InputError

CURATION = "curate_"  # how the names of curation's recipes begin


def config_names(curation: bool = False) -> list[str]:
    """Names of the shipped configs of runs, or of curation: `--config NAME` or `--config NAME:laptop`."""
    names = sorted(path.stem for path in _folder().glob("[!_]*.py"))
    return [name for name in names if name.startswith(CURATION) == curation]


def config_file(spec: str) -> str:
    """The file that a value of --config means, its argument kept: "NAME:laptop" -> "/.../NAME.py:laptop".

    A path stays what it is; NAME is one of `config_names`, unless a file of that name is here.

    Raises:
      InputError: a name that no shipped config has.
    """
    name, colon, argument = spec.partition(":")
    if pathlib.Path(name).suffix == ".py" or os.sep in name or os.path.isfile(name):
        return spec
    names = config_names() + config_names(curation=True)
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.4)
        known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise InputError(f"--config: neither a file nor the name of a shipped config: {name!r:.200}; {known}")
    return f"{_folder() / name}.py{colon}{argument}"


def config_summary(name: str) -> str:
    """The first sentence of a shipped config's docstring."""
    first = (_folder() / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].strip().split("\n\n")[0]
    return " ".join(first.split())


def _folder() -> pathlib.Path:
    return pathlib.Path(configs.__file__).parent
