"""Verdicts and scores as files.

`results.jsonl`: one JSON object a line, appended as verdicts come in; of two lines with the same id, sample and criterion the
later one counts.

    suite           name of the suite
    id              of the prompt within the suite
    sample          which image of the prompt, from 0
    criterion       what was judged; the suite's module lists its criteria
    score           a finite number, higher is better; null: no verdict, never a guess
    raw             the judge's reply; null: there was none
    judge           model and address
    temperature     of the judge's replies
    date            UTC, seconds
    prompt_sha256   of the judge's instructions and question
    image_sha256    of the image as it was sent
    attempt         how often the judge was asked
    error           why there is no score; null if there is one

`score.json`: one JSON object.

    suite, title    the suite's name and what the numbers may be called, such as "WISE with qwen at http://localhost:8000/v1"
    official        whether the prompts are the official files, all of them
    quirks          oddities of the official scorer that were reproduced on request
    metrics         {name: {"value", "weights"}}: a value is the sum over groups of weight * mean of the group's values. Weights
                    are null for a number that is no such sum. A value is null where verdicts are missing for all of a group.
    groups          {name: {id of a prompt: [values of its images]}}; a group's mean goes over all of its values
    counts          {"expected", "scored", "unparsable", "unanswered", "missing"}: verdicts
    judge           {"name", "temperature", "dates", "prompt_sha256", "unparsable_share"}, null for an official scorer's output
    files           {name of a results file: its sha256}
    export          what OUT/nextstep.json says, without its prompts; null if there is none
"""

import dataclasses
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nextstep_jax.data import files
from nextstep_jax.errors import InputError

MAX_RESULTS = 1 << 30  # bytes of a results file

Key = tuple[str, int, str]  # id, sample, criterion


@dataclasses.dataclass(frozen=True)
class Result:
    """One verdict, see the module's docstring."""

    suite: str
    id: str
    sample: int
    criterion: str
    score: float | None
    raw: str | None
    judge: str
    temperature: float
    date: str
    prompt_sha256: str
    image_sha256: str
    attempt: int
    error: str | None = None

    @property
    def key(self) -> Key:
        return self.id, self.sample, self.criterion

    @classmethod
    def from_json(cls, value: Any, place: str) -> "Result":
        """InputError, naming `place`, for anything but the fields of a result."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or value.keys() != fields:
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise InputError(f"{place}: expected a result with the fields {', '.join(sorted(fields))}, found {found}")
        result = cls(**value)
        if not isinstance(result.id, str) or type(result.sample) is not int or not isinstance(result.criterion, str):
            raise InputError(f"{place}: expected an id, a sample and a criterion, found {result.key!r}")
        if result.score is not None and not is_number(result.score):
            raise InputError(f"{place}: score must be a finite number or null, found {result.score!r}")
        return result


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Lines:
    """A file of JSON objects, one a line, that is only appended to; for one process at a time.

    A line is there whole or, after a kill in the middle of it, not at all: what a file ends with after its last line is
    removed when it is opened.

    Raises:
      InputError: another process is writing it, it cannot be written, or a line is not a JSON object.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        files.make_directory(self.path.parent)
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  (open until `close`)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path}: another process is writing it") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        data = files.read_bytes(path, MAX_RESULTS)
        whole = data[: data.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        self.values = list(parse_lines(whole, path))

    def append(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Add objects, together or not at all as far as this process is concerned."""
        data = "".join(json.dumps(value, ensure_ascii=True) + "\n" for value in values).encode()
        self._file.write(data)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def parse_lines(data: bytes, name: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines. InputError names the file and the line."""
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            value = files.parse_json(line, f"{name}, line {number}")
            if not isinstance(value, dict):
                raise InputError(f"{name}, line {number}: expected a JSON object, found {type(value).__name__}")
            yield value


def latest(values: Iterable[Mapping[str, Any]], suite: str, name: str | os.PathLike) -> dict[Key, Result]:
    """The results of lines, the later one of each key. InputError for a line that is no result, or of another suite."""
    results: dict[Key, Result] = {}
    for number, value in enumerate(values, 1):
        result = Result.from_json(value, f"{name}, line {number}")
        if result.suite != suite:
            raise InputError(f"{name}, line {number}: expected results of {suite}, found {result.suite!r}")
        results[result.key] = result
    return results


def read_results(path: str | os.PathLike, suite: str) -> dict[Key, Result]:
    """The results of a file, the later one of each key; a last line that was cut off is left out.

    Raises:
      InputError: names the file and the line.
    """
    data = files.read_bytes(path, MAX_RESULTS)
    return latest(parse_lines(data[: data.rfind(b"\n") + 1], path), suite, path)


# --- scores -----------------------------------------------------------------------------------------------------------

Values = Mapping[str, Sequence[float]]  # of the images of each prompt


@dataclasses.dataclass(frozen=True)
class Metric:
    """A published number: the sum over groups of weight * mean, or, without weights, something else."""

    value: float | None
    weights: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a suite makes of results, see the module's docstring on `score.json`."""

    metrics: Mapping[str, Metric]
    groups: Mapping[str, Values]
    quirks: Sequence[str] = ()


def group_mean(values: Values) -> float | None:
    """Mean over all images of all prompts; None without any."""
    numbers = [value for of_prompt in values.values() for value in of_prompt]
    return math.fsum(numbers) / len(numbers) if numbers else None


def weighted(groups: Mapping[str, Values], weights: Mapping[str, float]) -> Metric:
    """The metric of these weights. Its value is None if one of its groups has no value."""
    means = {name: group_mean(groups.get(name, {})) for name in weights}
    known = [weights[name] * mean for name, mean in means.items() if mean is not None]
    return Metric(math.fsum(known) if len(known) == len(weights) else None, dict(weights))


def unweighted(groups: Mapping[str, Values], names: Sequence[str], scale: float = 1.0) -> Metric:
    """`scale` times the mean of the means of some groups."""
    return weighted(groups, {name: scale / len(names) for name in names})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
