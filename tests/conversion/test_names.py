import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.config import FlowHeadConfig, ImageTokenizerConfig, NextStepConfig, TransformerConfig, preset
from nextstep_jax.conversion import names
from nextstep_jax.models.image_tokenizer import ImageTokenizer
from nextstep_jax.models.nextstep import init_params


def flat_shapes(tree) -> dict[str, tuple[int, ...]]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in paths}


@st.composite
def model_configs(draw) -> NextStepConfig:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transformer = TransformerConfig(
        vocab_size=draw(st.integers(10, 20)),
        width=draw(st.integers(1, 9)),
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 3)),
        mlp_width=draw(st.integers(1, 9)),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )
    head = FlowHeadConfig(draw(st.integers(1, 7)), draw(st.integers(1, 3)), mlp_ratio=draw(st.sampled_from([1.0, 2.0, 4.0])))
    ids = dict.fromkeys(("eos_id", "pad_id", "begin_of_image_id", "end_of_image_id", "image_placeholder_id"), 5)
    return NextStepConfig(transformer, head, latent_channels=draw(st.integers(1, 4)), patch=draw(st.integers(1, 2)), **ids)


@st.composite
def tokenizer_configs(draw) -> ImageTokenizerConfig:
    groups = draw(st.integers(1, 3))
    return ImageTokenizerConfig(
        channels=groups * draw(st.integers(1, 2)),
        channel_multipliers=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))),
        blocks_per_level=draw(st.integers(1, 2)),
        latent_channels=draw(st.integers(1, 4)),
        stem_patch=draw(st.integers(1, 2)),
        norm_groups=groups,
    )


@settings(max_examples=8, deadline=None)
@given(model_configs())
def test_model_entries_are_the_parameters_of_the_model(config):
    entries = names.model_entries(config)
    expected = flat_shapes(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    assert {entry.path: entry.shape for entry in entries} == expected
    assert len({entry.source for entry in entries}) == len(entries)


@pytest.mark.parametrize(
    "config",
    [
        ImageTokenizerConfig(channels=4, norm_groups=2),
        ImageTokenizerConfig(channels=2, channel_multipliers=(3, 1), blocks_per_level=1, stem_patch=2, norm_groups=1),
        ImageTokenizerConfig(channels=2, channel_multipliers=(1,), latent_channels=3, norm_groups=2),
    ],
)
def test_image_tokenizer_entries_are_the_parameters_of_the_tokenizer(config):
    pixels = jax.ShapeDtypeStruct((1, config.downsample, config.downsample, 3), np.float32)
    variables = jax.eval_shape(ImageTokenizer(config).init, jax.random.key(0), pixels)
    for naming in names.NAMINGS:
        entries = names.image_tokenizer_entries(config, naming)
        assert {entry.path: entry.shape for entry in entries} == flat_shapes(variables["params"])
        assert len({entry.source for entry in entries}) == len(entries)


@settings(max_examples=25, deadline=None)
@given(st.one_of(model_configs().map(names.model_entries), tokenizer_configs().map(names.image_tokenizer_entries)), st.data())
def test_store_undoes_load(entries, data):
    entry = data.draw(st.sampled_from(entries))
    released = np.arange(math.prod(entry.source_shape), dtype=np.int32).reshape(entry.source_shape)
    loaded = entry.load(released)
    assert loaded.shape == entry.shape
    np.testing.assert_array_equal(names.contiguous(loaded), loaded)
    np.testing.assert_array_equal(entry.store(names.contiguous(loaded)), released)


def test_layouts_element_by_element(model_tensors, model_config):
    """torch keeps [out, in], heads before head dims, and convolutions [out, in, y, x]."""
    t = model_tensors
    entries = {entry.source: entry for entry in names.model_entries(NextStepConfig.from_released(model_config))}

    def loaded(name):
        return entries[name].load(t[name])

    layer = "layers.1.self_attn"
    assert loaded(f"{layer}.q_proj.weight")[5, 3, 7] == t[f"{layer}.q_proj.weight"][3 * 16 + 7, 5]
    assert loaded(f"{layer}.k_proj.weight")[5, 1, 7] == t[f"{layer}.k_proj.weight"][16 + 7, 5]
    assert loaded(f"{layer}.v_proj.bias")[1, 7] == t[f"{layer}.v_proj.bias"][16 + 7]
    assert loaded(f"{layer}.o_proj.weight")[3, 7, 5] == t[f"{layer}.o_proj.weight"][5, 3 * 16 + 7]
    assert loaded("layers.2.mlp.gate_proj.weight")[5, 100] == t["layers.2.mlp.gate_proj.weight"][100, 5]
    assert loaded("embed_tokens.weight")[500, 5] == t["embed_tokens.weight"][500, 5]
    block = "image_head.net.res_blocks.2.adaLN_modulation.1"
    assert loaded(f"{block}.weight")[5, 100] == t[f"{block}.weight"][100, 5]

    entries = {entry.source: entry for entry in names.image_tokenizer_entries(ImageTokenizerConfig())}
    kernel = np.random.default_rng(0).standard_normal((128, 3, 3, 3))
    assert entries["encoder.conv_in.weight"].load(kernel)[2, 1, 0, 77] == kernel[77, 0, 2, 1]
    query = np.random.default_rng(0).standard_normal((512, 512, 1, 1))
    assert entries["decoder.mid.attn_1.q.weight"].load(query)[3, 7] == query[7, 3, 0, 0]


def test_sizes_of_the_release():
    """691 tensors and 14,953,814,080 parameters; 83,819,683 in the image tokenizer."""
    entries = names.model_entries(preset("14b"))
    assert len(entries) == 691
    assert sum(math.prod(entry.shape) for entry in entries) == 14_953_814_080
    tokenizer = names.image_tokenizer_entries(ImageTokenizerConfig())
    assert sum(math.prod(entry.shape) for entry in tokenizer) == 83_819_683


@pytest.mark.parametrize(
    ("bfl", "diffusers"),
    [
        ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
        ("encoder.down.2.downsample.conv.bias", "encoder.down_blocks.2.downsamplers.0.conv.bias"),
        ("decoder.up.3.block.2.norm1.weight", "decoder.up_blocks.0.resnets.2.norm1.weight"),
        ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
        ("decoder.mid.attn_1.norm.bias", "decoder.mid_block.attentions.0.group_norm.bias"),
        ("encoder.mid.attn_1.proj_out.weight", "encoder.mid_block.attentions.0.to_out.0.weight"),
        ("encoder.norm_out.weight", "encoder.conv_norm_out.weight"),
    ],
)
def test_both_spellings_of_the_image_tokenizer(bfl, diffusers):
    paths = [{e.source: e.path for e in names.image_tokenizer_entries(ImageTokenizerConfig(), s)} for s in names.NAMINGS]
    assert paths[0][bfl] == paths[1][diffusers]
    assert sorted(paths[0].values()) == sorted(paths[1].values())


@pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("gen_pos_embed", True),
        ("rotary_emb.inv_freq", True),
        ("layers.11.self_attn.rotary_emb.inv_freq", True),
        ("layers.11.self_attn.q_proj.weight", False),
        ("gen_pos_embed.weight", False),
        ("some.rotary_emb.inv_freq", False),
    ],
)
def test_computed_buffers(name, computed):
    assert names.is_computed(name) is computed
