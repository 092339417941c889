"""What the parts of benchmarks/gpu share: figures on disk as soon as they are known, deadlines, and caught failures."""

import argparse
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

TAIL = 2000  # characters of a traceback that are kept


class Record:
    """The figures of one part, rewritten to its file at every change.

    Attributes:
      tiny: measure tiny models.
      failed: something that was tried has raised.
    """

    def __init__(self, file: str, seconds: float, tiny: bool):
        self._file, self._deadline = pathlib.Path(file), time.monotonic() + seconds
        self.tiny, self.failed, self.figures = tiny, False, {}

    @property
    def left(self) -> float:
        """Seconds until this process is stopped."""
        return self._deadline - time.monotonic()

    def put(self, name: str, figure: Any) -> None:
        """Keep a figure."""
        self.figures[name] = figure
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.figures))
        os.replace(temporary, self._file)

    def attempt(self, name: str, measure: Callable[[], Any], needs: float = 0.0) -> Any:
        """Keep what `measure` gives, or why it gave nothing: it raised, or fewer than the `needs` seconds are left.

        Returns:
          The figure; None without one.
        """
        if self.left < needs:
            self.put(name, {"skipped": f"{self.left:.0f} s left, {needs:.0f} needed"})
            return None
        began = time.monotonic()
        try:
            figure = measure()
        except Exception:  # whatever it is, the rest is still worth measuring
            self.failed = True
            error = traceback.format_exc()[-TAIL:]
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            self.put(name, {"error": error})
            return None
        self.put(name, figure)
        print(f"  {time.monotonic() - began:5.1f} s  {name}", flush=True)
        return figure


def run_part(measure: Callable[[Record, argparse.Namespace], None], **options: dict) -> None:
    """A part's `main`: parse its options, measure, exit with 1 if something failed.

    Args:
      options: keyword arguments of `add_argument` by option name.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", required=True, help="file for the figures")
    parser.add_argument("--seconds", type=float, default=600, help="when this process will be stopped")
    parser.add_argument("--scale", default="full", choices=["full", "tiny"])
    for name, arguments in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **arguments)
    a = parser.parse_args()
    record = Record(a.json, a.seconds, a.scale == "tiny")
    measure(record, a)
    sys.exit(1 if record.failed else 0)
