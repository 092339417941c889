"""Statistics, language and MinHash signatures of texts."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nextstep_jax.data.curation.text_signals import Language, MinHash, minhash, text_quality, words_of
from nextstep_jax.data.records import Sample, TextPart

PROSE = (
    "The river rises in the hills to the north of the town, and it flows through a valley that has been farmed since the "
    "Middle Ages. Most of the mills which stood along its banks were closed by the end of the nineteenth century."
)


def sample_of(text: str) -> Sample:
    return Sample((TextPart(text),), "text", "key")


def test_words():
    assert words_of("Don't stop: re-use 3 cafés!") == ["don't", "stop", "re-use", "3", "cafés"]
    assert words_of("红色的圆") == ["红", "色", "的", "圆"]


def test_prose_is_within_the_usual_thresholds():
    found = text_quality(PROSE)
    assert found["words"] == len(PROSE.split()) and found["stop_words"] >= 4 and 3 <= found["mean_word_length"] <= 10
    assert found["symbols"] == found["bullet_lines"] == found["ellipsis_lines"] == found["duplicate_lines"] == 0
    assert found["alphabetic_words"] == 1 and found["duplicate_5grams"] == 0 and found["top_4gram"] == 0


@pytest.mark.parametrize(
    "text, name, expected",
    [
        ("one two # three ... four", "symbols", 2 / 4),
        ("- one\n* two\nthree", "bullet_lines", 2 / 3),
        ("and so on...\nmore…\nend", "ellipsis_lines", 2 / 3),
        ("one 2 -- four", "alphabetic_words", 2 / 4),
        ("abcd\nabcd\nxy", "duplicate_lines", 4 / 10),
        ("aa bb aa bb cc", "top_2gram", 8 / 10),
        ("a b c d e f a b c d e", "duplicate_5grams", 5 / 11),
        ("a b c d e f a b c d e f", "duplicate_6grams", 6 / 12),
        ("a b c d e f a b c d e f", "duplicate_5grams", 6 / 12),
        ("ab cde", "mean_word_length", 2.5),
    ],
)
def test_statistics_by_hand(text, name, expected):
    assert text_quality(text)[name] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("text", ["", "   \n", "... -- !!!"])
def test_a_text_without_words(text):
    assert text_quality(text) == {"words": 0} and minhash(words_of(text), 5, 8) == []


@pytest.mark.parametrize(
    "text, code",
    [
        (PROSE, "en"),
        ("Der Fluss entspringt in den Hügeln nördlich der Stadt und fließt durch ein Tal.", "de"),
        ("这条河发源于城北的山丘，流经一个自中世纪以来就有人耕种的山谷。", "zh"),
    ],
)
def test_language(text, code):
    found = Language().prepare()(sample_of(text))
    assert found["code"] == code and 0.7 <= found["probability"] <= 1


@hypothesis.given(st.lists(st.integers(0, 40), min_size=5, max_size=60), st.integers(0, 30))
@hypothesis.settings(max_examples=40)
def test_signatures_agree_as_often_as_the_sets_do(numbers, changed):
    first = [f"word{n}" for n in numbers]
    second = first[changed:] + [f"other{n}" for n in range(changed)]
    a, b = ({" ".join(words[i : i + 3]) for i in range(len(words) - 2)} for words in (first, second))
    jaccard = len(a & b) / len(a | b)
    signatures = [np.asarray(minhash(words, 3, 2000)) for words in (first, second)]
    # Five standard deviations of a fraction of 2,000 draws.
    assert np.mean(signatures[0] == signatures[1]) == pytest.approx(jaccard, abs=5 * np.sqrt(0.25 / 2000))


def test_a_signature_does_not_depend_on_the_order_of_sets():
    assert MinHash().prepare()(sample_of(PROSE)) == {"signature": minhash(words_of(PROSE), 5, 112)}
    assert minhash(["a", "b", "a", "b", "a"], 2, 16) == minhash(["b", "a", "b", "a"], 2, 16)
