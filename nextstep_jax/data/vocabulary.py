"""The text tokenizer and the special ids around images.

A `Vocabulary` wraps a `tokenizers.Tokenizer` that knows the NextStep special tokens (the Qwen2 tokenizer of the releases, or
a small word-level one from `word_vocabulary`). Text from outside is only ever text: a prompt that spells
"<|begin_of_image|>" is encoded as those characters, never as the special token, unless the caller asks for it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from nextstep_jax.config import NextStepConfig
from nextstep_jax.data import files
from nextstep_jax.errors import InputError, one_line

EOS = "<|endoftext|>"
# Our name -> the token, in the order in which the releases added them after the 151,665 entries of Qwen2.
SPECIAL_TOKENS = {
    "pad": "[PAD]",
    "image_area": "<|image_area|>",
    "begin_of_image": "<|begin_of_image|>",
    "end_of_image": "<|end_of_image|>",
    "image_placeholder": "<|image_placeholder|>",
    "begin_of_prompt_refinement": "<|begin_of_prompt_refinement|>",
    "end_of_prompt_refinement": "<|end_of_prompt_refinement|>",
    "begin_of_thinking": "<|begin_of_thinking|>",
    "end_of_thinking": "<|end_of_thinking|>",
}
_TOKENS = {"eos": EOS, **SPECIAL_TOKENS}
OPTIONAL = tuple(name for name in SPECIAL_TOKENS if "thinking" in name or "refinement" in name)

MAX_FILE_BYTES = 64 << 20
MAX_AREA = 9999  # tokens along one side of an image
_QWEN_DIGITS = tuple(range(15, 25))  # ids of "0".."9" in the Qwen2 vocabulary
_QWEN_TIMES = 9  # id of "*"


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids that frame a sequence: `{text}<|image_area|>h*w<|begin_of_image|>{image}<|end_of_image|>`.

    Attributes:
      digits: ids of "0" to "9"; an area is spelled digit by digit.
      times: id of "*".
      begin_of_thinking, ...: None in a vocabulary without them.
    """

    eos: int
    pad: int
    image_area: int
    begin_of_image: int
    end_of_image: int
    image_placeholder: int
    digits: tuple[int, ...] = _QWEN_DIGITS
    times: int = _QWEN_TIMES
    begin_of_prompt_refinement: int | None = None
    end_of_prompt_refinement: int | None = None
    begin_of_thinking: int | None = None
    end_of_thinking: int | None = None

    @classmethod
    def from_config(
        cls, config: NextStepConfig, digits: Sequence[int] = _QWEN_DIGITS, times: int = _QWEN_TIMES
    ) -> "SpecialIds":
        """The ids a model config names, for callers without a text tokenizer; the digits default to Qwen2's."""
        return cls(
            eos=config.eos_id,
            pad=config.pad_id,
            image_area=config.image_area_id,
            begin_of_image=config.begin_of_image_id,
            end_of_image=config.end_of_image_id,
            image_placeholder=config.image_placeholder_id,
            digits=tuple(digits),
            times=times,
        )

    @property
    def thinking(self) -> tuple[int, ...]:
        """The ids of the thinking tokens; empty in a vocabulary without them."""
        return tuple(id for id in (self.begin_of_thinking, self.end_of_thinking) if id is not None)

    def area_ids(self, h: int, w: int) -> list[int]:
        """`<|image_area|>` and the text "h*w"; h and w in image tokens."""
        if not (0 < h <= MAX_AREA and 0 < w <= MAX_AREA):
            raise InputError(f"an image area must be 1*1 to {MAX_AREA}*{MAX_AREA} tokens, found {h}*{w}")
        spelled = {str(digit): id for digit, id in enumerate(self.digits)} | {"*": self.times}
        return [self.image_area, *(spelled[character] for character in f"{h}*{w}")]

    def parse_area(self, ids: Sequence[int]) -> tuple[int, int] | None:
        """(h, w) of the ids between `<|image_area|>` and `<|begin_of_image|>`; None if they do not spell "h*w"."""
        characters = {id: str(digit) for digit, id in enumerate(self.digits)} | {self.times: "*"}
        match = re.fullmatch(r"([1-9]\d{0,3})\*([1-9]\d{0,3})", "".join(characters.get(int(id), "?") for id in ids))
        return (int(match[1]), int(match[2])) if match else None


