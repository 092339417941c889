"""The text tokenizer of a released folder as the content of one tokenizer.json.

Released folders hold either tokenizer.json itself or the older three files (vocab.json, merges.txt, added_tokens.json), from
which the same tokenizer is built here: byte-level BPE behind Qwen2's normalizer and pre-tokenizer.
"""

import pathlib
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from nextstep_jax.conversion.torch_files import read_json, read_small
from nextstep_jax.data.vocabulary import tokenizers_errors
from nextstep_jax.errors import InputError

FILE = "tokenizer.json"
# Kept as they are in a converted checkpoint, so that an export gives them back.
COMPANIONS = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")

# How Qwen2 cuts text before byte-level BPE: contractions, words with one leading mark, single digits, runs of marks, spaces.
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def is_in(folder: pathlib.Path) -> bool:
    """Whether the folder holds a text tokenizer in either form."""
    return (folder / FILE).is_file() or (folder / "vocab.json").is_file()


def read(folder: pathlib.Path) -> dict[str, bytes]:
    """{name: content} of tokenizer.json, built from the older files if need be, and of its companions.

    Raises:
      InputError: neither form is there, a file is empty or malformed, or the added tokens cannot have the ids they name.
    """
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if (folder / FILE).is_file():
        content = read_small(folder / FILE)
    elif missing:
        wanted = f"{FILE}, or vocab.json and merges.txt"
        raise InputError(f"{folder}: no text tokenizer; expected {wanted} ({missing[0]} is missing)")
    else:
        content = _build(folder).to_str().encode()
    companions = {name: read_small(folder / name) for name in COMPANIONS if (folder / name).is_file()}
    return {FILE: content} | companions


def _build(folder: pathlib.Path) -> Tokenizer:
    vocabulary = read_json(folder / "vocab.json")
    with tokenizers_errors(f"{folder}: vocab.json and merges.txt are not a byte-level BPE"):
        merges = _read_merges(read_small(folder / "merges.txt"))
        for pair in merges if isinstance(vocabulary, dict) else ():
            if missing := {*pair, "".join(pair)} - vocabulary.keys():
                raise ValueError(f"the merge {' '.join(pair)!r:.100} needs {min(missing)!r:.100} in the vocabulary")
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(_QWEN2_PIECES), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _add_tokens(tokenizer, folder)
    return tokenizer


def _read_merges(data: bytes) -> list[Any]:
    """The pairs of merges.txt: one a line, after an optional line with the format's version; lines end in LF or CR LF."""
    lines = [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n")]
    if lines[0].startswith("#version"):
        del lines[0]
    return [tuple(line.split(" ")) for line in lines if line]


def _add_tokens(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Append the added tokens by rising id, which must continue the vocabulary without a gap."""
    file, tokens = _added_tokens(folder)
    for wanted, token in sorted(tokens, key=lambda pair: pair[0]):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != wanted:
            found = tokenizer.token_to_id(token.content)
            raise InputError(f"{file}: {token.content!r} is given the id {wanted}, but the vocabulary puts it at {found}")


def _added_tokens(folder: pathlib.Path) -> tuple[pathlib.Path, list[tuple[int, AddedToken]]]:
    """(where they are written, [(id, token)]): the ids of added_tokens.json, the properties of tokenizer_config.json."""
    ids_file, config_file = folder / "added_tokens.json", folder / "tokenizer_config.json"
    described = read_json(config_file).get("added_tokens_decoder", {}) if config_file.is_file() else {}
    try:
        properties = {_text(row["content"]): (int(id), row) for id, row in described.items()}
        if ids_file.is_file():
            ids = {content: _whole(id) for content, id in read_json(ids_file).items()}
        else:
            ids_file, ids = config_file, {content: id for content, (id, _) in properties.items()}
        return ids_file, [(id, _token(content, properties.get(content, (id, {}))[1])) for content, id in ids.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its added tokens are not a table of tokens and ids ({error})") from error


def _token(content: str, row: dict[str, Any]) -> AddedToken:
    """Without a description: special if it looks like <|this|> or [THIS]."""
    marked = (content.startswith("<|") and content.endswith("|>")) or (content.startswith("[") and content.endswith("]"))
    flags = {name: bool(row.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(content, special=bool(row.get("special", marked)), **flags)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a token must be text, found {value!r:.100}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"an id must be a whole number, found {value!r:.100}")
    return value
