"""Config files by name or path, and changes to their settings on command lines."""

import importlib.util
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from nextstep_jax.errors import InputError
from nextstep_jax.launch.shipped import config_file


def load_config(spec: str) -> ConfigDict:
    """The config that a value of --config means: NAME, PATH.py, or either with ":ARGUMENT" behind it.

    Raises:
      InputError: there is no such file, or it fails.
    """
    path, _, argument = config_file(spec).partition(".py:")
    file = pathlib.Path(path if path.endswith(".py") else f"{path}.py")
    if not file.is_file():
        raise InputError(f"--config: the file cannot be read ({file})")
    found = importlib.util.spec_from_file_location(f"config_file_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except InputError:
        raise
    except Exception as error:  # whatever a config file raises
        raise InputError(f"--config {file}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config {file}: get_config must return a ConfigDict, found {type(config).__name__}")
    return config


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments that are no settings, and the settings: --config.KEY=VALUE or --config.KEY VALUE."""
    arguments: list[str] = []
    overrides: list[tuple[str, str]] = []
    remaining = iter(argv)
    for argument in remaining:
        name, equals, text = argument.partition("=")
        if not name.startswith(("--config.", "-config.")):
            arguments.append(argument)
            continue
        if not equals:
            text = next(remaining, "--")
            if text.startswith("--"):
                raise InputError(f"{name} needs a value: {name}=VALUE")
        overrides.append((name.lstrip("-").removeprefix("config."), text))
    return arguments, overrides
