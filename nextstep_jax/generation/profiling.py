"""Where the time of a generation goes: `nextstep-jax generate --profile`.

The pipeline names its parts with `part`; that costs nothing until a `Profile` listens.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax

# Seconds that jax reports while it makes a program: tracing, lowering, compiling (reading from the cache of programs included).
_MAKING = ("/jax/core/compile/",)

_listening: list["Profile"] = []


class Profile:
    """Seconds of each part, in the order they first came; "compile" is taken out of the parts it happened in."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._compiling = 0.0

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time what is inside as `name`."""
        before, start = self._compiling, time.perf_counter()
        yield
        compiling = self._compiling - before
        self.add(name, max(0.0, time.perf_counter() - start - compiling))
        if compiling:
            self.add("compile", compiling)

    def _on_event(self, event: str, seconds: float, **_) -> None:
        if event.startswith(_MAKING):
            self._compiling += seconds

    def table(self) -> str:
        """One line a part, and the sum."""
        rows = [*self.seconds.items(), ("total", sum(self.seconds.values()))]
        return "\n".join(f"{name:<10}{seconds:>9.3f} s" for name, seconds in rows)


@contextlib.contextmanager
def listen() -> Iterator[Profile]:
    """A `Profile` of what the pipeline does inside."""
    profile = Profile()

    def on_event(event: str, duration_secs: float, **_: str | int) -> None:
        profile._on_event(event, duration_secs)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    _listening.append(profile)
    try:
        yield profile
    finally:
        _listening.remove(profile)
        jax.monitoring.unregister_event_duration_listener(on_event)


@contextlib.contextmanager
def part(name: str) -> Iterator[Callable]:
    """Yields a function to pass results through; while a `Profile` listens it waits for them and counts their time."""
    if not _listening:
        yield lambda results: results
        return
    with _listening[-1].measure(name):
        yield jax.block_until_ready
