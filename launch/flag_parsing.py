"""Command lines of the launch programs: a config, changes to its settings, and a few flags. Every objection is one line."""

from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict

from nextstep_jax.errors import InputError
from nextstep_jax.launch.config_files import load_config, split_overrides
from nextstep_jax.training.config import override


def parse(argv: Sequence[str], values: flags.FlagValues, required: Iterable[str], usage: str) -> ConfigDict:
    """Parse the command line into `values`; returns the config of its flag --config, with every --config.KEY=VALUE in it.

    Raises:
      InputError: for anything the flags, the config's file or its settings object to, or a `required` flag without a value.
    """
    arguments, overrides = split_overrides(argv)
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
    spec = str(values["config"].value)
    config = load_config(spec)
    if "objective" not in config:
        raise InputError(f"--config {spec}: not a config of a run (no objective)")
    for path, text in overrides:
        override(config, path, text)
    return config
