"""What released folders hold besides weights: text tokenizers, and the other naming of the image tokenizer."""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nextstep_jax.data.vocabulary import SPECIAL_TOKENS

EOS_ID = 499
TEXT = ["the quick brown fox jumps over the lazy dog", "it's 2024, isn't it?  We'll see\n\n", "naïve café 漢字 🙂", "1234*5678"]


def qwen2_tokenizer(entries: int) -> Tokenizer:
    """A Qwen2-shaped tokenizer trained on a few lines: `entries` of byte-level BPE, no special tokens yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    contractions, words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    marks, spaces = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex("|".join((contractions, words, marks, spaces))), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=entries, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def write_tokenizer(folder: pathlib.Path, separate: bool = False) -> Tokenizer:
    """A tokenizer with the tiny model's special ids, as tokenizer.json or as the three older files; returns it."""
    tokenizer = qwen2_tokenizer(300)
    vocab, merges = (json.loads(tokenizer.to_str())["model"][key] for key in ("vocab", "merges"))
    base = len(vocab)
    added = [f"<filler_{number}>" for number in range(EOS_ID - base)] + ["<|endoftext|>", *SPECIAL_TOKENS.values()]
    for content in added:
        special = not content.startswith("<filler")
        tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])
    if separate:
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges))
        ids = {content: base + number for number, content in enumerate(added)}
        (folder / "added_tokens.json").write_text(json.dumps(dict(reversed(ids.items()))))
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write_qwen2_tokenizer(folder: pathlib.Path, eos_id: int) -> None:
    """tokenizer.json as Qwen2.5 has it: <|endoftext|> at the end, nothing of NextStep."""
    tokenizer = qwen2_tokenizer(290)
    fillers = [f"<filler_{number}>" for number in range(eos_id - tokenizer.get_vocab_size())]
    tokenizer.add_tokens(fillers)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def to_diffusers(tensors: dict, levels: int) -> dict:
    """The image tokenizer under diffusers' names, by plain replacement."""
    out = {}
    for name, array in tensors.items():
        for old, new in (
            ("nin_shortcut", "conv_shortcut"),
            ("norm_out", "conv_norm_out"),
            (".down.", ".down_blocks."),
            (".block.", ".resnets."),
            ("downsample.", "downsamplers.0."),
            ("upsample.", "upsamplers.0."),
            ("mid.block_1", "mid_block.resnets.0"),
            ("mid.block_2", "mid_block.resnets.1"),
            ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
            ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
            *((f"mid.attn_1.{letter}.", f"mid_block.attentions.0.to_{letter}.") for letter in "qkv"),
            *((f".up.{level}.", f".up_blocks.{levels - 1 - level}.") for level in range(levels)),
        ):
            name = name.replace(old, new)
        out[name] = array.reshape(array.shape[:2]) if "attentions" in name and array.ndim == 4 else array
    return out
