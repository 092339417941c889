"""Where the processes of a run find each other: told by hand, or by the scheduler that started them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nextstep_jax.errors import InputError

_HEARTBEAT_TIMEOUT_S = 60  # seconds without a sign of life after which a process counts as dead
_JOIN_TIMEOUT_S = 300  # seconds in which all processes must have come
_VARIABLES: Sequence[str] = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_FLAGS: Sequence[str] = ("--coordinator", "--num-processes", "--process-id")


class Rendezvous(NamedTuple):
    """What `jax.distributed.initialize` takes. The coordinator is process 0's machine and a free port there."""

    coordinator_address: str
    num_processes: int
    process_id: int


def find_rendezvous(environment: Mapping[str, str], flags: Sequence[str | int | None] | None = None) -> Rendezvous | None:
    """The rendezvous that flags, or else variables, tell; None if they tell nothing, so that JAX asks the scheduler.

    A coordinator's address in the environment alone tells nothing: a scheduler may know the rest.

    Args:
      flags: the values of `train`'s --coordinator, --num-processes and --process-id; None for a command without these flags,
        of which an error then says nothing.

    Raises:
      InputError: one of the three is missing, or cannot be.
    """
    given = flags or [None] * len(_FLAGS)
    address, count, number = (
        environment.get(variable) if value is None else value for value, variable in zip(given, _VARIABLES, strict=True)
    )
    if given[0] is None and count is None and number is None:
        return None
    names = wanted = _VARIABLES
    if flags is not None:
        names = [f"{flag} (or {variable})" for flag, variable in zip(_FLAGS, _VARIABLES, strict=True)]
        wanted = _FLAGS
    for value, name in zip((address, count, number), names, strict=True):
        if value is None:
            raise InputError(f"{name} is missing: a run of several processes needs {', '.join(wanted)}")
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", str(address))
    if not match or not 0 < int(match[2]) < 2**16:
        raise InputError(f"{names[0]} must be HOST:PORT, found {address!r}")
    processes = _whole(count, 1, None, names[1])
    return Rendezvous(str(address), processes, _whole(number, 0, processes, names[2]))


def join(rendezvous: Rendezvous | None) -> None:
    """Connect to the other processes, before anything else asks for JAX's devices; None: where the scheduler says they are.

    Raises:
      InputError: there is no scheduler that says so.
    """
    told: dict[str, Any] = rendezvous._asdict() if rendezvous else {}
    told |= {"initialization_timeout": _JOIN_TIMEOUT_S, "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT_S}
    try:
        jax.distributed.initialize(**told)
    except ValueError as error:
        by_hand = f"{', '.join(_VARIABLES)} tell it by hand"
        raise InputError(f"--distributed: no cluster found in the environment ({error}); {by_hand}") from error


def _whole(value: object, low: int, stop: int | None, name: str) -> int:
    number = int(str(value)) if re.fullmatch(r"[0-9]{1,9}", str(value)) else -1
    if number < low or (stop is not None and number >= stop):
        wanted = f"in [{low}, {stop})" if stop is not None else f"at least {low}"
        raise InputError(f"{name} must be a whole number {wanted}, found {value!r}")
    return number
