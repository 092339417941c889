"""A few fresh inputs for every reader that benchmarks/fuzz.py knows, and all those that once failed."""

import resource

import pytest
from hypothesis import strategies as st

from benchmarks import fuzz, fuzz_targets
from nextstep_jax.errors import InputError


@pytest.mark.parametrize("number", range(len(fuzz_targets.KEPT)))
def test_inputs_that_once_failed(number):
    name, files = fuzz_targets.KEPT[number]
    fuzz.check(fuzz.TARGETS[name], files)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_fresh_inputs(name):
    count, problem = fuzz.try_many(name, 60, seed=0)
    assert not problem and count


def test_what_counts_as_a_failure(monkeypatch):
    """The program sees what it looks for: another error, a slow answer, much memory, a long message."""
    monkeypatch.setattr(fuzz, "LIMIT_SECONDS", 2)
    monkeypatch.setattr(fuzz, "LIMIT_BYTES", 1 << 27)

    def read_slowly(folder):
        try:
            while True:
                pass
        except Exception:  # as a reader that turns everything into its own error
            raise InputError("x") from None

    def raise_(error):
        raise error

    for read, message in (
        (lambda folder: raise_(KeyError("a")), "a"),
        (read_slowly, "more than 2 s"),
        (lambda folder: raise_(InputError("x" * 30_000)), "30000 characters"),
        (lambda folder: raise_(SystemExit(3)), "SystemExit: 3"),
        (
            lambda folder: bytearray(b"x") * (1 << 28 | resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10),
            "MiB of memory",
        ),
    ):
        with pytest.raises((AssertionError, KeyError), match=message):
            fuzz.check(fuzz.Target(st.none(), read), {"a": b""})
    fuzz.check(fuzz.Target(st.none(), lambda folder: raise_(InputError("x"))), {"sub/a": b""})
