"""Words wanted and words read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from nextstep_jax.rewards.loading import open_reward
from nextstep_jax.rewards.protocol import RewardRequest
from nextstep_jax.rewards.text import edit_distance, text_score, wanted_text


def slow_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_edit_distance_is_the_definitions(a, b):
    assert edit_distance(a, b) == slow_distance(a, b)


@pytest.mark.parametrize(
    "found, wanted, score",
    [
        ("Open Now", "open now", 1.0),
        ("opennow", "open now", 1.0),
        ("open", "open now", 4 / 7),
        ("", "open", 0.0),
        ("x" * 20, "open", 0.0),
    ],
)
def test_text_score(found, wanted, score):
    assert text_score(found, wanted) == pytest.approx(score)


@pytest.mark.parametrize(
    "prompt, metadata, wanted",
    [
        ('a sign that says "Open"', {}, "Open"),
        ('a sign "Open" and a “Closed” one', {}, "Open Closed"),
        ("「你好」", {}, "你好"),
        ("a dog", {}, ""),
        ('a sign "Open"', {"text": "Shut"}, "Shut"),
    ],
)
def test_wanted_text(prompt, metadata, wanted):
    assert wanted_text(RewardRequest(prompt, np.zeros((1, 1, 3), np.uint8), metadata)) == wanted


def test_a_rendered_sentence_is_read_and_a_wrong_one_scores_less():
    image = Image.new("RGB", (420, 80), "white")
    ImageDraw.Draw(image).text((20, 20), "Grand opening today", "black", ImageFont.load_default(36))
    reward, pixels = open_reward("ocr"), np.asarray(image)
    requests = [RewardRequest(f'a sign "{text}"', pixels) for text in ("Grand opening today", "Closed until spring")]
    right, wrong, nothing = reward([*requests, RewardRequest("a dog", pixels)])
    assert right["reward"] > 0.9 > 0.5 > wrong["reward"] and nothing is None
