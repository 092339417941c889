"""Parts to sequences. What the February 2026 release's sequences say is checked in test_release_packing.py."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nextstep_jax.data.augment import AS_STORED, draws
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.release_packing import cut_images
from nextstep_jax.data.sequence import (
    ImageTokens,
    TextIds,
    Tokenize,
    TokenizedSample,
    cut_text,
    fits,
    frame,
    image_prefix,
    patchify,
    segments,
    training_segment,
)
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS
from tests.data.made_up import CHANNELS, PATCH, image, text, vocabulary

VOCABULARY = vocabulary()
SPECIAL = VOCABULARY.special
AREA_2_3 = [501, 482, 490, 483, 502]


def text_ids(*ids, loss=True):
    return TextIds(np.asarray(ids, np.int32), loss)


def image_tokens(h, w, number=0.0, loss=True):
    return ImageTokens(np.full((h * w, CHANNELS), number, np.float32), h, w, loss)


def tokenized(kind, *parts, index=0):
    return TokenizedSample(index, "key", kind, list(parts))


def test_patchify_is_the_releases():
    golden = load_file(GOLDENS / "patchify.safetensors")
    latents = golden["latents"].transpose(0, 2, 3, 1)
    for one, tokens in zip(latents, golden["tokens"], strict=True):
        np.testing.assert_array_equal(patchify(one, PATCH), tokens)


def test_patchify_refuses_a_remainder():
    with pytest.raises(InputError, match="5x4"):
        patchify(np.zeros((5, 4, 16)), 2)


def test_a_pair():
    segment = training_segment([text_ids(5, 6), image_tokens(2, 3, 7)], SPECIAL, CHANNELS)
    assert segment.text_ids.tolist() == [5, 6, *AREA_2_3, *[504] * 6, 503, 499]
    assert segment.is_image.tolist() == [False] * 7 + [True] * 6 + [False] * 2
    # Text, area and end-of-image are targets; begin-of-image, the image and the end of text after an image are not.
    assert segment.text_weight.tolist() == [1] * 6 + [0] + [0] * 6 + [1, 0]
    assert segment.image_weight.tolist() == [0] * 7 + [1] * 6 + [0, 0]
    np.testing.assert_array_equal(segment.image_tokens, np.full((6, CHANNELS), 7))


def test_loss_flags():
    segment = training_segment([image_tokens(1, 1, loss=False), text_ids(5, loss=False)], SPECIAL, CHANNELS)
    assert segment.image_weight.sum() == 0
    assert segment.text_weight.tolist() == [1] * 4 + [0, 0] + [1, 0, 0]
    segment = training_segment([text_ids(5, loss=False), text_ids(6, 7)], SPECIAL, CHANNELS)
    assert segment.text_weight.tolist() == [0, 1, 1, 1]


def test_a_prompt_is_the_beginning_of_the_training_sequence():
    """What generation conditions on is what training saw before the target's first token."""
    parts = [image_tokens(1, 2, 3), text_ids(8, 9)]
    prompt = frame([*parts, text_ids(*image_prefix(SPECIAL, 2, 3))], SPECIAL, CHANNELS)
    full = training_segment([*parts, image_tokens(2, 3, 5)], SPECIAL, CHANNELS)
    assert prompt.text_ids.tolist()[-5:] == AREA_2_3 == image_prefix(SPECIAL, 2, 3)
    np.testing.assert_array_equal(prompt.text_ids, full.text_ids[: len(prompt)])
    np.testing.assert_array_equal(prompt.is_image, full.is_image[: len(prompt)])
    np.testing.assert_array_equal(prompt.image_tokens, full.image_tokens[:2])
    assert full.is_image[len(prompt)]


def test_frame_of_nothing():
    segment = frame([], SPECIAL, CHANNELS)
    assert len(segment) == 0 and segment.image_tokens.shape == (0, CHANNELS)


def test_wrong_number_of_tokens_is_refused():
    with pytest.raises(InputError, match="2\\*3 tokens"):
        frame([image_tokens(3, 3)._replace(h=2)], SPECIAL, CHANNELS)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_cut_text_loses_nothing(count, length):
    segment = training_segment([text_ids(*range(count))], SPECIAL, CHANNELS)
    pieces = cut_text(segment, length)
    assert max(map(len, pieces)) <= length and all(len(piece) == length for piece in pieces[:-1])
    np.testing.assert_array_equal(np.concatenate([piece.text_ids for piece in pieces]), segment.text_ids)
    np.testing.assert_array_equal(np.concatenate([piece.text_weight for piece in pieces]), segment.text_weight)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["text", "image"]), max_size=12), st.integers(1, 5), st.integers(0, 99))
def test_cut_images_keeps_a_run(order, limit, seed):
    parts = [text_ids(place) if what == "text" else image_tokens(1, 1, place) for place, what in enumerate(order)]
    start, stop = cut_images(parts, limit, draws(seed))
    kept = order[start:stop]
    assert kept.count("image") == min(limit, order.count("image"))
    if order.count("image") > limit:
        assert kept[-1] == "image" and (start == 0 or order[start - 1] == "image")
    else:
        assert kept == order


