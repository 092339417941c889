"""Requests of rewards."""

import numpy as np
import pytest

from nextstep_jax.rewards.protocol import RewardRequest


@pytest.fixture
def requests_of():
    """n requests whose images are all of one gray, i for the i-th."""

    def make(n: int, prompt: str = "a gray square") -> list[RewardRequest]:
        return [RewardRequest(prompt, np.full((8, 8, 3), i, np.uint8), {"seed": i}) for i in range(n)]

    return make
