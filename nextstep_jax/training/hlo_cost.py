"""What a compiled program costs, read from its optimized HLO: FLOPs, collectives and an estimate of its time.

XLA's own `cost_analysis()` counts the body of a loop once, however often it runs, so a scanned step of 48 layers looks 48 times
too cheap. Here every instruction counts as often as it runs: trip counts are read from the loops' conditions.

The TPU compiler writes the cycles it expects into most instructions (`estimated_cycles`). It writes none into Pallas kernels
and collectives; these are estimated from their FLOPs and bytes. All of it is an estimate: nothing here has run.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

from nextstep_jax.errors import NextStepError
from nextstep_jax.sharding.topologies import Chip

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Bytes/s of one chip between slices: 200 Gbit/s a host of four chips.
DCN_BYTES_PER_SECOND = 6.25e9

_KERNEL = 'custom_call_target="tpu_custom_call"'  # of Pallas; the only ones in the library's programs are the splash kernels
_KERNEL_FLOPS = {"splash_mha_fwd": 4.0, "splash_mha_dkv": 10.0}  # by name: of a pair and a position of a head
_HOST = "S(5)"  # in the layout of an array: it is in the memory of the host
_ASIDE = "call-start"  # what a TPU's other cores, the sparse ones, do beside the instructions up to its `call-done`
_ASYNC_FUSION = "async_collective_fusion"  # names of the fusions that the TPU compiler runs a collective beside

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
_BYTES |= {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of HLO: `shape` and `rest` (operands and attributes) as text."""

    name: str
    shape: str
    opcode: str
    rest: str


class Collective(NamedTuple):
    """All collectives of one type in one run, on one device: how many, and the bytes of their largest operand or result."""

    count: float  # type: ignore[assignment]  # hides tuple.count, which nobody asks this for
    bytes: float


class Item(NamedTuple):
    """What one instruction costs in a run.

    Attributes:
      kind: one of KINDS.
      seconds, times: of all its runs together, and how many these are.
      name, shape: as in the text.
      source: the operation of the model that it comes from, where the compiler says so.
    """

    kind: str
    seconds: float
    times: float
    name: str
    shape: str
    source: str


INSTRUCTION, KERNEL, BLOCKING = "instructions", "attention kernels", "blocking collectives"
OVERLAPPED, HOST = "overlapped collectives", "copies to and from the host"
KINDS = (INSTRUCTION, KERNEL, BLOCKING, OVERLAPPED, HOST)


class Cost(NamedTuple):
    """One run of a program on one device.

    Attributes:
      flops: multiply-adds of matrix products, times two; recomputed ones and masked ones of attention kernels too.
      items: what takes time.
      collectives: by type, whether computation goes on beside them or not.
    """

    flops: float
    items: list[Item]
    collectives: dict[str, Collective]

    def of(self, kind: str) -> float:
        """Seconds of all items of a kind."""
        return sum(item.seconds for item in self.items if item.kind == kind)

    @property
    def kernels(self) -> float:
        """Launches of attention kernels."""
        return sum(item.times for item in self.items if item.kind == KERNEL)

    def costliest(self, count: int) -> list[Item]:
        """The items that take longest, longest first."""
        return sorted(self.items, key=lambda item: -item.seconds)[:count]

    @property
    def seconds(self) -> float:
        """Computation, or what runs beside it (collectives; copies to and from the host), whichever takes longest, and then
        what blocks.
        """
        return max(self.of(INSTRUCTION) + self.of(KERNEL), self.of(OVERLAPPED), self.of(HOST)) + self.of(BLOCKING)


class _Seen(NamedTuple):
    """One collective: how often it runs, its bytes, whether computation goes on beside it, its devices, its instruction."""

    kind: str
    times: float
    size: float
    overlaps: bool
    group: int
    instruction: Instruction