def test_every_run_of_images_is_drawn():
    parts = [image_tokens(1, 1, place) for place in range(4)]
    assert {cut_images(parts, 2, draws(seed)) for seed in range(40)} == {(0, 2), (1, 3), (2, 4)}


def test_segments_by_kind():
    long_text = text_ids(*range(30))
    assert list(map(len, segments(tokenized("text", long_text), SPECIAL, CHANNELS, (12, 12, 12)))) == [12, 12, 7]
    pair = tokenized("pair", text_ids(1), image_tokens(2, 2))
    assert list(map(len, segments(pair, SPECIAL, CHANNELS, (12, 12, 12)))) == [12]
    assert segments(pair, SPECIAL, CHANNELS, (11, 11, 11)) == []


def test_segments_keep_to_the_places_of_the_heads():
    long_text = text_ids(*range(30))
    assert list(map(len, segments(tokenized("text", long_text), SPECIAL, CHANNELS, (12, 8, 12)))) == [8, 8, 8, 7]
    pair = tokenized("pair", text_ids(1), image_tokens(2, 2))
    (segment,) = segments(pair, SPECIAL, CHANNELS, (12, 12, 12))
    positions, text, image = segment.sizes
    assert (positions, text, image) == (12, np.sum(segment.text_weight > 0), 4)
    assert segments(pair, SPECIAL, CHANNELS, (12, text, 4)) != []
    assert segments(pair, SPECIAL, CHANNELS, (12, text - 1, 4)) == segments(pair, SPECIAL, CHANNELS, (12, text, 3)) == []


def test_a_preference_is_two_sequences_that_take_the_room_of_the_larger():
    """Of their text only what each has of its own is a target."""
    prompt, shared = text_ids(5, 6, loss=False), image_tokens(1, 1, 9, loss=False)
    winner, loser = (
        [prompt, shared, text_ids(7, 8, 9), image_tokens(2, 2, 1)],
        [prompt, shared, text_ids(3), image_tokens(2, 2, 2)],
    )
    sample = TokenizedSample(0, "key", "preference", winner, loser)
    (pair,) = segments(sample, SPECIAL, CHANNELS, (40, 40, 40))
    for segment, parts, plan in ((pair.winner, winner, [7, 8, 9]), (pair.loser, loser, [3])):
        whole = training_segment(parts, SPECIAL, CHANNELS)
        np.testing.assert_array_equal(segment.text_ids, whole.text_ids)
        np.testing.assert_array_equal(segment.image_tokens, whole.image_tokens)
        assert segment.text_ids[segment.text_weight > 0].tolist() == plan and segment.image_weight.sum() == 4
    assert pair.sizes == (len(pair.winner), 3, 4)
    assert segments(sample, SPECIAL, CHANNELS, (len(pair.winner), 3, 4)) != []
    for limits in ((len(pair.winner) - 1, 3, 4), (40, 2, 4), (40, 3, 3)):
        assert segments(sample, SPECIAL, CHANNELS, limits) == []


def test_images_of_a_preference_have_one_size():
    images = (ImagePart.from_latents(np.zeros((2, 2 * n, 16), np.float32), 16, 16 * n) for n in (1, 2))
    sample = Sample((text([5]), *images), "preference", "k", metadata={"scores": [1, 0]})
    tokenize = Tokenize("data", VOCABULARY, AS_STORED, 0, PATCH, CHANNELS, pairs=True)
    with pytest.raises(
        InputError, match=r"data: sample 'k': the images of a preference must have one size, found 1\*1 and 1\*2"
    ):
        tokenize(0, sample)


@pytest.mark.parametrize("pairs", [False, True])
def test_thoughts_of_a_preference_are_not_read_as_letters(pairs):
    """Of other kinds of data they are: a text from anywhere may spell them."""
    images = (ImagePart.from_latents(np.full((2, 2, 16), n, np.float32), 16, 16) for n in range(2))
    sample = Sample((TextPart("<|begin_of_thinking|>"), *images), "preference", "k", metadata={"scores": [1, 0]})
    augmentation = dataclasses.replace(AS_STORED, preferred_only=not pairs)
    with pytest.raises(InputError, match=r"'k': it spells <\|begin_of_thinking\|>, but the source's thinking is off"):
        Tokenize("data", VOCABULARY, augmentation, 0, PATCH, CHANNELS, pairs=pairs)(0, sample)


def joined(pieces, field):
    return np.concatenate([getattr(piece, field) for piece in pieces])


