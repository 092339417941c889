"""How much of a run's time goes into steps, and what the rest goes into."""

import collections
import contextlib
import time
from collections.abc import Iterator


class Goodput:
    """Counts from when it is made, which is when the run starts; what is not lost to a cause has gone into steps."""

    def __init__(self):
        self._began = time.monotonic()
        self._lost: collections.defaultdict[str, float] = collections.defaultdict(float)

    def lose(self, cause: str, seconds: float) -> None:
        """These seconds were no step's."""
        self._lost[cause] += seconds

    @contextlib.contextmanager
    def losing(self, cause: str) -> Iterator[None]:
        """The time of a block is no step's."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.lose(cause, time.monotonic() - began)

    def started(self) -> None:
        """All time until now that has no cause yet went into getting started: loading, restoring, compiling."""
        self.lose("start", time.monotonic() - self._began - sum(self._lost.values()))

    def report(self) -> dict[str, float]:
        """{"goodput": fraction of the time since the start, "lost_seconds/CAUSE": seconds}."""
        lost = sum(self._lost.values())
        fraction = 1.0 - lost / max(time.monotonic() - self._began, 1e-9)
        return {"goodput": max(0.0, fraction)} | {f"lost_seconds/{cause}": value for cause, value in sorted(self._lost.items())}
