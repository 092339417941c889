"""Configs of the same model as transformers 4 and 5, diffusers and people write them: read alike, or refused in one line."""

import pytest

from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.errors import InputError

LAYERS = 4
# What transformers 4.49 and 5.24 save for a Qwen2.5 model; keys without a meaning here included.
COMMON = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
VERSION_4 = COMMON | {
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "sliding_window": 131072,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.49.0",
}
VERSION_5 = COMMON | {
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * LAYERS,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "sliding_window": None,
    "transformers_version": "5.24.0",
}


def read(values: dict) -> NextStepConfig:
    return NextStepConfig.from_released({key: value for key, value in values.items() if value is not ...}, "c.json")


def test_both_versions_of_transformers():
    assert read(VERSION_4) == read(VERSION_5)
    assert read(VERSION_5).transformer.rope_theta == 500000.0


SAME = {
    "RoPE scaling of the default type, old key": {"rope_scaling": {"type": "default"}},
    "RoPE scaling of the default type, new key": {"rope_scaling": {"rope_type": "default"}},
    "RoPE scaling by one": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "RoPE under both keys": {"rope_parameters": {"rope_theta": 500000, "rope_type": "default", "type": "default"}},
    "theta beside the scaling alone": {"rope_theta": ..., "rope_scaling": {"rope_theta": 500000.0, "rope_type": "default"}},
    "theta as a whole number": {"rope_theta": 500000},
    "RoPE by kind of layer": {
        "rope_theta": ...,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}},
    },
    "all of a head rotated": {"partial_rotary_factor": 1.0},
    "an empty table": {"rope_parameters": {}},
    "a window that is not used": {"sliding_window": 4096, "use_sliding_window": False},
    "a window from the last layer on": {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": LAYERS},
    "a window as long as the context": {"sliding_window": 32768, "use_sliding_window": True, "max_window_layers": 0},
    "a window of nothing": {"sliding_window": None, "use_sliding_window": True},
    "layers that all see everything": {"layer_types": ["full_attention"] * LAYERS, "use_sliding_window": True},
    "another name of SiLU": {"hidden_act": "swish"},
    "a null for what is absent": {"mlp_bias": None, "head_dim": None, "attention_bias": None, "quantization_config": None},
}


@pytest.mark.parametrize("case", SAME)
def test_equivalent_values(case):
    assert read(VERSION_4 | SAME[case]) == read(VERSION_4)


REFUSED = {
    "scaled RoPE, old": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, r"rope_scaling\.type = 'yarn'.*expected default"),
    "scaled RoPE, new": ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r"rope_parameters\.rope_type = 'llama3'"),
    "linear scaling": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear' is not supported"),
    "another theta": ({"rope_parameters": {"rope_theta": 1e4}}, "contradictory values: rope_theta = 500000.0, rope_parameters"),
    "two kinds of RoPE": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
        "different rope_theta",
    ),
    "scaled RoPE by kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
        r"rope_parameters\.full_attention\.rope_type = 'yarn'",
    ),
    "half of a head rotated": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    "half of a head rotated, plain key": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    "a table that is text": ({"rope_scaling": "default"}, "rope_scaling must be an object or null, found 'default'"),
    "sliding layers": ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types has 'sliding_attention'"),
    "too few layer types": ({"layer_types": ["full_attention"]}, "layer_types describes 1 layers, but num_hidden_layers = 4"),
    "layer types as text": ({"layer_types": "full_attention"}, "layer_types has 'full_attention'"),
    "a window": ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2}, "sliding_window = 4096"),
    "a window by family": (
        {"model_type": "mistral", "use_sliding_window": ..., "sliding_window": 4096},
        "sliding_window = 4096",
    ),
    "a switch that is text": ({"use_sliding_window": "no"}, "use_sliding_window must be of type bool"),
    "another family": ({"model_type": "smollm3"}, "model_type = 'smollm3' is not supported .*qwen2"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_equivalent_is_refused_in_one_line(case):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        read(VERSION_4 | changes)
    assert str(caught.value).startswith("c.json: ") and "\n" not in str(caught.value)


def test_what_a_family_takes_for_granted():
    llama = {"model_type": "llama", "num_key_value_heads": ..., "use_sliding_window": ..., "sliding_window": ...}
    bare, biased = read(VERSION_4 | llama).transformer, read(VERSION_4 | llama | {"attention_bias": True}).transformer
    assert (bare.qkv_bias, bare.o_bias, bare.kv_heads) == (False, False, 4)
    assert (biased.qkv_bias, biased.o_bias) == (True, True)
    assert read(VERSION_4).transformer.qkv_bias and not read(VERSION_4).transformer.o_bias
    assert not read(VERSION_4 | {"model_type": "mistral", "sliding_window": None}).transformer.qkv_bias


# As diffusers 0.35 saves an AutoencoderKL of the Flux shape.
AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.35.0",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def test_a_config_of_diffusers():
    config = ImageTokenizerConfig.from_released(AUTOENCODER)
    assert config == ImageTokenizerConfig(channels=32, channel_multipliers=(1, 2), scaling=0.3611, shift=0.1159)
    without = {key: value for key, value in AUTOENCODER.items() if key not in ("scaling_factor", "shift_factor")}
    for values in (AUTOENCODER | {"shift_factor": None}, without):
        assert ImageTokenizerConfig.from_released(values).shift == 0
    assert ImageTokenizerConfig.from_released(without).scaling == 0.18215


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.0] * 16}, "latents_mean"),
        ({"use_quant_conv": True}, "use_quant_conv = True"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "expected DownEncoderBlock2D"),
        ({"out_channels": 4}, "out_channels = 4"),
    ],
)
def test_what_diffusers_has_and_the_releases_have_not(changes, message):
    with pytest.raises(InputError, match=message):
        ImageTokenizerConfig.from_released(AUTOENCODER | changes)
