"""From any source to a dataset of shards: in parallel, checked sample by sample, resumable."""

import collections
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nextstep_jax.data import files, images, records, shard_job
from nextstep_jax.data.shard_job import Finished, Skipped
from nextstep_jax.data.source import Source, Unused
from nextstep_jax.data.worker_pool import map_jobs
from nextstep_jax.errors import InputError
from nextstep_jax.progress import progress_bar
from nextstep_jax.storage import Place

REPORT = "report.json"
_LISTED = 10_000  # skipped samples named in the report; progress/ names them all

# What is counted under which name; the first class that fits.
_REASONS = (
    (images.SizeError, "size"),
    (images.ImageError, "damaged image"),
    (records.CaptionError, "caption"),
    (InputError, "malformed sample"),
)


def build(
    source: Source,
    out: str | os.PathLike,
    *,
    name: str | None = None,
    workers: int = 1,
    shard_samples: int = 1000,
    max_skipped: float = 0.01,
    min_side: int = 16,
    max_aspect: float = 8.0,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a source's samples to OUT, and OUT/report.json.

    Every image is decoded once to see that it is whole, and stored as the bytes it came as. Samples that cannot be used are
    skipped, counted and named in the report. Called again after an interruption, it continues where it stopped. The result
    does not depend on `workers`.

    Args:
      name: the dataset's; default: the source's.
      workers: processes; 1 works in this one.
      shard_samples: samples of the source behind one shard.
      max_skipped: the largest fraction of samples that may be skipped.
      min_side, max_aspect: images with a shorter side, or a longer one over the shorter, are skipped.
      progress: show a bar.

    Returns:
      The report: samples, written, skipped, reasons (counts), finished, skipped_samples (index, reason, message), and unused:
        what lies in the source and is in no sample, {reason: {"count", "names"}}.

    Raises:
      InputError: more than `max_skipped` of the samples cannot be used (the report says which; what is done is kept), or
        `out` cannot be written.
    """
    _require(workers >= 1, f"workers must be at least 1, found {workers}")
    _require(shard_samples >= 1, f"shard_samples must be at least 1, found {shard_samples}")
    _require(0 <= max_skipped <= 1, f"max_skipped must be between 0 and 1, found {max_skipped}")
    _require(max_aspect >= 1, f"max_aspect must be at least 1, found {max_aspect}")
    total = len(source)
    _require(total > 0, f"{source.name}: no samples")
    checks = {"min_side": min_side, "max_aspect": max_aspect}
    plan = {"source": source.name, "samples": total, "shard_samples": shard_samples, **checks}
    jobs = [(number, start, min(start + shard_samples, total)) for number, start in enumerate(range(0, total, shard_samples))]
    with (
        shard_job.locked(out, plan) as out,
        progress_bar(source.name, "sample", total, progress) as bar,
    ):
        done: dict[int, Finished] = {}
        skipped = 0
        for number, finished in map_jobs(_make, _State(source, out, checks), jobs, workers, str(out)):
            done[number] = finished
            skipped += len(finished.skipped)
            bar.update(jobs[number][2] - jobs[number][1])
            bar.set_postfix(skipped=skipped)
            if skipped > max_skipped * total:
                break
        in_order = [done[number] for number in sorted(done)]
        report = _report(source, total, in_order, max_skipped)
        files.write_json(out / REPORT, report)
        if not report["finished"]:
            raise InputError(_too_many(out, report))
        shard_job.finish(out, name or source.name, in_order)
    return report


class _State(NamedTuple):
    """What every job needs."""

    source: Source
    out: Place
    checks: Mapping[str, Any]


def _make(state: _State, number: int, start: int, stop: int) -> Finished:
    source, out, checks = state
    made_from = shard_job.digest(source.name, start, stop, source.fingerprint(start, stop), dict(checks))
    return shard_job.make_shard(out, number, made_from, _usable(source, start, stop, checks))


def _usable(source: Source, start: int, stop: int, checks: Mapping[str, Any]) -> Iterator[records.Sample | Skipped]:
    for index in range(start, stop):
        try:
            sample = source[index]
            check(sample, **checks)
        except InputError as error:
            yield Skipped(index, reason_for(error), str(error))
        else:
            yield sample


def check(sample: records.Sample, min_side: int, max_aspect: float) -> None:
    """Raise the InputError that says why a sample cannot be used; decodes its images."""
    for part in sample.texts:
        if not part.text.strip():
            raise records.CaptionError(f"{sample.key}: empty caption")
    for number, image in enumerate(sample.images):
        short, long = sorted((image.height, image.width))
        if short < min_side:
            raise images.SizeError(f"{sample.key}: image {number} is {image.width}x{image.height} pixels, under {min_side}")
        if long > max_aspect * short:
            raise images.SizeError(
                f"{sample.key}: image {number} is {image.width}x{image.height} pixels, over {max_aspect:g}:1"
            )
        if not image.is_latents:
            images.load(image.data, f"{sample.key}: image {number}")


def reason_for(error: InputError) -> str:
    """What a sample that raised `error` is counted under."""
    return next(reason for kind, reason in _REASONS if isinstance(error, kind))


def _report(source: Source, total: int, done: Sequence[Finished], max_skipped: float) -> dict[str, Any]:
    skipped = [entry for shard in done for entry in shard.skipped]
    report = {
        "source": source.name,
        "samples": total,
        "written": sum(entry.shard.samples for entry in done),
        "skipped": len(skipped),
    }
    report |= {"max_skipped": max_skipped, "finished": len(skipped) <= max_skipped * total}
    report |= {"reasons": dict(sorted(collections.Counter(entry.reason for entry in skipped).items()))}
    unused = Unused()
    unused.update(source.unused)
    for shard in done:
        for reason, name in shard.unused:
            unused.add(reason, name)
    return report | {"skipped_samples": [vars(entry) for entry in skipped[:_LISTED]], "unused": unused.to_json()}


def _too_many(out: Place, report: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["reasons"].items())
    share = report["skipped"] / report["samples"]
    return (
        f"{out / REPORT}: {report['skipped']} of {report['samples']} samples ({share:.2%}) cannot be used, at most "
        f"{report['max_skipped']:.2%} may be: {reasons}; the first: {report['skipped_samples'][0]['message']}"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
