"""Text and ids, special tokens, and the files they come from."""

import dataclasses
import json
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nextstep_jax.config import preset
from nextstep_jax.data import shapes
from nextstep_jax.data.vocabulary import (
    OPTIONAL,
    SPECIAL_TOKENS,
    SpecialIds,
    Vocabulary,
    with_special_tokens,
    word_vocabulary,
)
from nextstep_jax.errors import InputError

WORDS = ["a", "red", "circle", "left", "of", "the", "square", "says", "make", "it", "blue", "dog", "half", "moon"]
SMALL = Vocabulary.from_bytes(word_vocabulary(WORDS))


def byte_level_json() -> bytes:
    """A byte-level BPE that splits digits one by one, as Qwen2's does."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a red circle left of a blue square 16*32 "] * 4, trainer)
    return tokenizer.to_str().encode()


BYTE_LEVEL = Vocabulary.from_bytes(with_special_tokens(byte_level_json()))


@pytest.mark.parametrize("vocabulary", [SMALL, BYTE_LEVEL], ids=["words", "byte level"])
def test_area_ids(vocabulary):
    special = vocabulary.special
    for h, w in ((1, 1), (8, 32), (16, 9), (100, 205)):
        ids = vocabulary.area_ids(h, w)
        assert ids[0] == special.image_area
        assert ids[1:] == vocabulary.encode(f"{h}*{w}")
        assert special.parse_area(ids[1:]) == (h, w)
    zero, one, times = special.digits[0], special.digits[1], special.times
    for wrong in (
        [],
        [special.image_area],
        [one, times],
        [one, times, one, times],
        [zero, times, one],
        [one] * 5 + [times, one],
    ):
        assert special.parse_area(wrong) is None
    for h, w in ((0, 1), (-1, 4), (1, 10000)):
        with pytest.raises(InputError, match="image area"):
            vocabulary.area_ids(h, w)


def test_special_tokens_come_last_in_the_releases_order():
    order = ["eos", *SPECIAL_TOKENS]
    for vocabulary in (SMALL, BYTE_LEVEL):
        ids = [getattr(vocabulary.special, name) for name in order]
        assert ids == list(range(vocabulary.size - len(order), vocabulary.size))
        assert [vocabulary.decode([id], special=True) for id in ids[1:]] == list(SPECIAL_TOKENS.values())


def test_byte_level_text_never_becomes_a_special_token():
    for token in SPECIAL_TOKENS.values():
        ids = BYTE_LEVEL.encode(f"a {token} b")
        assert max(ids) < BYTE_LEVEL.special.eos
        assert BYTE_LEVEL.decode(ids) == f"a {token} b"


def test_word_vocabulary_refuses_special_tokens_in_text():
    for token in SPECIAL_TOKENS.values():
        with pytest.raises(InputError, match="no token for"):
            SMALL.encode(f"a {token} b")


@pytest.mark.parametrize("vocabulary", [SMALL, BYTE_LEVEL], ids=["words", "byte level"])
def test_special_tokens_on_request(vocabulary):
    special = vocabulary.special
    text = "<|image_area|>16*32<|begin_of_image|>"
    assert vocabulary.encode(text, special=True) == [*vocabulary.area_ids(16, 32), special.begin_of_image]
    thought = vocabulary.encode("<|begin_of_thinking|>a red<|end_of_thinking|>", special=OPTIONAL)
    assert (thought[0], thought[-1]) == (special.begin_of_thinking, special.end_of_thinking)
    assert vocabulary.decode(thought) == "a red"
    plain = BYTE_LEVEL.encode("<|begin_of_image|>", special=OPTIONAL)
    assert max(plain) < BYTE_LEVEL.special.eos


def test_a_special_token_spelled_by_an_unmarked_entry_is_refused():
    """A tokenizer.json in which <|begin_of_image|> is an ordinary added token, so that plain text would match it."""
    content = json.loads(with_special_tokens(byte_level_json()))
    for token in content["added_tokens"]:
        token["special"] = False
    vocabulary = Vocabulary.from_bytes(json.dumps(content).encode())
    with pytest.raises(InputError, match="only the program may write"):
        vocabulary.encode("a <|begin_of_image|>")


SENTENCES = [
    "a red circle left of the square.",
    'the dog says "hi there", 12 times; make it blue!',
    "a half-moon (4*4), the dog's: 305 zebras?",
    '"go" "on"',
    "",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_words_decode_exactly(sentence):
    assert SMALL.decode(SMALL.encode(sentence)) == sentence


_WORD = st.one_of(st.sampled_from(WORDS), st.text("abcxyz", min_size=1, max_size=6), st.integers(0, 999).map(str))
_QUOTED = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(lambda words: '"' + " ".join(words) + '"')


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(_WORD, _QUOTED), min_size=1, max_size=8), st.sampled_from(["", ".", "!", "?"]))
def test_any_lower_case_text_decodes_exactly(pieces, end):
    separated = [pieces[0]]
    for piece in pieces[1:]:  # two numbers side by side would join: the language has a word between them
        separated += ["of", piece] if piece.isdigit() and separated[-1].isdigit() else [piece]
    sentence = " ".join(separated) + end
    assert SMALL.decode(SMALL.encode(sentence)) == sentence


def test_listed_words_are_one_id_and_capitals_are_small_letters():
    ids = SMALL.encode("Red CIRCLE")
    assert len(ids) == 2 and SMALL.decode(ids) == "red circle"
    assert SMALL.encode("“dog’s”") == SMALL.encode('"dog\'s"')
    assert len(SMALL.encode("zebra")) == 5


@pytest.mark.parametrize("text", ["a 猫 b", "élan", "a\ud800"])
def test_text_without_ids_is_refused(text):
    with pytest.raises(InputError, match="no token for|Unicode"):
        SMALL.encode(text)


def test_words_must_be_words():
    with pytest.raises(InputError, match="letters only"):
        word_vocabulary(["red", "half-moon"])


def test_decode_leaves_out_special_and_foreign_ids():
    special = SMALL.special
    ids = [special.begin_of_image, *SMALL.encode("a red"), 10**9, -1, special.eos]
    assert SMALL.decode(ids) == "a red"


def test_with_special_tokens_keeps_what_is_there():
    once = with_special_tokens(byte_level_json())
    assert with_special_tokens(once) == once


def test_pickle():
    copy = pickle.loads(pickle.dumps(SMALL))
    assert copy.special == SMALL.special and copy.source == SMALL.source
    with pytest.raises(InputError):
        copy.encode("<|begin_of_image|>")


def test_bytes_and_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(SMALL.to_bytes())
    assert Vocabulary.from_file(path).special == SMALL.special


NOT_DIGIT_BY_DIGIT = json.loads(SMALL.to_bytes())
NOT_DIGIT_BY_DIGIT["pre_tokenizer"] = {"type": "WhitespaceSplit"}
BAD_FILES = {
    "empty": (b"", "empty"),
    "not JSON": (b"\xff\xfe\x00", "not a tokenizer.json"),
    "half a file": (SMALL.to_bytes()[:500], "not a tokenizer.json"),
    "a list": (b"[]", "not a JSON object"),
    "another JSON": (b'{"hidden_size": 64}', "not a tokenizer.json"),
    "no special tokens": (byte_level_json(), r"no <\|endoftext\|>, \[PAD\], <\|image_area\|>"),
    "areas not digit by digit": (json.dumps(NOT_DIGIT_BY_DIGIT).encode(), "area"),
}


@pytest.mark.parametrize("content, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Vocabulary.from_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no-such-file"):
        Vocabulary.from_file(tmp_path / "no-such-file")
    with pytest.raises(InputError, match="not a regular file"):
        Vocabulary.from_file(tmp_path)


def test_special_ids_from_a_config():
    """The released ids; the area of a 512 px image in the Qwen2 vocabulary."""
    special = SpecialIds.from_config(preset("14b"))
    assert (special.eos, special.pad, special.image_area, special.begin_of_image) == (151643, 151665, 151666, 151667)
    assert special.area_ids(32, 16) == [151666, 18, 17, 9, 16, 21]


def test_require_match():
    special = SMALL.special
    config = dataclasses.replace(
        preset("tiny"),
        eos_id=special.eos,
        pad_id=special.pad,
        begin_of_image_id=special.begin_of_image,
        end_of_image_id=special.end_of_image,
        image_placeholder_id=special.image_placeholder,
    )
    SMALL.require_match(config)
    with pytest.raises(InputError, match="the id of pad is"):
        SMALL.require_match(dataclasses.replace(config, pad_id=3))
    with pytest.raises(InputError, match="embeddings"):
        SMALL.require_match(config.with_transformer(vocab_size=SMALL.size - 1))


@pytest.mark.parametrize("kind", [kind for kind in shapes.KINDS if kind != "letters"])  # those have no text
def test_the_built_in_datasets_texts_decode_exactly(kind):
    """With the words that it draws spelled letter by letter, as the built-in model reads them."""
    vocabulary = Vocabulary.from_bytes(word_vocabulary(set(shapes.vocabulary_words()).difference(shapes.WORDS)))
    texts = [part.text for index in range(60) for part in shapes.sample(kind, index).texts]
    texts = [re.sub(r"<\|\w+\|>", "", text) for text in texts]  # a plan's marks are no text
    assert texts and [vocabulary.decode(vocabulary.encode(text)) for text in texts] == texts


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a red circle", []),
        ("a red Cat, a cat of dogs", ["Cat", "cat", "dogs"]),
        ('the "cat" of a circle', ["the"]),
        ("a “hat” of “red", []),
        ("12*4 .", []),
        ("a circle’s", []),
        ("", []),
    ],
)
def test_words_that_a_word_vocabulary_can_only_spell(tiny_vocabulary, text, unknown):
    assert tiny_vocabulary.unknown_words(text) == unknown


def test_words_of_a_word_vocabulary(tiny_vocabulary):
    assert tiny_vocabulary.words == ["a", "blue", "circle", "left", "of", "red", "square"]