class Vocabulary:
    """Text <-> ids. Immutable; can be pickled into reader processes.

    Attributes:
      special: the special ids.
      unknown: the id in place of what has no token, which is refused in a text; None where there is no such id.
      source: what errors call it, usually the file.
    """

    def __init__(self, tokenizer: Tokenizer, source: str = "tokenizer.json"):
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # text that spells a special token stays text
        self.source = source
        self.unknown: int | None = None
        self._marker_ids = frozenset[int]()
        ids: dict[str, Any] = {name: self._tokenizer.token_to_id(token) for name, token in _TOKENS.items()}
        missing = [_TOKENS[name] for name, id in ids.items() if id is None and name not in OPTIONAL]
        if missing:
            raise InputError(f"{source}: not a NextStep tokenizer, it has no {', '.join(missing)}")
        self.unknown = self._tokenizer.token_to_id(getattr(self._tokenizer.model, "unk_token", None) or "\0")
        spelled = [self._encode_text(character) for character in "0123456789*"]
        if any(len(ids) != 1 for ids in spelled):
            raise InputError(f"{source}: it has no single tokens for the digits and '*' that spell an image's area")
        digits = tuple(ids[0] for ids in spelled)
        self.special = SpecialIds(digits=digits[:10], times=digits[10], **ids)
        self._marker_ids = frozenset(id for id in ids.values() if id is not None)
        if self._encode_text("16*32") != self.special.area_ids(16, 32)[1:]:
            raise InputError(f"{source}: it does not spell an image's area digit by digit")

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "tokenizer.json") -> "Vocabulary":
        """Read the content of a tokenizer.json. InputError names `source`."""
        return cls(_parse(data, source), source)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Vocabulary":
        """Read a tokenizer.json. InputError if it is missing, empty, too large, not one, or lacks the special tokens."""
        with files.open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        return cls.from_bytes(data, str(pathlib.Path(path)))

    def to_bytes(self) -> bytes:
        """The content of its tokenizer.json."""
        return self._tokenizer.to_str().encode()

    def __reduce__(self):
        return Vocabulary.from_bytes, (self.to_bytes(), self.source)

    @property
    def size(self) -> int:
        """Number of ids, special ones included. An embedding may be larger."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, special: bool | Collection[str] = False) -> list[int]:
        """Ids of `text`.

        Args:
          special: let special tokens spelled in `text` become their ids: all (True) or those named, as in SPECIAL_TOKENS. Only
            for text that the program wrote or that is trusted.

        Raises:
          InputError: a word or character the vocabulary has no id for (a byte-level one has them all), or invalid Unicode.
        """
        if not special:
            return self._encode_text(text)
        names = _TOKENS if special is True else special
        tokens = {_TOKENS[name]: getattr(self.special, name) for name in names if getattr(self.special, name) is not None}
        pieces = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
        ids: list[int] = []
        for piece in pieces:
            ids += [tokens[piece]] if piece in tokens else self._encode_text(piece)
        return ids

    def word_places(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of `text`, as white space separates them, each with the places of its ids in `encode(text)`."""
        words = [(match[0], match.end(), list[int]()) for match in re.finditer(r"\S+", text)]
        spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        for place, (start, end) in enumerate(spans):
            # A token may begin or end with the space around its word; one that is only space belongs to none.
            if token := text[start:end].rstrip():
                next(places for _, after, places in words if start + len(token) <= after).append(place)
        return [(word, places) for word, _, places in words]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of `ids`. Special tokens are left out unless asked for; ids beyond the vocabulary are left out always."""
        size = self.size
        return self._tokenizer.decode([int(id) for id in ids if 0 <= id < size], skip_special_tokens=not special)

    @property
    def words(self) -> list[str]:
        """The words of a word-level vocabulary (`word_vocabulary`), sorted; empty for others, which know any text."""
        if not isinstance(self._tokenizer.model, models.WordPiece):
            return []
        return sorted(
            token for token in self._tokenizer.get_vocab(with_added_tokens=False) if re.fullmatch("[a-z]{2,}|a", token)
        )

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that a word-level vocabulary has no id for, so that it spells them letter by letter; each once.

        Words in double quotes are not counted: they are there to be spelled. Empty for other vocabularies.
        """
        if not isinstance(self._tokenizer.model, models.WordPiece):
            return []
        text = re.sub('["“][^"“”]*["”]', lambda quoted: " " * len(quoted[0]), text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans: dict[int | None, list[tuple[int, int]]] = {}
        for word, span in zip(encoding.word_ids, encoding.offsets, strict=True):
            spans.setdefault(word, []).append(span)
        spelled = (text[parts[0][0] : parts[-1][1]] for parts in spans.values() if len(parts) > 1)
        return list(dict.fromkeys(spelled))

    def area_ids(self, h: int, w: int) -> list[int]:
        """`<|image_area|>` and the ids of "h*w"; h and w in image tokens."""
        return self.special.area_ids(h, w)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Which of the tokens named as in SPECIAL_TOKENS it does not have, as they are spelled."""
        return [SPECIAL_TOKENS[name] for name in names if getattr(self.special, name) is None]

    def require_match(self, config: NextStepConfig) -> None:
        """InputError unless the special ids are those of the model's config and all ids have an embedding."""
        wanted = SpecialIds.from_config(config, self.special.digits, self.special.times)
        for name in ("eos", "pad", "image_area", "begin_of_image", "end_of_image", "image_placeholder"):
            found, expected = getattr(self.special, name), getattr(wanted, name)
            if found != expected:
                raise InputError(f"{self.source}: the id of {name} is {found}, the model's config says {expected}")
        if self.size > config.transformer.vocab_size:
            raise InputError(f"{self.source}: {self.size} ids, but the model has {config.transformer.vocab_size} embeddings")

    def _encode_text(self, text: str) -> list[int]:
        with tokenizers_errors(f"{self.source}: its tokenizer fails on {text!r:.100}"):  # e.g. its unknown token is none
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
            except TypeError as error:  # what the tokenizers library says of a lone surrogate
                raise InputError(f"text is not valid Unicode: {text!r:.100}") from error
        if self.unknown is not None and self.unknown in encoding.ids:
            spans = [span for span, id in zip(encoding.offsets, encoding.ids, strict=True) if id == self.unknown]
            unknown = ", ".join(dict.fromkeys(repr(text[start:end]) for start, end in spans))
            raise InputError(f"text has {unknown}, which {self.source} has no token for: {text!r:.100}")
        if not self._marker_ids.isdisjoint(encoding.ids):
            raise InputError(f"text spells a special token, which only the program may write: {text!r:.100}")
        return encoding.ids


def _parse(data: bytes, source: str) -> Tokenizer:
    if not data:
        raise InputError(f"{source}: the file is empty, expected a tokenizer.json")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{source}: more than {MAX_FILE_BYTES >> 20} MiB, expected a tokenizer.json")
    with tokenizers_errors(f"{source}: not a tokenizer.json"):
        if not isinstance(json.loads(data), dict):
            raise ValueError("not a JSON object")
        return Tokenizer.from_str(data.decode())


@contextlib.contextmanager
def tokenizers_errors(message: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into InputError(message): bare Exceptions, and panics of its native code, which
    are BaseExceptions without a name to catch them by.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"{message} ({one_line(error)})") from error


# --- making vocabularies ----------------------------------------------------------------------------------------------


def with_special_tokens(tokenizer_json: bytes, source: str = "tokenizer.json") -> bytes:
    """A tokenizer.json with the NextStep special tokens added at its end, in the releases' order; those present stay."""
    tokenizer = _parse(tokenizer_json, source)
    _add_special_tokens(tokenizer)
    return tokenizer.to_str().encode()


def _add_special_tokens(tokenizer: Tokenizer) -> None:
    tokens = [EOS, *SPECIAL_TOKENS.values()]
    missing = [token for token in tokens if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])


