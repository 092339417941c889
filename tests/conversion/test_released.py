"""What a conversion refuses: every kind of misfit, named, with nothing left at the destination."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion import convert
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def left_behind(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "released")


def with_nan(array: np.ndarray, value=np.nan) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = value
    return array


def test_one_error_lists_every_misfit(released, edit, tmp_path):
    def change(tensors):
        tensors.pop("layers.1.mlp.up_proj.weight")
        tensors["norm.weight"] = tensors["norm.weight"][:-1]
        tensors["layers.9.mlp.up_proj.weight"] = np.ones((2, 3), np.float32)
        tensors["model.layers.0.input_layernorm.weight"] = tensors["layers.0.input_layernorm.weight"]
        tensors["lm_head.weight"] = with_nan(tensors["lm_head.weight"])
        tensors["image_in_projector.bias"] = with_nan(tensors["image_in_projector.bias"], -np.inf)
        tensors["image_out_projector.bias"] = np.zeros(64, np.int64)

    def change_tokenizer(tensors):
        tensors["encoder.quant.weight"] = np.ones(3, np.float32)
        tensors["decoder.conv_in.bias"] = with_nan(tensors["decoder.conv_in.bias"].astype(BFLOAT16), np.inf)

    edit(change)
    edit(change_tokenizer, "vae")
    with pytest.raises(InputError) as caught:
        convert(released, tmp_path / "out")
    headline, *lines = str(caught.value).splitlines()
    assert str(released) in headline and "9 tensors" in headline
    assert [line.strip() for line in lines] == [
        "image tokenizer: decoder.conv_in.bias: has NaN or infinities",
        "image tokenizer: encoder.quant.weight: unknown (in checkpoint.safetensors, shape [3])",
        "image_in_projector.bias: has NaN or infinities",
        "image_out_projector.bias: dtype int64, expected a float type",
        "layers.0.input_layernorm.weight: there 2 times (layers.0.input_layernorm.weight in model.safetensors, "
        "model.layers.0.input_layernorm.weight in model.safetensors)",
        "layers.1.mlp.up_proj.weight: missing (shape [160, 64])",
        "layers.9.mlp.up_proj.weight: unknown (in model.safetensors, shape [2, 3])",
        "lm_head.weight: has NaN or infinities",
        "norm.weight: shape [63], expected [64]",
    ]
    assert caught.value.exit_code == 2
    assert left_behind(tmp_path) == []


MISFITS = {
    "missing": (lambda t: t.pop("image_out_projector.bias"), {}, "image_out_projector.bias: missing"),
    "unknown": (lambda t: t.update(extra=np.ones(2, np.float32)), {}, "extra: unknown"),
    "transposed": (
        lambda t: t.update({"layers.0.mlp.down_proj.weight": np.ones((160, 64), np.float32)}),
        {},
        r"layers.0.mlp.down_proj.weight: shape \[160, 64\], expected \[64, 160\]",
    ),
    "quantized": (
        lambda t: t.update({"lm_head.weight": np.ones((512, 64), np.int8)}),
        {},
        "lm_head.weight: dtype int8, expected a float type",
    ),
    "double": (
        lambda t: t.update({"norm.weight": t["norm.weight"].astype(np.float64)}),
        {},
        "norm.weight: float64 cannot be kept",
    ),
    "not a number": (
        lambda t: t.update({"embed_tokens.weight": with_nan(t["embed_tokens.weight"])}),
        {},
        "embed_tokens.weight: has NaN or infinities",
    ),
    "infinite in half precision": (
        lambda t: t.update({"norm.weight": with_nan(t["norm.weight"], np.inf).astype(np.float16)}),
        {},
        "norm.weight: has NaN or infinities",
    ),
    "a bias the config denies": (lambda t: None, {"attention_bias": False}, "self_attn.q_proj.bias: unknown"),
    "a bias the config wants": (lambda t: None, {"o_attention_bias": True}, "self_attn.o_proj.bias: missing"),
    "another vocabulary": (lambda t: None, {"vocab_size": 600}, r"expected \[600, 64\]"),
    "fewer layers": (lambda t: None, {"num_hidden_layers": 2}, "layers.2.mlp.gate_proj.weight: unknown"),
    "more layers": (lambda t: None, {"num_hidden_layers": 4}, "layers.3.mlp.gate_proj.weight: missing"),
    "absurdly many layers": (lambda t: None, {"num_hidden_layers": 10**12}, "describes 1000000000003 layers"),
    "another head": (lambda t: None, {"fm_head_dim": 32}, "image_head.net.input_proj.weight: shape"),
    "an untied head that should be tied": (lambda t: None, {"tie_word_embeddings": True}, "lm_head.weight: differs from"),
    "a position table of its own": (
        lambda t: t.update(gen_pos_embed=t["gen_pos_embed"] + 0.01),
        {"use_gen_pos_embed": True},
        "gen_pos_embed: is not the fixed sine table",
    ),
    "a position table of another grid": (
        lambda t: None,
        {"use_gen_pos_embed": True, "base_image_grid_size": 64},
        r"gen_pos_embed: float32 of shape \[1, 1024, 64\], expected a float table of shape \[1, 4096, 64\]",
    ),
    "a position table of no grid": (
        lambda t: t.update(gen_pos_embed=np.ones((1, 1000, 64), np.float32)),
        {"use_gen_pos_embed": True},
        r"gen_pos_embed: float32 of shape \[1, 1000, 64\]",
    ),
    "a position table of whole numbers": (
        lambda t: t.update(gen_pos_embed=np.ones((1, 1024, 64), np.int8)),
        {"use_gen_pos_embed": True},
        "gen_pos_embed: int8 of shape",
    ),
    "two position tables": (
        lambda t: t.update({"model.gen_pos_embed": t["gen_pos_embed"]}),
        {},
        r"gen_pos_embed: there 2 times \(gen_pos_embed in model.safetensors, model.gen_pos_embed",
    ),
    "a layer before the head": (lambda t: None, {"use_mlp_before_lm_head": True}, "use_mlp_before_lm_head"),
    "another activation": (lambda t: None, {"hidden_act": "gelu"}, "hidden_act"),
    "text where a number belongs": (lambda t: None, {"hidden_size": "64"}, "hidden_size must be of type int"),
    "no heads": (lambda t: None, {"num_attention_heads": 0}, r"config\.json"),
    "ids outside the vocabulary": (lambda t: None, {"boi": 512}, r"begin_of_image_id must be in \[0, 512\)"),
    "other latent channels": (lambda t: None, {"latent_channels": 8}, "16 latent channels, the model 8"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits(released, edit, edit_config, tmp_path, case):
    change, values, message = MISFITS[case]
    edit(change)
    edit_config(**values)
    with pytest.raises(InputError, match=message) as caught:
        convert(released, tmp_path / "out")
    assert str(released) in str(caught.value)
    assert left_behind(tmp_path) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
BOTH_CONFIGS = [
    (NextStepConfig, json.loads((GOLDENS / "tiny_model/config.json").read_text())),
    (ImageTokenizerConfig, json.loads((GOLDENS / "tiny_vae/config.json").read_text()) | {"stem_patch": 1, "norm_groups": 32}),
    (ImageTokenizerConfig, {"block_out_channels": [32, 64], "layers_per_block": 2, "norm_num_groups": 32}),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BOTH_CONFIGS), st.data())
def test_random_config_values(config, data):
    """Any JSON value for any key is understood or refused in one line."""
    kind, values = config
    key = data.draw(st.sampled_from(sorted(values)))
    try:
        kind.from_released(values | {key: data.draw(JSON)}, "here/config.json")
    except InputError as error:
        assert str(error).startswith("here/config.json: ") and "\n" not in str(error)


def test_values_that_leave_the_wanted_dtype(released, edit, tmp_path):
    edit(lambda t: t.update({"norm.weight": np.full(64, 1e300)}))
    with pytest.raises(InputError, match=r"norm\.weight: has NaN or infinities"):
        convert(released, tmp_path / "out", dtype="float32")
    assert left_behind(tmp_path) == []


def remove(*files):
    return lambda folder: [(folder / file).unlink() for file in files]


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


SOURCES = {
    "no config": (remove("config.json"), r"config\.json: cannot be read"),
    "empty config": (write("config.json", b""), r"config\.json: the file is empty"),
    "half a config": (write("config.json", b'{"hidden_size": 64,'), r"config\.json: not a JSON object"),
    "a list as config": (write("config.json", b"[1]"), r"config\.json: not a JSON object"),
    "a config of something else": (write("config.json", b'{"a": 1}'), r"config\.json: not a NextStep or Qwen2\.5 config"),
    "a config with a hole": (
        write(
            "config.json", b'{"hidden_size": null, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}'
        ),
        r"config\.json: not a NextStep or Qwen2\.5 config: it has no hidden_size",
    ),
    "no weights": (remove("model.safetensors"), "no weights found"),
    "empty weights": (write("model.safetensors", b""), "truncated"),
    "weights that are a page": (write("model.safetensors", b"<!DOCTYPE html>" * 10), "not a safetensors file"),
    "a pointer instead of weights": (write("model.safetensors", b"version https://git-lfs"), "not a safetensors file"),
    "empty image tokenizer": (write("vae/checkpoint.safetensors", b""), "truncated"),
    "no image tokenizer config": (write("vae/config.json", b"{}"), "not an image tokenizer's config"),
    "empty text tokenizer": (write("tokenizer.json", b""), r"tokenizer\.json: the file is empty"),
    "a text tokenizer of something else": (write("tokenizer.json", b"{}"), r"tokenizer\.json: not a tokenizer\.json"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_unreadable_sources(released, tmp_path, case):
    break_it, message = SOURCES[case]
    break_it(released)
    with pytest.raises(InputError, match=message) as caught:
        convert(released, tmp_path / "out")
    assert "\n" not in str(caught.value) and str(released) in str(caught.value)
    assert left_behind(tmp_path) == []


def test_wrong_arguments(released, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for arguments, options, message in (
        ((tmp_path / "nowhere", tmp_path / "out"), {}, "nowhere: no such folder"),
        ((released / "config.json", tmp_path / "out"), {}, "no such folder"),
        ((released, tmp_path / "taken"), {}, "already exists"),
        ((released, tmp_path / "file"), {}, "already exists"),
        ((released, tmp_path / "file/out"), {}, "cannot be written"),
        ((released, tmp_path / "out"), {"vae": tmp_path / "nowhere"}, "no such folder"),
        ((released, tmp_path / "out"), {"vae": released}, "not an image tokenizer's config"),
        ((released, tmp_path / "out"), {"text_tokenizer": released}, "no text tokenizer; expected tokenizer.json"),
        ((released, tmp_path / "out"), {"dtype": "float8"}, "dtype must be one of keep, float32, bfloat16"),
        ((released / "vae", tmp_path / "out"), {"vae": released / "vae"}, "takes no other"),
    ):
        with pytest.raises(InputError, match=message):
            convert(*arguments, **options)
    assert left_behind(tmp_path) == ["file", "taken"]