def read_cost(hlo: str, chip: Chip, devices: int) -> Cost:
    """The cost of a program on `devices` chips, from `compiled.as_text()`."""
    computations, entry = parse(hlo)
    runs, fused, bodies, beside = count_runs(computations, entry)
    flops, items = 0.0, []
    seen: dict[tuple[str, str], _Seen] = {}
    counts: defaultdict[str, float] = defaultdict(float)
    sizes: defaultdict[str, float] = defaultdict(float)

    def spend(kind: str, seconds: float, times: float, i: Instruction) -> None:
        source = re.search(r'op_name="([^"]*)"', i.rest)
        items.append(Item(kind, times * seconds, times, i.name, i.shape, source[1] if source else ""))

    for name, instructions in computations.items():
        times, shapes = runs[name], {i.name: i.shape for i in instructions}
        for i in instructions if times else ():
            flops += times * product_flops(i, shapes)
            found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
            if found and not fused[name] and name not in beside:  # inside a fusion, they are the fusion's
                spend(INSTRUCTION, int(found[1]) / chip.clock, times, i)
            if i.opcode == "custom-call" and _KERNEL in i.rest:
                of_kernel = attention_flops(i, shapes)
                flops += times * of_kernel
                spend(KERNEL, of_kernel / (chip.kernel_efficiency * chip.flops), times, i)
            kind = i.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                starts = kind != i.opcode
                # The result of a start repeats its operand.
                arrays = _parts(i.shape) if starts else (i.shape, *operands(i, shapes))
                # One that goes on beside several fusions is written into each of them, under one channel.
                channel = re.search(r"channel_id=(\d+)", i.rest)
                key = (bodies[name], channel[1] if channel else i.name)
                found_size, found_overlaps = seen[key][2:4] if key in seen else (0.0, False)
                size = max(map(bytes_of, arrays), default=0.0)
                overlaps = starts or name.startswith(_ASYNC_FUSION) or found_overlaps
                if name in beside:
                    overlaps = beside[name] / chip.clock >= wire_seconds(kind, size, group_size(i.rest), chip, devices)
                if kind == "all-reduce" and fused[name] and not overlaps:
                    kind = "reduce-scatter"  # the TPU compiler writes it as a fusion of an all-reduce and a slice
                seen[key] = _Seen(kind, times, max(size, found_size), overlaps, group_size(i.rest), i)
            if i.opcode == "send":
                counts["send between slices"] += times
                sizes["send between slices"] += times * bytes_of(i.shape)
                spend(OVERLAPPED, bytes_of(i.shape) / DCN_BYTES_PER_SECOND, times, i)
            if size := host_bytes(i):
                spend(HOST, size / chip.host, times, i)
    for one in seen.values():
        counts[one.kind] += one.times
        sizes[one.kind] += one.times * one.size
        seconds = wire_seconds(one.kind, one.size, one.group, chip, devices)
        spend(OVERLAPPED if one.overlaps else BLOCKING, seconds, one.times, one.instruction)
    return Cost(flops, items, {kind: Collective(counts[kind], sizes[kind]) for kind in sorted(counts)})


# --- reading the text -------------------------------------------------------------------------------------------------


