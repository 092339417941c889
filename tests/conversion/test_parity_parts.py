"""Comparing a part of the goldens."""

import pytest

from nextstep_jax.conversion.parity import run_parity
from nextstep_jax.errors import InputError


def test_a_part_alone(goldens):
    report = run_parity(goldens, parts=("sequences",))
    assert len(report.rows) == 14 and not report.misses
    assert all(row.array.startswith("sequences") for row in report.rows)


def test_a_folder_reached_over_its_parent(goldens):
    report = run_parity(goldens / ".." / goldens.name, parts=("sequences",))
    assert len(report.rows) == 14


def test_unknown_parts_are_named(goldens):
    with pytest.raises(InputError, match="among networks, .* found nothing"):
        run_parity(goldens, parts=("nothing",))
