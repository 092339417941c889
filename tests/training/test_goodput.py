"""Where a run's time goes."""

import pytest

from nextstep_jax.training.goodput import Goodput


def test_time_is_counted_by_cause(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    goodput = Goodput()
    now += 3
    goodput.lose("data", 1.0)  # while the first batch was waited for
    goodput.started()
    now += 10
    goodput.lose("data", 2.0)
    with pytest.raises(ZeroDivisionError), goodput.losing("checkpoints"):
        now += 5
        1 / 0  # noqa: B018
    now += 2
    assert goodput.report() == {
        "goodput": 1 - (3 + 2 + 5) / 20,
        "lost_seconds/checkpoints": 5.0,
        "lost_seconds/data": 3.0,
        "lost_seconds/start": 2.0,
    }