def parse(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module, and the name of the one that is run."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations[found[2]] = []
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(Instruction(*found.groups()))
    return computations, entry


def count_runs(
    computations: dict[str, list[Instruction]], entry: str
) -> tuple[dict[str, float], dict[str, bool], dict[str, str], dict[str, float]]:
    """How often each computation runs, whether it is inside a fusion (its caller accounts for its time), the body of a loop (or
    the entry) that it is part of, and of those that other cores run, the cycles that go on beside them.
    """
    runs: defaultdict[str, float] = defaultdict(float)
    fused: defaultdict[str, bool] = defaultdict(bool)
    bodies, beside = {entry: entry}, {}
    order, seen = [], set()

    def visit(name: str) -> None:
        if name not in seen and name in computations:
            seen.add(name)
            for i in computations[name]:
                for callee, _ in _calls(i, computations, {}):
                    visit(callee)
            order.append(name)

    visit(entry)
    runs[entry] = 1.0
    for name in reversed(order):  # callers before what they call
        around = {i.name: i for i in computations[name]}
        for i in computations[name]:
            for callee, times in _calls(i, computations, around):
                runs[callee] += runs[name] * times
                fused[callee] |= fused[name] or i.opcode == "fusion"
                bodies[callee] = callee if i.opcode == "while" else bodies[name]
                if i.opcode == _ASIDE or name in beside:
                    beside[callee] = _cycles_beside(i, computations[name])
    return runs, fused, bodies, beside


def _cycles_beside(start: Instruction, instructions: list[Instruction]) -> float:
    """Cycles of what stands between an instruction that other cores are given and the one that waits for it; those of a kernel,
    of which the compiler says nothing, are taken to be enough for anything.
    """
    cycles = 0.0
    for i in instructions[instructions.index(start) + 1 :]:
        if i.opcode == "call-done" and start.name in _operand_names(i):
            break
        found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
        cycles += int(found[1]) if found else math.inf if _KERNEL in i.rest else 0.0
    return cycles


def _calls(
    i: Instruction, computations: dict[str, list[Instruction]], around: dict[str, Instruction]
) -> list[tuple[str, float]]:
    if i.opcode == "while":
        condition, body = (re.findall(rf"{key}=%?([\w.\-]+)", i.rest)[0] for key in ("condition", "body"))
        return [(body, trip_count(i, computations[condition], around))]
    attribute = "to_apply" if i.opcode == _ASIDE else "calls"
    return [(name, 1.0) for name in re.findall(rf"(?<![\w]){attribute}=%?([\w.\-]+)", i.rest)]


def trip_count(loop: Instruction, condition: list[Instruction], around: dict[str, Instruction]) -> float:
    """Runs of a loop's body: what the compiler knows, else from where its counter starts, among the instructions `around` the
    loop, to the constant that it is compared with, else 1.

    Where the compiler takes the first run out of a loop, the counter starts at 1.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return float(found[1])
    limits = [value for i in condition if (value := _constant(i)) is not None]
    if len(limits) != 1:
        return 1.0
    counters = [i.rest for i in condition if i.opcode == "get-tuple-element" and i.shape.startswith("s32[]")]
    if len(counters) != 1 or not (index := re.search(r"index=(\d+)", counters[0])):
        return limits[0]
    state = around.get(_operand_names(loop)[0])
    values = _operand_names(state) if state and state.opcode == "tuple" else []
    start = around.get(values[int(index[1])]) if values else None
    while start and start.opcode in ("copy", "bitcast"):
        start = around.get(_operand_names(start)[0])
    return limits[0] - ((start and _constant(start)) or 0.0)


def _constant(i: Instruction) -> float | None:
    """The value of a whole number, None for anything else."""
    number = re.match(r"(-?\d+)\)", i.rest) if i.opcode == "constant" and i.shape.startswith("s32[]") else None
    return float(number[1]) if number else None


def dims_of(shape: str) -> list[int]:
    """Dimensions of an array, of the first one of a tuple."""
    found = _SHAPE.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def bytes_of(shape: str) -> float:
    """Bytes of an array, or of a tuple's arrays together."""
    parts = _SHAPE.findall(shape)
    return sum(_BYTES.get(dtype, 0) * math.prod(int(size) for size in dims.split(",") if size) for dtype, dims in parts)


def _parts(shape: str) -> list[str]:
    return [f"{dtype}[{dims}]" for dtype, dims in _SHAPE.findall(shape)]


def operands(i: Instruction, shapes: dict[str, str]) -> list[str]:
    """Shapes of an instruction's operands, those defined in the same computation."""
    return [shapes[name] for name in _operand_names(i) if name in shapes]


def _operand_names(i: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", i.rest.split("), ")[0])


def group_size(rest: str) -> int:
    """Devices that take part in one collective, from either spelling of its replica groups; 2 where it has none."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", found[2]))
    return 2


# --- what an instruction costs ----------------------------------------------------------------------------------------


def product_flops(i: Instruction, shapes: dict[str, str]) -> float:
    """FLOPs of a dot, or of a convolution, which is what the TPU compiler makes of products; 0 for anything else."""
    if i.opcode not in ("dot", "convolution"):
        return 0.0
    inputs, outputs = operands(i, shapes), math.prod(dims_of(i.shape))
    if len(inputs) < 2:
        return 0.0
    left, right = dims_of(inputs[0]), dims_of(inputs[1])
    if i.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        return 2.0 * outputs * math.prod(left[int(d)] for d in contracted[1].split(",") if d) if contracted else 2.0 * outputs
    left_labels, right_labels, out_labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)[0]
    out, total = dims_of(i.shape), 2.0 * right[right_labels.index("i")]
    for label, size in zip(out_labels, out, strict=True):
        if not label.isdigit():
            total *= size
        elif "lhs_dilate" in i.rest:
            total *= size  # a batch dimension in disguise: each output sees one pair
        else:
            total *= min(size, left[left_labels.index(label)]) * right[right_labels.index(label)]
    return total


def attention_flops(i: Instruction, shapes: dict[str, str]) -> float:
    """FLOPs of a splash kernel on causal rows: two products of the forward pass, five of the backward pass, over the blocks
    that the kernel visits. Where the queries of a row are split over devices, these are those of the last one, which has most.

    Raises:
      NextStepError: another kernel, whose time would be left out.
    """
    if (phase := next((name for name in _KERNEL_FLOPS if name in i.name), None)) is None:
        raise NextStepError(f"kernel {i.name} of the compiled program: its FLOPs are not known, only those of splash kernels")
    of_operands = operands(i, shapes)
    inputs = [dims for shape in of_operands if len(dims := dims_of(shape)) >= 3 and dims[-1] >= 64]
    queries, keys = max(inputs, key=math.prod), max(dims[-2] for dims in inputs)
    # What each block is like: [1, blocks of queries, blocks of keys].
    grid = next(dims for shape in of_operands if shape.startswith("s8[") and len(dims := dims_of(shape)) == 3)
    return _KERNEL_FLOPS[phase] * math.prod(queries) * keys * visited(queries[-2], keys, *grid[1:])


def visited(queries: int, keys: int, query_blocks: int, key_blocks: int) -> float:
    """Share of the blocks of pairs that have a visible one, of the last `queries` positions of causal rows of `keys`."""
    ends = ((n + 1) * queries // query_blocks + keys - queries for n in range(query_blocks))
    return sum(-(-end * key_blocks // keys) for end in ends) / (query_blocks * key_blocks)


def host_bytes(i: Instruction) -> float:
    """Bytes that an instruction begins to move to or from the memory of the host, 0 for most. That memory is space 5."""
    if _HOST not in i.shape or not i.opcode.endswith("-start"):
        return 0.0
    # What moves is the smallest of the arrays: a copy's only one, or a slice beside the stack that it goes to or comes from.
    return min((bytes_of(part) for part in _parts(i.shape) if dims_of(part)), default=0.0)


def wire_seconds(kind: str, size: float, group: int, chip: Chip, devices: int) -> float:
    """Seconds that a collective of `size` bytes over `group` devices keeps the links busy.

    A group is taken to use as many of the links as it fills of the machine's dimensions.
    """
    if group < 2:
        return 0.0
    bandwidth = chip.links * min(1.0, math.log(group) / math.log(max(devices, 2)))
    passes = 2.0 if kind == "all-reduce" else 1.0
    return passes * size * (group - 1) / group / bandwidth
