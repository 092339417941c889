"""The stream of parameters between released files and a checkpoint: read, checked, laid out, one at a time."""

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nextstep_jax.conversion import names
from nextstep_jax.conversion.names import Entry
from nextstep_jax.conversion.released import FLOATS, Part
from nextstep_jax.conversion.torch_files import BFLOAT16, StoredTensor
from nextstep_jax.errors import InputError
from nextstep_jax.models.nextstep import gen_pos_embed

# Told how far it is: (bytes done, bytes in all).
Progress = Callable[[int, int], None]

_PIECE = 1 << 22  # elements checked together
# Largest difference between a stored position table and the formula: rounding of its dtype, entries up to 1.
_TABLE_TOLERANCE = {"float64": 1e-6, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


def no_progress(done: int, total: int) -> None:
    """The `Progress` of a caller that shows none."""


class ParamStream:
    """All parameters of a source as (path, function that reads it), in the order of the network.

    Iterating reads and checks; at the end it raises one InputError if any tensor was unusable.

    Attributes:
      dropped: what was deliberately left out, complete after iterating: rows {"name", "part", "dtype", "shape",
        "restore"}, where `restore` says that an export can make the tensor again bit for bit.
    """

    def __init__(self, parts: Sequence[Part], dtype: np.dtype | None, seed: int, progress: Progress):
        self._parts, self._dtype, self._seed, self._progress = parts, dtype, seed, progress
        self._problems: list[str] = []
        self.dropped: list[dict[str, Any]] = []

    @property
    def parameters(self) -> int:
        """How many numbers there are to write."""
        return sum(math.prod(entry.shape) for entry, _ in self._written())

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return sum(math.prod(entry.shape) * dtype.itemsize for entry, dtype in self._written())

    def validate(self) -> None:
        """Before anything is written: InputError if names, shapes or dtypes do not fit. It lists bad values as well."""
        problems = [_line(part, problem) for part in self._parts for problem in part.problems]
        for part, (_, tensor) in self._pairs():
            if tensor.dtype == np.float64 and self._dtype is None:
                problems.append(_line(part, f"{tensor.name}: float64 cannot be kept; convert to float32 or bfloat16"))
        if problems:
            for part, (_, tensor) in self._pairs():
                if tensor.dtype in FLOATS and not is_finite(np.ascontiguousarray(tensor.read())):
                    problems.append(_line(part, f"{tensor.name}: has NaN or infinities"))
            self._refuse(problems)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        total = sum(tensor.nbytes for _, (_, tensor) in self._pairs())
        done = 0
        for part in self._parts:
            for entry, tensor in part.pairs:
                self._progress(done, total)
                yield f"{part.name}/{entry.path}", functools.partial(self._read, part, entry, tensor)
                done += tensor.nbytes
            for entry in part.initialized:
                yield f"{part.name}/{entry.path}", functools.partial(self._init, part, entry)
            for tensor in part.dropped:
                self._drop(part, tensor)
        self._progress(total, total)
        self._refuse(self._problems)

    def _pairs(self) -> Iterator[tuple[Part, tuple[Entry, StoredTensor]]]:
        return itertools.chain.from_iterable(((part, pair) for pair in part.pairs) for part in self._parts)

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            where = self._parts[0].folder
            listed = "\n".join(f"  {line}" for line in sorted(problems))
            raise InputError(f"{where}: {len(problems)} tensors do not fit\n{listed}")

    def _written(self) -> Iterator[tuple[Entry, np.dtype]]:
        """Every parameter with the dtype it is written in."""
        for part in self._parts:
            yield from ((entry, self._dtype or tensor.dtype) for entry, tensor in part.pairs)
            yield from ((entry, self._init_dtype(part)) for entry in part.initialized)

    def _init_dtype(self, part: Part) -> np.dtype:
        """Initialized parameters take the dtype of the embedding."""
        return self._dtype or part.pairs[0][1].dtype

    def _read(self, part: Part, entry: Entry, tensor: StoredTensor) -> np.ndarray:
        array = np.ascontiguousarray(tensor.read())
        if self._dtype is not None:
            with np.errstate(over="ignore"):
                array = array.astype(self._dtype, copy=False)
        if not is_finite(array):  # after the cast: a float64 may leave float32's range
            self._problems.append(_line(part, f"{tensor.name}: has NaN or infinities"))
        return names.contiguous(entry.load(array))

    def _init(self, part: Part, entry: Entry) -> np.ndarray:
        deviation = part.released.get("initializer_range", 0.02)
        if not isinstance(deviation, int | float) or not 0 <= deviation < 1:
            raise InputError(f"{part.folder / 'config.json'}: initializer_range must be in [0, 1), found {deviation!r:.100}")
        return init_parameter(entry, float(deviation), self._seed).astype(self._init_dtype(part))

    def _drop(self, part: Part, tensor: StoredTensor) -> None:
        name, restore = names.strip_prefix(tensor.name), False
        if name == names.POSITION_TABLE:
            restore = self._check_position_table(part, tensor)
        elif name == names.LANGUAGE_HEAD:
            restore = self._check_tied_head(part, tensor)
        row = {"name": name, "part": part.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape), "restore": restore}
        self.dropped.append(row)

    def _check_tied_head(self, part: Part, tensor: StoredTensor) -> bool:
        """Whether a stored head is the embedding bit for bit. It must have the embedding's values, to which it is tied."""
        embedding = next(stored for entry, stored in part.pairs if entry.source == names.EMBEDDING)
        head, table = tensor.read(), embedding.read()
        if not np.array_equal(head, table):
            self._problems.append(f"{tensor.name}: differs from {names.EMBEDDING}, which the config ties it to")
        return _same_bits(head, table)

    def _check_position_table(self, part: Part, tensor: StoredTensor) -> bool:
        """Whether a stored table is the formula's, bit for bit. Where the config uses it, it must be the formula's."""
        config, tokens = part.config, math.prod(tensor.shape[:-1])
        used, width = config.use_gen_pos_embed, config.transformer.width
        grid = config.base_grid if used else math.isqrt(tokens)
        if tensor.shape != (1, grid * grid, width) or tensor.dtype not in FLOATS or width % 4:
            if used:
                expected = f"a float table of shape {[1, grid * grid, width]}"
                self._problems.append(f"{tensor.name}: {tensor.dtype} of shape {list(tensor.shape)}, expected {expected}")
            return False
        stored, formula = tensor.read(), gen_pos_embed(grid, width)[None]
        if used and not np.abs(stored.astype(np.float64) - formula).max() <= _TABLE_TOLERANCE[stored.dtype.name]:
            self._problems.append(f"{tensor.name}: is not the fixed sine table, which is the only one supported")
        return _same_bits(formula.astype(stored.dtype), stored)


