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
    """Figures of one chip, of tpu7x those of half a chip, which is a device of its own.

    Attributes:
      flops: published dense bfloat16 FLOP/s.
      clock: Hz; follows from the peak and the number of multipliers.
      links: bytes/s of all its links together, one direction: 90 GB/s a link, 45 on v5e, as "How to Scale Your Model" has it.
        A chip of tpu7x has links as v5p, published as 1200 GB/s both ways, which its two devices share.
      memory: bytes that the compiler gives out, as the message says with which it refuses a program.
      host: bytes/s to and from the memory of its host, both directions together. No published figure: an assumption.
      kernel_efficiency: share of the peak that attention kernels are taken to reach, with heads of 128; the compiler says
        nothing about them. Such heads fill half of the matrix units of 256 that v6e and tpu7x have.
    """

    flops: float
    clock: float
    links: float
    memory: float
    host: float
    kernel_efficiency: float


# By the generation's name in a topology.
CHIPS = {
    "v5e": Chip(197e12, 1.5e9, 180e9, 15.75 * GIB, 12e9, 0.5),
    "v5p": Chip(459e12, 1.75e9, 540e9, 95.74 * GIB, 12e9, 0.5),
    "v6e": Chip(918e12, 1.75e9, 360e9, 31.25 * GIB, 12e9, 0.35),
    "tpu7x": Chip(2307e12 / 2, 2.2e9, 270e9, 94.75 * GIB, 6e9, 0.35),
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