_PUNCTUATION = ".,!?:;'\"()-*"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_QUOTED = r'"(?:[^"]*"[^"]*")*[^"]*$'  # a quote with an even number of quotes after it: a closing one
# Spaces that joining words with single spaces puts where English has none.
_EXTRA_SPACE = "|".join(
    (
        r" (?=[.,!?:;)'*-])",
        r"(?<=[('*-]) ",
        r"(?<=[0-9]) (?=[0-9])",
        rf'(?<=") (?=[^"]*{_QUOTED})',
        rf" (?={_QUOTED})",
    )
)


def word_vocabulary(words: Iterable[str]) -> bytes:
    """The tokenizer.json of a small word-level vocabulary.

    One id for each word of a closed list, each digit and each punctuation mark; a word that is not in the list is spelled
    letter by letter, so any English text has ids. Capitals are read as small letters. Decoding gives back exactly any
    lower-case text with single spaces and ordinary punctuation: `a "hat", 12 red circles; the dog's 4*4 half-moon.`

    Ids: unknown, punctuation, digits, letters, letters inside a word, the words in sorted order, then the special tokens in
    the releases' order.

    Raises:
      InputError: a word with anything but letters in it.
    """
    words = sorted({word.lower() for word in words}.difference(_PUNCTUATION, "0123456789"))
    for word in words:
        if not re.fullmatch("[a-z]+", word):
            raise InputError(f"a word of a vocabulary has letters only, found {word!r}")
    entries = ["[UNK]", *_PUNCTUATION, *"0123456789", *_LETTERS, *("##" + letter for letter in _LETTERS), *words]
    ids = {entry: id for id, entry in enumerate(dict.fromkeys(entries))}
    model = models.WordPiece(ids, unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=256)
    tokenizer = Tokenizer(model)
    plain_quotes = [normalizers.Replace(Regex("[‘’]"), "'"), normalizers.Replace(Regex("[“”]"), '"')]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *plain_quotes])
    split = pre_tokenizers.Split(Regex("[a-z]+|."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    join = decoders.WordPiece("##", cleanup=False)
    tokenizer.decoder = decoders.Sequence([join, decoders.Fuse(), decoders.Replace(Regex(_EXTRA_SPACE), "")])
    _add_special_tokens(tokenizer)
    return tokenizer.to_str().encode()
