import json

import pytest
from tokenizers import Tokenizer

from nextstep_jax import checkpoints
from nextstep_jax.conversion import convert, text_tokenizer
from nextstep_jax.data.vocabulary import Vocabulary
from nextstep_jax.errors import InputError
from tests.conversion.folders import TEXT, write_tokenizer

SAMPLES = [*TEXT, "", " ", "\r\n \t x", "e\u0301 vs \u00e9", "a<|image_area|>32*32<|begin_of_image|>", "x  \n  y", "DON'T"]


@pytest.mark.parametrize("separate", [False, True])
def test_a_released_text_tokenizer(released, tmp_path, separate):
    original = write_tokenizer(released, separate)
    result = convert(released, tmp_path / "out")
    assert result.warnings == ()
    content = checkpoints.load_file(tmp_path / "out", "tokenizer.json")
    rebuilt = Tokenizer.from_str(content.decode())
    for sample in SAMPLES:
        assert rebuilt.encode(sample).ids == original.encode(sample).ids, sample
        assert rebuilt.decode(original.encode(sample).ids) == original.decode(original.encode(sample).ids)
    vocabulary = Vocabulary.from_bytes(content)
    assert vocabulary.area_ids(4, 16)[0] == 501
    if separate:
        for name in ("vocab.json", "merges.txt", "added_tokens.json"):
            assert checkpoints.load_file(tmp_path / "out", name) == (released / name).read_bytes()
    else:
        assert content == (released / "tokenizer.json").read_bytes()


def test_a_text_tokenizer_elsewhere(released, tmp_path):
    (tmp_path / "text").mkdir()
    write_tokenizer(tmp_path / "text")
    convert(released, tmp_path / "out", text_tokenizer=tmp_path / "text")
    assert checkpoints.load_file(tmp_path / "out", "tokenizer.json") == (tmp_path / "text/tokenizer.json").read_bytes()


def test_added_tokens_described_by_tokenizer_config(tmp_path):
    """Older Qwen2.5 folders name their added tokens in tokenizer_config.json alone."""
    write_tokenizer(tmp_path, separate=True)
    ids = json.loads((tmp_path / "added_tokens.json").read_text())
    (tmp_path / "added_tokens.json").unlink()
    rows = {str(id): {"content": content, "special": content == "[PAD]", "normalized": False} for content, id in ids.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": rows}))
    tokenizer = Tokenizer.from_str(text_tokenizer.read(tmp_path)["tokenizer.json"].decode())
    assert {content: tokenizer.token_to_id(content) for content in ids} == ids
    special = {row["content"] for row in json.loads(tokenizer.to_str())["added_tokens"] if row["special"]}
    assert special == {"[PAD]"}


@pytest.mark.parametrize(
    "change", ["CR LF", "no version", "byte order mark", "no last line end", "CR LF and a byte order mark"]
)
def test_line_ends_and_the_version_line(tmp_path, change):
    """Files checked out on Windows, or written by other programs, give the same tokenizer."""
    original = write_tokenizer(tmp_path, separate=True)
    for file in ("merges.txt", "vocab.json", "added_tokens.json"):
        data = (tmp_path / file).read_bytes()
        if "CR LF" in change:
            data = (json.dumps(json.loads(data), indent=1).encode() if file != "merges.txt" else data).replace(b"\n", b"\r\n")
        if change == "no version" and file == "merges.txt":
            data = data.split(b"\n", 1)[1]
        if change == "no last line end":
            data = data.rstrip(b"\n")
        if "byte order mark" in change:
            data = b"\xef\xbb\xbf" + data
        (tmp_path / file).write_bytes(data)
    rebuilt = Tokenizer.from_str(text_tokenizer.read(tmp_path)["tokenizer.json"].decode())
    for sample in SAMPLES:
        assert rebuilt.encode(sample).ids == original.encode(sample).ids, sample


def edit_json(name, change):
    def apply(folder):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


PROBLEMS = {
    "no merges": (lambda f: (f / "merges.txt").unlink(), r"merges\.txt is missing"),
    "empty merges": (lambda f: (f / "merges.txt").write_bytes(b""), r"merges\.txt: the file is empty"),
    "merges of something else": (lambda f: (f / "merges.txt").write_text("a b c\n"), "not a byte-level BPE"),
    "merges that are not text": (lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe\n"), "not a byte-level BPE"),
    "merges of unknown pieces": (lambda f: (f / "merges.txt").write_text("\u4e00 \u4e01\n"), "not a byte-level BPE"),
    "empty vocabulary": (lambda f: (f / "vocab.json").write_bytes(b""), r"vocab\.json: the file is empty"),
    "half a vocabulary": (lambda f: (f / "vocab.json").write_bytes(b'{"a": 1'), r"vocab\.json: not a JSON object"),
    "ids that are text": (lambda f: (f / "vocab.json").write_text('{"a": "b"}'), "not a byte-level BPE"),
    "negative ids": (lambda f: (f / "vocab.json").write_text('{"a": -1}'), "not a byte-level BPE"),
    "no special tokens": (lambda f: (f / "added_tokens.json").unlink(), r"it has no <\|endoftext\|>"),
    "one special token missing": (
        edit_json("added_tokens.json", lambda ids: ids.pop("<|end_of_image|>") and ids.update(other=503)),
        r"it has no <\|end_of_image\|>",
    ),
    "a gap between ids": (edit_json("added_tokens.json", lambda ids: ids.pop("<filler_3>")), "is given the id"),
    "swapped ids": (
        edit_json("added_tokens.json", lambda ids: ids.update({"<|begin_of_image|>": 503, "<|end_of_image|>": 502})),
        "begin_of_image is 503, the model's config says 502",
    ),
    "more ids than embeddings": (
        edit_json("added_tokens.json", lambda ids: ids.update({f"more_{n}": 509 + n for n in range(4)})),
        "513 ids, but the model has 512 embeddings",
    ),
    "an id that is no number": (edit_json("added_tokens.json", lambda ids: ids.update(x="y")), "not a table"),
    "added tokens that are a list": (lambda f: (f / "added_tokens.json").write_text("[]"), "not a JSON object"),
    "descriptions of nothing": (
        lambda f: (f / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": {}}}'),
        "not a table",
    ),
    "a description that is a list": (
        lambda f: (f / "tokenizer_config.json").write_text('{"added_tokens_decoder": []}'),
        "not a table",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems(released, tmp_path, case):
    break_it, message = PROBLEMS[case]
    write_tokenizer(released, separate=True)
    break_it(released)
    with pytest.raises(InputError, match=message) as caught:
        convert(released, tmp_path / "out")
    assert "\n" not in str(caught.value) and str(released) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["released"]
