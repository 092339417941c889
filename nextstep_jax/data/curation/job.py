"""Running a recipe over a source: score, find duplicates, cut, write.

    OUT/scores/                  what was measured (see scores.py)
    OUT/CUT/                     a dataset for each cut, as `data build` writes them
    OUT/report.json, .html       what was kept and why not, histograms, examples near each threshold
    OUT/progress/                plan and lock

May be killed at any moment; the same command continues. The result does not depend on `workers`.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from nextstep_jax.data import files, records, shard_job
from nextstep_jax.data.build import REPORT
from nextstep_jax.data.curation.duplicates import best_of_groups, image_pairs, text_pairs
from nextstep_jax.data.curation.image_signals import PerceptualHash
from nextstep_jax.data.curation.recipe import Condition, Duplicates, Recipe
from nextstep_jax.data.curation.report import make_report, write_sheet
from nextstep_jax.data.curation.scores import SCORES, ScoringState, Unusable, score_shard
from nextstep_jax.data.curation.stages import Dropped, Make, Transform, Values, description, generator, prepare
from nextstep_jax.data.shard_job import Finished, Skipped
from nextstep_jax.data.source import Source
from nextstep_jax.data.worker_pool import map_jobs
from nextstep_jax.errors import InputError
from nextstep_jax.progress import progress_bar
from nextstep_jax.storage import Place

SHEET = "report.html"

_LOOKED_AT = 8  # samples that tell whether a source is for a recipe

Result = TypeVar("Result")
# As `map_jobs`: something that runs jobs, here or elsewhere.
Runner = Callable[..., Iterator[tuple[int, Any]]]


def curate(
    source: Source,
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    workers: int = 1,
    shard_samples: int = 1000,
    limit: int | None = None,
    runner: Runner = map_jobs,
    progress: bool = False,
) -> dict[str, Any]:
    """Carry out a recipe, and write OUT.

    Args:
      workers: processes; 1 works in this one.
      shard_samples: samples of the source behind one shard.
      limit: only this many samples, spread evenly over the source: to try a recipe. The folder is then for nothing else.
      runner: runs the jobs; by default processes of this machine, or `beam_job.beam_runner(...)`.
      progress: show bars.

    Returns:
      The report (see `report.make_report`).

    Raises:
      InputError: a stage lacks what it needs; the recipe takes no sample of the source's kind; a condition speaks of a value
        that its signal does not have; `out` cannot be written or holds something else.
    """
    for name, value in (("workers", workers), ("shard_samples", shard_samples), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, found {value}")
    if not len(source):
        raise InputError(f"{source.name}: no samples")
    if limit is not None and limit < len(source):
        source = _Spread(source, limit)
    # What is not there is said before any work is done.
    _require_kinds(source, recipe)
    prepare(recipe.signals, "signal")
    prepare(recipe.transforms, "transform")
    total = len(source)
    jobs = [(number, start, min(start + shard_samples, total)) for number, start in enumerate(range(0, total, shard_samples))]
    checks = {"min_side": recipe.min_side, "max_aspect": recipe.max_aspect}
    plan = {"job": "curation", "source": source.name, "samples": total, "shard_samples": shard_samples}
    with shard_job.locked(out, plan) as out:
        for leftover in (out / SCORES).glob("*/.*.tmp-*"):  # of a job that was killed, on a disk
            leftover.unlink(missing_ok=True)
        state = ScoringState(source, out, recipe.signals, recipe.sample_kinds, checks)
        running = _Running(runner, workers, progress)
        scored = running(score_shard, state, jobs, out, "measuring")
        entries = [entry for shard in scored for entry in shard.samples]
        replaced = _find_duplicates(recipe, entries)
        verdicts = {
            cut: [_verdict(entry, index in replaced, conditions) for index, entry in enumerate(entries)]
            for cut, conditions in recipe.cuts.items()
        }
        written = _write(recipe, source, out, jobs, entries, verdicts, plan, running)
        report = make_report(recipe, source, entries, replaced, verdicts, written)
        files.write_json(out / REPORT, report)
        write_sheet(out / SHEET, recipe, source, entries, report)
    return report


def _require_kinds(source: Source, recipe: Recipe) -> None:
    """InputError if the recipe takes none of a few samples, spread evenly over the source."""
    if not recipe.sample_kinds:
        return
    found = set()
    samples = _Spread(source, min(_LOOKED_AT, len(source)))
    for index in range(len(samples)):
        try:
            kind = samples[index].kind
        except InputError:  # counted when it is measured
            continue
        if kind in recipe.sample_kinds:
            return
        found.add(kind)
    if found:
        raise InputError(
            f"{source.name}: the recipe {recipe.name} takes samples of kind {' or '.join(recipe.sample_kinds)} "
            f"(config.sample_kinds), found {', '.join(sorted(found))} ({len(samples)} of {len(source)} looked at)"
        )


class _Running(NamedTuple):
    """How jobs are run."""

    runner: Runner
    workers: int
    progress: bool

    def __call__(
        self, function: Callable[..., Result], state: Any, jobs: Sequence[tuple], out: Place, name: str
    ) -> list[Result]:
        """The results of all jobs, in their order."""
        done: dict[int, Result] = {}
        with progress_bar(name, "shard", len(jobs), self.progress) as bar:
            for number, result in self.runner(function, state, jobs, self.workers, str(out)):
                done[number] = result
                bar.update()
        return [done[number] for number in range(len(jobs))]


# --- duplicates -------------------------------------------------------------------------------------------------------


def _find_duplicates(recipe: Recipe, entries: Sequence[Mapping[str, Values] | Unusable]) -> dict[int, int]:
    """{sample left out: sample kept in its place}, over all comparisons of the recipe; one made earlier goes first."""
    replaced: dict[int, int] = {}
    for name, settings in recipe.duplicates.items():
        usable = [
            {} if isinstance(entry, Unusable) or index in replaced else entry[name] for index, entry in enumerate(entries)
        ]
        if isinstance(recipe.signals[name], PerceptualHash):
            pairs = image_pairs([values.get("hashes", ()) for values in usable], settings.max_distance)
        else:
            pairs = text_pairs([values.get("signature", ()) for values in usable], settings.min_similarity)
        replaced |= best_of_groups(pairs, [_rank(entry, settings) for entry in entries])
    return replaced


def _rank(entry: Mapping[str, Values] | Unusable, settings: Duplicates) -> float:
    if not settings.keep or isinstance(entry, Unusable):
        return 0.0
    signal, _, value = settings.keep.partition(".")
    found = entry[signal].get(value)
    if found is not None and not isinstance(found, int | float):
        raise InputError(f"keep = {settings.keep!r}: is {found!r:.100}, and no number")
    return float("-inf") if found is None else float(found)


# --- cuts -------------------------------------------------------------------------------------------------------------


def _verdict(entry: Mapping[str, Values] | Unusable, is_duplicate: bool, conditions: Sequence[Condition]) -> str:
    """Why a sample is not kept: the first reason that applies; "" if it is."""
    if isinstance(entry, Unusable):
        return entry.reason
    if is_duplicate:
        return "duplicate"
    for condition in conditions:
        holds = condition.holds(entry)
        if holds is None:
            return f"not measured: {condition.signal}.{condition.value}"
        if not holds:
            return f"not {condition}"
    return ""


# --- writing ----------------------------------------------------------------------------------------------------------


class _WritingState(NamedTuple):
    source: Source
    folders: Mapping[str, Place]  # by cut
    transforms: Mapping[str, Transform]


def _write(
    recipe: Recipe,
    source: Source,
    out: Place,
    jobs: Sequence[tuple[int, int, int]],
    entries: Sequence[Any],
    verdicts: Mapping[str, Sequence[str]],
    plan: Mapping[str, Any],
    running: _Running,
) -> dict[str, list[Finished]]:
    """Write the datasets of all cuts, the shards of one like those of another, and give what was done by cut."""
    with contextlib.ExitStack() as stack:
        folders = {cut: stack.enter_context(shard_job.locked(out / cut, {**plan, "cut": cut})) for cut in verdicts}
        state = _WritingState(source, folders, recipe.transforms)
        given = [_writing_job(cut, job, reasons, entries) for cut, reasons in verdicts.items() for job in jobs]
        done = iter(running(_write_shard, state, given, out, "writing"))
        written = {cut: list(itertools.islice(done, len(jobs))) for cut in verdicts}
        for cut, folder in folders.items():
            shard_job.finish(folder, f"{recipe.name}-{cut}", written[cut])
    return written


def _writing_job(cut: str, job: tuple[int, int, int], reasons: Sequence[str], entries: Sequence[Any]) -> tuple:
    """A job with the indices of the samples to write, and what was measured of them."""
    number, start, stop = job
    kept = [index for index in range(start, stop) if not reasons[index]]
    return cut, number, start, stop, kept, {index: entries[index] for index in kept}


def _write_shard(
    state: _WritingState,
    cut: str,
    number: int,
    start: int,
    stop: int,
    kept: Sequence[int],
    signals: Mapping[int, Mapping[str, Values]],
) -> Finished:
    stages = [[name, description(transform)] for name, transform in state.transforms.items()]
    numbers = {index: _numbers(signals[index]) for index in kept}
    made_from = shard_job.digest(state.source.fingerprint(start, stop), start, stop, [*numbers.items()], stages)
    return shard_job.make_shard(state.folders[cut], number, made_from, _made(state, kept, signals, numbers))


def _made(
    state: _WritingState,
    kept: Sequence[int],
    signals: Mapping[int, Mapping[str, Values]],
    numbers: Mapping[int, Mapping[str, float]],
) -> Iterator[records.Sample | Skipped]:
    makes = prepare(state.transforms, "transform")
    for first in range(0, len(kept), _AT_ONCE):
        made: dict[int, list[records.Sample] | Skipped] = {}
        for index in kept[first : first + _AT_ONCE]:
            sample = state.source[index]
            made[index] = [dataclasses.replace(sample, metadata={**sample.metadata, "curation": dict(numbers[index])})]
        for name, make in makes.items():
            transform = functools.partial(_transformed, name, make)
            samples = [(index, found, signals[index]) for index, found in made.items() if not isinstance(found, Skipped)]
            with concurrent.futures.ThreadPoolExecutor(getattr(state.transforms[name], "concurrency", 1)) as pool:
                made |= zip((index for index, _, _ in samples), pool.map(transform, *zip(*samples, strict=True)), strict=True)
        for found in made.values():
            yield from [found] if isinstance(found, Skipped) else found


_AT_ONCE = 16  # samples in memory


def _transformed(
    name: str, make: Make, index: int, samples: Sequence[records.Sample], signals: Mapping[str, Values]
) -> list[records.Sample] | Skipped:
    """What a transform makes of what became of one sample of the source."""
    try:
        return [new for old in samples for new in make(old, signals, generator(old, name))]
    except Dropped as dropped:
        return Skipped(index, dropped.reason, str(dropped))


def _numbers(signals: Mapping[str, Values]) -> dict[str, float]:
    """What a stored sample keeps of its signals: {"SIGNAL.VALUE": number}."""
    return {
        f"{name}.{value}": number
        for name, values in signals.items()
        for value, number in values.items()
        if isinstance(number, int | float)
    }


class _Spread:
    """Some samples of a source, spread evenly."""

    def __init__(self, source: Source, samples: int):
        self.name, self.unused = source.name, source.unused
        self._source = source
        self._indices = [number * len(source) // samples for number in range(samples)]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> records.Sample:
        return self._source[self._indices[index]]

    def fingerprint(self, start: int, stop: int) -> str:
        return " ".join(self._source.fingerprint(index, index + 1) for index in self._indices[start:stop])

    def identity(self) -> str:
        return f"{len(self)} of {self._source.identity()}"
