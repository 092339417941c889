"""Scores kept in a file: asked for once, and for each thing they depend on."""

import dataclasses

import numpy as np
import pytest

from nextstep_jax.errors import DamagedDataError
from nextstep_jax.rewards.cache import CachedReward
from nextstep_jax.rewards.loading import FunctionReward


class Counting:
    def __init__(self):
        self.asked = []

    def __call__(self, requests):
        self.asked += requests
        return [None if r.metadata["seed"] == 1 else {"reward": float(r.image.mean())} for r in requests]


def test_known_scores_are_not_asked_for_again_also_by_another_process(tmp_path, requests_of):
    counting = Counting()
    for first in (True, False):
        cached = CachedReward(FunctionReward("a", counting), tmp_path / "scores.sqlite")
        assert cached(requests_of(3)) == [{"reward": 0.0}, None, {"reward": 2.0}]
        assert len(counting.asked) == (3 if first else 4)  # what failed is tried again
        cached.close()


def test_a_request_twice_in_a_batch_is_asked_for_once(tmp_path, requests_of):
    counting, (request,) = Counting(), requests_of(1)
    assert CachedReward(FunctionReward("a", counting), tmp_path / "s")([request, request]) == [{"reward": 0.0}] * 2
    assert len(counting.asked) == 1


def test_every_part_of_a_request_counts(tmp_path, requests_of):
    counting, (request,) = Counting(), requests_of(1)
    others = [
        dataclasses.replace(request, prompt="another"),
        dataclasses.replace(request, metadata={"seed": 2}),
        dataclasses.replace(request, image=request.image + np.uint8(1)),
        dataclasses.replace(request, image=request.image.reshape(4, 16, 3)),
        dataclasses.replace(request, sources=[request.image]),
        dataclasses.replace(request, sources=[request.image + np.uint8(1)]),
    ]
    cached = CachedReward(FunctionReward("a", counting), tmp_path / "s")
    cached([request, *others])
    assert len(counting.asked) == 7
    CachedReward(FunctionReward("b", counting), tmp_path / "s")([request])
    assert len(counting.asked) == 8


def test_a_file_that_is_no_cache_is_damaged(tmp_path):
    (tmp_path / "s").write_bytes(b"something else, and long enough to be read as a page" * 100)
    with pytest.raises(DamagedDataError, match="expected a cache of scores"):
        CachedReward(FunctionReward("a", Counting()), tmp_path / "s")
