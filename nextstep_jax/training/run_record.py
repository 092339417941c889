"""`config.json` in a run's folder: the settings a run has and the library's version, and what a restart may change.

A run that continues keeps what its saved state means: its architecture, where it started, its seed, which parameters are
trained and by which optimizer, whether there is an average, and which number says what step is best. Everything else may change
from one start to the next (more steps, another learning rate, another mesh, other intervals), and the log says what did. Data
has rules of its own: what a saved position cannot continue is refused where it is restored.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from nextstep_jax import __version__, storage
from nextstep_jax.checkpoints.steps import list_steps
from nextstep_jax.errors import InputError
from nextstep_jax.schema import flatten, plain
from nextstep_jax.storage import Place
from nextstep_jax.training.config import refuse_renamed
from nextstep_jax.training.settings import RunConfig

FILE = "config.json"

# Settings that a restart may not change...
_FIXED = re.compile(
    r"config\.(objective|seed|init\..*|optimizer\.(frozen|muon)|model\..*|image_tokenizer\..*|evals\..*\.watch)"
)
# ...but for those of a model that say how it runs or how much a loss counts.
_FREE = re.compile(
    r"config\.(model|image_tokenizer)\.(transformer\.(dtype|remat|attention_kernel)|dtype|flow_head\.batch_mul|input_noise"
    r"|(text|image)_loss_weight|perturbation|release)"
)


def write(workdir: Place, run: RunConfig) -> None:
    """Write the record of a run, in place of an earlier one."""
    text = json.dumps({"version": __version__, "config": plain(run)}, indent=1) + "\n"
    storage.of(workdir).write(workdir / FILE, text.encode())


def changes_since_start(workdir: Place, run: RunConfig) -> list[str]:
    """What has changed since the run in a folder was last started, one line a setting. Nothing where no step is saved.

    Raises:
      InputError: the record cannot be read, has settings under names of an older version, or one has changed that may not.
    """
    storage.of(workdir).require(workdir)
    path = workdir / FILE
    if not path.exists() or not list_steps(workdir / "checkpoints"):
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before = dict(flatten(record["config"], "config"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected the settings of a run ({error!r})") from error
    try:
        refuse_renamed(name.removeprefix("config.") for name in before)
    except InputError as error:
        raise InputError(f"{path}, written by version {record.get('version')}: {error}") from error
    now = dict(flatten(plain(run), "config"))
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    lines = {name: f"{name}: {_show(before, name)} -> {_show(now, name)}" for name in changed}
    fixed = [name for name in lines if _FIXED.fullmatch(name) and not _FREE.fullmatch(name)]
    # What an older version did not know was off.
    fixed = [name for name in fixed if name in before or now[name]]
    if "config.ema_decay" in lines and not (before.get("config.ema_decay") and now["config.ema_decay"]):
        fixed.append("config.ema_decay")
    if fixed:
        raise InputError(
            f"{workdir}: this run was started with other settings, and these cannot change "
            f"({'; '.join(lines[name] for name in fixed)}); use another workdir"
        )
    version = record.get("version")
    return ([] if version == __version__ else [f"version: {version} -> {__version__}"]) + list(lines.values())


def _show(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "nothing"
