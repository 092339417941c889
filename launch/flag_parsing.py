"""Command lines of the launch programs: a config, changes to its settings, and a few flags. Every objection is one line."""

import importlib.util
import pathlib
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict

from nextstep_jax.errors import InputError
from nextstep_jax.launch.shipped import config_file
from nextstep_jax.training.config import override


def parse(argv: Sequence[str], values: flags.FlagValues, required: Iterable[str], usage: str) -> ConfigDict:
    """Parse the command line into `values`; returns the config of its flag --config, with every --config.KEY=VALUE in it.

    Raises:
      InputError: for anything the flags, the config's file or its settings object to, or a `required` flag without a value.
    """
    arguments, overrides = _split(argv)
    for module, own in values.flags_by_module_dict().items():
        if "launch" in module:
            for flag in own:
                flag.unparse()  # a second call in one process begins from the defaults
    try:
        rest = values(arguments)
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; settings are written --config.key=value")
    for name in required:
        if values[name].value is None:
            raise InputError(f"--{name} is missing; usage: {usage}")
    config = load_config(str(values["config"].value))
    for path, text in overrides:
        override(config, path, text)
    return config


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
    if not isinstance(config, ConfigDict) or "objective" not in config:
        raise InputError(f"--config {file}: get_config must return what base_config makes, found {type(config).__name__}")
    return config


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
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