def test_a_text_as_long_as_a_row_is_cut_at_its_room_for_targets():
    """Three quarters of a row's 16,384 positions may be text targets."""
    sample = tokenized("text", text_ids(*[7] * 16_383))
    pieces = segments(sample, SPECIAL, CHANNELS, (16_384, 12_288, 12_288))
    assert [len(piece) for piece in pieces] == [12_288, 4_096]
    assert [piece.text_ids[-1] for piece in pieces] == [7, SPECIAL.eos]
    assert [len(piece) for piece in segments(sample, SPECIAL, CHANNELS, (16_384, 16_384, 12_288))] == [16_384]


def test_an_interleaved_sample_is_cut_after_images():
    """20 times 700 words and an image of 256 tokens, in rows of 16,384 positions with 12,288 targets of each head."""
    story = [part for place in range(20) for part in (text_ids(*[place] * 700), image_tokens(16, 16, place))]
    pieces = segments(tokenized("interleaved", *story), SPECIAL, CHANNELS, (16_384, 12_288, 12_288))
    assert [int(piece.is_image.sum()) // 256 for piece in pieces] == [16, 4]
    assert [piece.text_ids[-1] for piece in pieces] == [SPECIAL.end_of_image, SPECIAL.eos]
    whole = training_segment(story, SPECIAL, CHANNELS)
    for field in ("text_ids", "is_image", "image_tokens", "text_weight", "image_weight"):
        np.testing.assert_array_equal(joined(pieces, field), getattr(whole, field))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(1, 30).map(lambda count: text_ids(*range(count))),
            st.integers(1, 4).map(lambda side: image_tokens(side, 2, side)),
        ),
        min_size=1,
        max_size=12,
    ),
    st.tuples(st.integers(16, 50), st.integers(8, 50), st.integers(8, 50)),
)
def test_a_cut_sample_loses_nothing(parts, limits):
    limits = (limits[0], min(limits[:2]), min(limits[0], limits[2]))
    pieces = segments(tokenized("interleaved", *parts), SPECIAL, CHANNELS, limits)
    whole = training_segment(parts, SPECIAL, CHANNELS)
    if not pieces:
        assert any(
            not fits(frame([part], SPECIAL, CHANNELS).sizes, (limits[0] - 1, limits[1] - 1, limits[2])) for part in parts
        )
        return
    assert all(fits(piece.sizes, limits) for piece in pieces)
    for field in ("text_ids", "is_image", "image_tokens", "text_weight", "image_weight"):
        np.testing.assert_array_equal(joined(pieces, field), getattr(whole, field))
    assert len(pieces) == 1 or not fits(whole.sizes, limits)
    # A piece starts inside a text only where that text is longer than a row.
    borders = np.cumsum([len(frame([part], SPECIAL, CHANNELS)) for part in parts]).tolist()
    for start in np.cumsum([len(piece) for piece in pieces[:-1]]).tolist():
        if start not in borders:
            part = parts[next(place for place, border in enumerate(borders) if border > start)]
            assert isinstance(part, TextIds) and len(part.ids) > min(limits[:2]) - 1


def preparation(**changes) -> Tokenize:
    return dataclasses.replace(Tokenize("source", VOCABULARY, AS_STORED, 0, PATCH, CHANNELS), **changes)


def test_preparation():
    sample = Sample((text([3, 4]), image(2, 3, 1.5, loss=False)), "pair", "key")
    index, key, kind, (words, picture), other = preparation()(11, sample)
    assert (index, key, kind, other) == (11, "key", "pair", None)
    assert words.ids.tolist() == [3, 4] and words.ids.dtype == np.int32 and words.loss
    assert (picture.h, picture.w, picture.loss) == (2, 3, False)
    np.testing.assert_array_equal(picture.tokens, np.full((6, CHANNELS), 1.5, np.float32))


def test_preparation_reads_half_precision():
    latents = np.linspace(-2, 2, 2 * 2 * 16).astype(np.float16).reshape(2, 2, 16)
    sample = Sample((ImagePart.from_latents(latents, 16, 16),), "pair", "key")
    (picture,) = preparation()(0, sample).parts
    assert picture.tokens.dtype == np.float32
    np.testing.assert_array_equal(picture.tokens, patchify(latents, 2))


THOUGHT = Sample((TextPart("<|begin_of_thinking|> w5 <|end_of_thinking|>"),), "text", "thought")


def test_thinking_tokens_only_where_trusted():
    ids = preparation(thinking=True)(0, THOUGHT).parts[0].ids.tolist()
    assert ids == [SPECIAL.begin_of_thinking, 5, SPECIAL.end_of_thinking]
    with pytest.raises(InputError, match="source: sample 'thought'"):
        preparation()(0, THOUGHT)


def test_pixels_are_refused():
    pixels = ImagePart.from_pixels(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="source: sample 'photo'.*data encode"):
        preparation()(0, Sample((pixels,), "pair", "photo"))


def test_latents_of_another_tokenizer_are_refused():
    latents = ImagePart.from_latents(np.zeros((2, 2, 4), np.float32), 16, 16)
    with pytest.raises(InputError, match="sample 'small'.*64 numbers"):
        preparation()(0, Sample((latents,), "pair", "small"))