def init_parameter(entry: Entry, deviation: float, seed: int) -> np.ndarray:
    """A randomly initialized parameter of the image parts, float32 `[*shape]`, as both training releases initialize it.

    Projectors: N(0, initializer_range). Flow head: Xavier-uniform linears, N(0, 0.02) in the time embedding, zeros in the
    modulations and in the final layer. Biases are 0, norm gains 1. Each parameter has a generator of its own, seeded by
    `seed` and its path.
    """
    module, kind = entry.path.rsplit("/", 1)
    if kind != "kernel" or "modulation" in module or module == "flow_head/final/output":
        return np.full(entry.shape, float(kind == "scale"), np.float32)
    generator = np.random.default_rng([seed, zlib.crc32(entry.path.encode())])
    if module.startswith(("image_", "flow_head/time_embed")):
        scale = deviation if module.startswith("image_") else 0.02
        return generator.standard_normal(entry.shape, np.float32) * np.float32(scale)
    limit = math.sqrt(6 / sum(entry.shape))
    return (generator.random(entry.shape, np.float32) * 2 - 1) * np.float32(limit)


def is_finite(array: np.ndarray) -> bool:
    """Whether a contiguous float array has neither NaN nor infinities."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if piece.dtype == BFLOAT16:
            if ((piece.view(np.uint16) & 0x7F80) == 0x7F80).any():
                return False
        elif not np.isfinite(piece).all():
            return False
    return True


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    return np.array_equal(a, b)


def _line(part: Part, problem: str) -> str:
    return problem if part.name == "model" else f"image tokenizer: {problem}"
