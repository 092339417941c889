"""Where the device's time goes: a profiler trace, reduced to its largest entries."""

import collections
import glob
import tempfile
from collections.abc import Callable

LARGEST = 10


def largest_entries(run: Callable) -> dict:
    """Run something that is compiled already, under the profiler.

    Returns:
      `lines`: {a line of the device's part of the trace: its entries and their milliseconds}; `largest`: the LARGEST entries
      of the line on which most time passes, by name, with count and milliseconds; `busy`: the share of the time between that
      line's first and last entry in which one of them runs.
    """
    import jax

    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = list(jax.profiler.ProfileData.from_file(file).planes)
        device = [plane for plane in planes if plane.name.startswith("/device:GPU")]
        lines = {line.name: list(line.events) for plane in device or planes for line in plane.lines}
    if streams := {name: events for name, events in lines.items() if name.startswith("Stream")}:
        kernels = streams  # the other lines of a GPU sum these up
    else:
        kernels = {name: events for name, events in lines.items() if name.startswith("tf_XLA")} or lines
    return reduce(lines, kernels)


def reduce(lines: dict[str, list], kernels: dict[str, list]) -> dict:
    """`largest_entries` of events with name, start_ns and duration_ns."""
    totals = {name: sum(event.duration_ns for event in events) for name, events in lines.items()}
    summary = {
        name: {"entries": len(lines[name]), "ms": totals[name] / 1e6} for name in sorted(totals, key=lambda n: -totals[n])
    }
    main = max(kernels, key=lambda name: totals[name], default=None)
    if not main or not kernels[main]:
        return {"lines": summary, "largest": [], "busy": 0.0}
    by_name = collections.defaultdict(list)
    for event in kernels[main]:
        by_name[event.name].append(event.duration_ns)
    largest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:LARGEST]
    return {
        "lines": dict(list(summary.items())[:LARGEST]),
        "line": main,
        "largest": [{"name": name[:120], "count": len(times), "ms": sum(times) / 1e6} for name, times in largest],
        "busy": busy(kernels[main]),
    }


def busy(events: list) -> float:
    """The share of the time from the first event's start to the last one's end in which at least one of them runs."""
    spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for event in events)
    covered, end = 0.0, spans[0][0]
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / (end - spans[0][0]) if end > spans[0][0] else 0.0
