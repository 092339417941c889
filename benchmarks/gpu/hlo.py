"""What a compiled program writes to memory, read from its text."""

import math
import re

_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(")
_NO_COPY = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional"}


def written_in_loops(text: str, at_least: int) -> list[dict]:
    """Arrays of `at_least` bytes that the bodies of loops write at every turn, largest first.

    What a fusion computes on the way to its result is not written. A dynamic-update-slice is left out: it writes one slice of
    an array that stays where it is.
    """
    computations = {match[1]: match[0] for match in re.finditer(r"^(?:ENTRY )?%([\w.\-]+) .*?^}", text, re.M | re.S)}
    inner = set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text))
    bodies = set(re.findall(r"body=%([\w.\-]+)", text))
    found = []
    for name in reachable(bodies, computations) - inner:
        for line in computations.get(name, "").splitlines()[1:]:
            match = _INSTRUCTION.match(line)
            if not match or match[4] in _NO_COPY or "dynamic-update-slice" in line.split(" = ")[0].replace("_", "-"):
                continue
            size = _BYTES.get(match[2], 4) * math.prod(int(n) for n in match[3].split(",") if n)
            if size >= at_least:
                found.append({"name": match[1], "shape": f"{match[2]}[{match[3]}]", "bytes": size})
    return sorted(found, key=lambda array: -array["bytes"])


def reachable(names: set[str], computations: dict[str, str]) -> set[str]:
    """These computations and those that they run."""
    seen, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += re.findall(
            r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%([\w.\-]+)", computations.get(name, "")
        )
    return seen
