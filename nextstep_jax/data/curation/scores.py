"""Measuring: every signal of every sample, once. What was found lies beside the shards as JSON, and never moves a pixel.

    OUT/scores/NAME/shard-00000.json   {"digest": of samples and signal, "values": [what was found, one entry a sample]}

A file is good as long as samples, signal, its settings and its version are the same; so an added signal or another threshold
measures nothing again.
"""

import concurrent.futures
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nextstep_jax.data import files, shard_job
from nextstep_jax.data.build import check, reason_for
from nextstep_jax.data.curation.stages import Measure, Signal, Values, description, prepare
from nextstep_jax.data.records import Sample
from nextstep_jax.data.source import Source
from nextstep_jax.errors import InputError
from nextstep_jax.storage import Place

SCORES = "scores"
_READ = "_read"  # the name under which it is kept whether a sample can be used at all


class Unusable(NamedTuple):
    """Why a sample is not measured."""

    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """What was found in the samples of one shard, in order: {signal: values}, or why a sample cannot be used."""

    samples: Sequence[Mapping[str, Values] | Unusable]
    measured: int  # results that were not there yet


class ScoringState(NamedTuple):
    """What every job needs."""

    source: Source
    out: Place
    signals: Mapping[str, Signal]
    sample_kinds: Sequence[str]
    checks: Mapping[str, Any]


def score_shard(state: ScoringState, number: int, start: int, stop: int) -> Scored:
    """Measure the samples start..stop-1 of a source, or read what was found before."""
    samples = state.source.fingerprint(start, stop)
    base = shard_job.digest(state.source.name, start, stop, samples, [*state.sample_kinds], dict(state.checks))
    digests = {name: shard_job.digest(base, description(signal)) for name, signal in state.signals.items()}
    digests[_READ] = base
    found = {name: _load(_path(state.out, name, number), digest, stop - start) for name, digest in digests.items()}
    missing = [name for name, values in found.items() if values is None]
    if missing:
        measured = _measure(state, range(start, stop), [name for name in missing if name != _READ])
        for name in missing:
            found[name] = measured[name]
            files.make_directory(_path(state.out, name, number).parent)
            files.write_json(_path(state.out, name, number), {"digest": digests[name], "values": measured[name]})
    entries: list[Mapping[str, Values] | Unusable] = []
    for place, problem in enumerate(found.pop(_READ) or ()):
        by_name = {name: values[place] for name, values in found.items() if values is not None}
        entries.append(Unusable(*problem) if problem else by_name)
    return Scored(entries, len(missing))


def _measure(state: ScoringState, indices: range, names: Sequence[str]) -> dict[str, list[Any]]:
    """Values of the signals `names`, and under _READ what is wrong with each sample (None: nothing)."""
    measures = prepare({name: state.signals[name] for name in names}, "signal")
    columns: dict[str, list[Any]] = {name: [] for name in (*names, _READ)}
    waiting: list[tuple[int, Sample]] = []
    for index in indices:
        problem = None
        try:
            sample = state.source[index]
            if state.sample_kinds and sample.kind not in state.sample_kinds:
                taken = " or ".join(state.sample_kinds)
                problem = ["another kind", f"{sample.key}: expected a sample of kind {taken}, found {sample.kind}"]
            else:
                check(sample, **state.checks)
                waiting.append((len(columns[_READ]), sample))
        except InputError as error:
            problem = [reason_for(error), str(error)]
        columns[_READ].append(problem)
        for name in names:
            columns[name].append(None)
        if len(waiting) == _AT_ONCE or index == indices[-1]:
            for name in names:
                _fill(columns[name], measures[name], waiting, getattr(state.signals[name], "concurrency", 1))
            waiting = []
    return columns


_AT_ONCE = 16  # samples in memory


def _fill(column: list[Any], measure: Measure, samples: Sequence[tuple[int, Sample]], concurrency: int) -> None:
    if concurrency == 1:
        for place, sample in samples:
            column[place] = dict(measure(sample))
        return
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        for (place, _), values in zip(samples, pool.map(lambda entry: measure(entry[1]), samples), strict=True):
            column[place] = dict(values)


def _path(out: Place, name: str, number: int) -> Place:
    return out / SCORES / name / f"shard-{number:05d}.json"


def _load(path: Place, digest: str, samples: int) -> list[Any] | None:
    try:
        value = files.read_json(path)
    except InputError:
        return None
    if not isinstance(value, dict) or value.get("digest") != digest:
        return None
    values = value.get("values")
    return values if isinstance(values, list) and len(values) == samples else None
