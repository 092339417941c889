"""TPU topologies without the hardware: their devices for ahead-of-time compilation, and the peak figures of each chip.

    mesh = make_mesh({"fsdp": -1}, topology_devices("v5p:4x4x4"))

A program lowered for such a mesh is compiled by the real TPU compiler, on any machine that has libtpu (the extra `tpu`).
"""

import importlib.util
import re
from typing import NamedTuple

import jax

from nextstep_jax.errors import InputError

GIB = 2**30


class Chip(NamedTuple):
    """Published figures of one chip: dense bfloat16 FLOP/s, and bytes/s of all its links together, one direction; its clock in
    Hz, which follows from the peak and the number of multipliers; and the bytes of its memory that the compiler gives out, as
    the message says with which it refuses a program.
    """

    flops: float
    clock: float
    links: float
    memory: float


# By the generation's name in a topology.
CHIPS = {
    "v5e": Chip(197e12, 1.5e9, 200e9, 15.75 * GIB),
    "v5p": Chip(459e12, 1.75e9, 600e9, 95.74 * GIB),
    "v6e": Chip(918e12, 1.75e9, 448e9, 31.25 * GIB),
}


def generation(topology: str) -> str:
    """The generation in a topology's name, a key of CHIPS.

    Raises:
      InputError: not GENERATION:AxB or GENERATION:AxBxC.
    """
    found = re.fullmatch(r"(\w+):\d+x\d+(x\d+)?", topology)
    if not found or found[1] not in CHIPS:
        kinds = ", ".join(CHIPS)
        raise InputError(f"topology must be one of {kinds}, a colon and a shape such as v5p:4x4x4, found {topology!r}")
    return found[1]


def topology_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of `slices` machines called e.g. "v5p:4x4x4" or "v6e:16x16", to compile for.

    Raises:
      InputError: libtpu is not installed, or knows no such machine.
    """
    from jax.experimental import topologies

    generation(topology)
    if slices < 1:
        raise InputError(f"slices must be at least 1, found {slices}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"topology {topology!r} needs the TPU compiler, libtpu: install the extra `tpu`")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices)
    except Exception as error:  # each failure has a type of its own
        line = " ".join(str(error).split())
        raise InputError(f"topology {topology!r} cannot be made ({line})") from error
