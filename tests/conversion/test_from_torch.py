import dataclasses
import json
import math
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nextstep_jax import checkpoints
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig, preset
from nextstep_jax.conversion import convert, export, load_released, names, param_stream
from nextstep_jax.conversion import released as released_files
from nextstep_jax.errors import InputError
from nextstep_jax.models.nextstep import gen_pos_embed, init_params
from nextstep_jax.models.param_layouts import stack_layers, unstack_layers
from tests.conftest import GOLDENS
from tests.conversion import torch_writer
from tests.conversion.folders import to_diffusers, write_qwen2_tokenizer
from tests.released import get_leaf

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def flat(tree, prefix="") -> dict:
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return out


def assert_same_trees(found, expected) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.asarray(found[path]).dtype == leaf.dtype, path
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), err_msg=path)


# --- what converts ----------------------------------------------------------------------------------------------------


def test_a_released_folder(released, tmp_path, model_config, model_tensors, tokenizer_tensors):
    steps = []
    result = convert(released, tmp_path / "out", progress=lambda *step: steps.append(step))
    params = checkpoints.load_params(tmp_path / "out")
    for subtree, entries, tensors in (
        ("model", names.model_entries(NextStepConfig.from_released(model_config)), model_tensors),
        ("image_tokenizer", names.image_tokenizer_entries(load_released(released / "vae")[0]), tokenizer_tensors),
    ):
        found = flat(params[subtree])
        assert found.keys() == {entry.path for entry in entries}
        for entry in entries:
            np.testing.assert_array_equal(np.asarray(found[entry.path]), entry.load(tensors[entry.source]))
    config = checkpoints.load_config(tmp_path / "out")
    assert config["model"] == model_config
    assert config["image_tokenizer"] == json.loads((released / "vae/config.json").read_text())
    assert result.parameters == sum(leaf.size for leaf in flat(params).values())
    assert result.nbytes == 4 * result.parameters
    assert result.dropped == ("gen_pos_embed",)
    assert len(result.warnings) == 1 and "no text tokenizer" in result.warnings[0]
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] == sum(t.nbytes for t in flat(params).values())


def test_load_released_gives_what_convert_writes(released, tmp_path):
    convert(released, tmp_path / "out")
    config, model = load_released(released)
    tokenizer_config, tokenizer = load_released(released / "vae")
    assert isinstance(config, NextStepConfig) and isinstance(tokenizer_config, ImageTokenizerConfig)
    assert_same_trees(checkpoints.load_params(tmp_path / "out"), model | tokenizer)


def test_a_checkpoint_serves_the_unrolled_and_the_stacked_form(released, tmp_path):
    convert(released, tmp_path / "out")
    config = NextStepConfig.from_released(checkpoints.load_config(tmp_path / "out")["model"])
    params = checkpoints.load_params(tmp_path / "out", subtree="model")
    stacked = stack_layers(params, stack=np.stack)
    for form, tree in ((config, params), (config.with_transformer(scan_layers=True), stacked)):
        expected = jax.eval_shape(lambda form=form: init_params(form, jax.random.key(0)))
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, expected)
    assert_same_trees(unstack_layers(stacked), params)


def test_a_converted_checkpoint_restores_onto_a_mesh(released, tmp_path):
    convert(released, tmp_path / "out")
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    params = checkpoints.load_params(tmp_path / "out", subtree="model", shardings=sharding)
    assert {leaf.sharding for leaf in flat(params).values()} == {sharding}
    assert_same_trees(params, load_released(released)[1]["model"])


def test_shards_and_mixed_dtypes(released, tmp_path, model_tensors):
    """Each tensor keeps its dtype, whatever its neighbours have."""
    (released / "model.safetensors").unlink()
    tensors = {name: array for name, array in model_tensors.items() if name != "gen_pos_embed"}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(BFLOAT16)
    tensors["norm.weight"] = tensors["norm.weight"].astype(np.float16)
    weight_map = {name: f"model-0000{number % 3 + 1}-of-00003.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: array for name, array in tensors.items() if weight_map[name] == file}, released / file)
    (released / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    result = convert(released, tmp_path / "out")
    params = checkpoints.load_params(tmp_path / "out", subtree="model")
    assert params["lm_head"]["kernel"].dtype == jnp.bfloat16
    assert params["decoder"]["final_norm"]["scale"].dtype == jnp.float16
    assert params["embedding"]["embedding"].dtype == jnp.float32
    assert result.dropped == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_of_all_parameters(released, edit, tmp_path, dtype, model_tensors):
    def change(tensors):
        tensors["norm.weight"] = tensors["norm.weight"].astype(np.float64)
        tensors["layers.0.mlp.up_proj.weight"] = tensors["layers.0.mlp.up_proj.weight"].astype(BFLOAT16)

    edit(change)
    convert(released, tmp_path / "out", dtype=dtype)
    params = flat(checkpoints.load_params(tmp_path / "out"))
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(dtype)}
    expected = model_tensors["lm_head.weight"].T.astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(params["model/lm_head/kernel"]), expected)


def test_the_three_spellings_of_the_config(released, tmp_path, edit_config):
    ours = NextStepConfig.from_released(json.loads((released / "config.json").read_text()))
    legacy = {"latent_size": "image_size", "latent_patch_size": "patch_size", "latent_channels": "num_channels"}
    legacy |= {"fm_head_dim": "genloss_width", "fm_head_layers": "genloss_depth", "fm_head_batch_mul": "genloss_batch_mul"}
    values = json.loads((released / "config.json").read_text())
    spelled = {legacy.get(key, key): value for key, value in values.items()} | {"genloss_num_sampling_steps": "100"}
    (released / "config.json").write_text(json.dumps(spelled))
    convert(released, tmp_path / "out")
    stored = checkpoints.load_config(tmp_path / "out")["model"]
    assert stored == spelled
    assert NextStepConfig.from_released(stored).flow_head == ours.flow_head


@pytest.mark.parametrize("prefix", ["", "model."])
def test_torch_weights_with_and_without_prefix(released, tmp_path, prefix, model_tensors):
    (released / "model.safetensors").unlink()
    tensors = {(name if name == "lm_head.weight" else prefix + name): array for name, array in model_tensors.items()}
    torch_writer.save(released / "pytorch_model.bin", tensors)
    convert(released, tmp_path / "out")
    config, expected = load_released(GOLDENS / "tiny_model")
    assert_same_trees(checkpoints.load_params(tmp_path / "out", subtree="model"), expected["model"])


def test_the_image_tokenizer_alone_from_either_file(tmp_path):
    for file in ("checkpoint.pt", "checkpoint.safetensors"):
        folder = tmp_path / file
        folder.mkdir()
        for name in ("config.json", file):
            shutil.copy(GOLDENS / "tiny_vae" / name, folder)
        convert(folder, tmp_path / f"out_{file}")
        assert checkpoints.load_config(tmp_path / f"out_{file}")["model"] is None
    params = [checkpoints.load_params(tmp_path / f"out_checkpoint.{kind}") for kind in ("pt", "safetensors")]
    assert_same_trees(*params)


def test_an_image_tokenizer_elsewhere(released, tmp_path, edit_config):
    (released / "vae").rename(tmp_path / "elsewhere")
    result = convert(released, tmp_path / "without")
    assert any("no image tokenizer" in warning for warning in result.warnings)
    assert checkpoints.load_config(tmp_path / "without")["image_tokenizer"] is None
    convert(released, tmp_path / "given", vae=tmp_path / "elsewhere")
    assert "image_tokenizer" in checkpoints.abstract_params(tmp_path / "given")
    shutil.copytree(tmp_path / "elsewhere", released / "inner/tokenizer")
    edit_config(vae_name_or_path="inner/tokenizer")
    convert(released, tmp_path / "named")
    assert "image_tokenizer" in checkpoints.abstract_params(tmp_path / "named")


@pytest.mark.parametrize("place", ["../outside", "{tmp}/outside", ".", "inner/../../outside"])
def test_a_config_cannot_name_an_image_tokenizer_outside_its_folder(released, tmp_path, edit_config, place):
    (released / "vae").rename(tmp_path / "outside")
    edit_config(vae_name_or_path=place.format(tmp=tmp_path))
    result = convert(released, tmp_path / "out")
    assert any("no image tokenizer" in warning for warning in result.warnings)


def test_diffusers_names_and_config(released, tmp_path, tokenizer_tensors):
    for file in (released / "vae").iterdir():
        file.unlink()
    values = {"_class_name": "AutoencoderKL", "block_out_channels": [32] * 4, "layers_per_block": 1, "latent_channels": 16}
    values |= {"norm_num_groups": 32, "sample_size": 64, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    (released / "vae/config.json").write_text(json.dumps(values))
    save_file(to_diffusers(tokenizer_tensors, 4), released / "vae/diffusion_pytorch_model.safetensors")
    convert(released, tmp_path / "out")
    config, expected = load_released(GOLDENS / "tiny_vae")
    assert_same_trees(checkpoints.load_params(tmp_path / "out")["image_tokenizer"], expected["image_tokenizer"])
    assert load_released(released / "vae")[0] == config


def test_tied_embeddings(released, edit, edit_config, tmp_path):
    edit_config(tie_word_embeddings=True)
    edit(lambda tensors: tensors.update({"lm_head.weight": tensors["embed_tokens.weight"]}))
    result = convert(released, tmp_path / "out")
    assert "lm_head" not in checkpoints.abstract_params(tmp_path / "out", "model")
    assert set(result.dropped) == {"lm_head.weight", "gen_pos_embed"}
    edit(lambda tensors: tensors.pop("lm_head.weight"))
    assert set(convert(released, tmp_path / "again").dropped) == {"gen_pos_embed"}


def test_position_tables(released, edit, edit_config, tmp_path):
    """Any table is dropped where the config does not use it; where it does, it must be the formula's."""
    rounded = gen_pos_embed(32, 64)[None].astype(BFLOAT16)
    edit_config(use_gen_pos_embed=True)
    convert(released, tmp_path / "exact")
    edit(lambda tensors: tensors.update(gen_pos_embed=rounded))
    convert(released, tmp_path / "rounded")
    edit_config(use_gen_pos_embed=True, base_image_grid_size=8)
    edit(lambda tensors: tensors.update(gen_pos_embed=gen_pos_embed(8, 64)[None]))
    convert(released, tmp_path / "small")
    edit_config(use_gen_pos_embed=False)
    for number, shape in enumerate([(1, 3, 64), (0, 0), (1, 4, 63), ()]):
        edit(lambda tensors, shape=shape: tensors.update(gen_pos_embed=np.ones(shape, np.float32)))
        assert convert(released, tmp_path / f"unused_{number}").dropped == ("gen_pos_embed",)


# --- a language model as the start of training ------------------------------------------------------------------------


@pytest.fixture
def language_model(released, edit, edit_config, model_config) -> pathlib.Path:
    """A Qwen2.5 folder: the tiny model without its image parts, under `model.` names, in bfloat16."""

    def change(tensors):
        for name in list(tensors):
            array = tensors.pop(name).astype(BFLOAT16)
            if not name.startswith(("image_", "gen_pos")):
                tensors[name if name == "lm_head.weight" else f"model.{name}"] = array

    edit(change)
    kept = ("attention_dropout", "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "num_hidden_layers")
    kept += ("max_position_embeddings", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta")
    values = {key: model_config[key] for key in kept} | {"tie_word_embeddings": False, "use_sliding_window": False}
    values |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 512}
    values |= {"fm_head_dim": 48, "fm_head_layers": 4}  # the released head would be most of the work
    (released / "config.json").write_text(json.dumps(values))
    shutil.rmtree(released / "vae")
    return released


WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "module.model.",
    "_orig_mod.module.",
    "model.model.",
    "module._fsdp_wrapped_module.",
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_of_a_wrapped_module(released, edit, model_tensors, tmp_path, wrapper):
    plain = convert(released, tmp_path / "plain")

    def wrap(tensors):
        for name in list(tensors):
            inner = name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")
            tensors[wrapper + inner] = tensors.pop(name)

    edit(wrap)
    edit(lambda tensors: [tensors.update({wrapper + name: tensors.pop(name)}) for name in list(tensors)], "vae")
    result = convert(released, tmp_path / "out")
    assert result.parameters == plain.parameters
    for path, array in checkpoints.iterate_params(tmp_path / "out"):
        assert array.dtype == np.float32, path
    same = dict(checkpoints.iterate_params(tmp_path / "plain"))
    for path, array in checkpoints.iterate_params(tmp_path / "out"):
        np.testing.assert_array_equal(array, same[path], err_msg=path)


def test_weights_inside_of_another_network(released, edit, tmp_path):
    """One line instead of a list of every tensor."""
    edit(lambda tensors: [tensors.update({f"student.net.{name}": tensors.pop(name)}) for name in list(tensors)])
    with pytest.raises(InputError, match="names begin with 'student.net.'.*save the state dict of what it holds") as caught:
        convert(released, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 2


def test_a_language_model_gets_initialized_image_parts(language_model, tmp_path, monkeypatch):
    write_qwen2_tokenizer(language_model, eos_id=299)
    convert(language_model, tmp_path / "out", seed=3)
    values = checkpoints.load_config(tmp_path / "out")["model"]
    config = NextStepConfig.from_released(values)
    assert values["model_type"] == "nextstep" and values["use_sliding_window"] is False
    assert (config.eos_id, config.pad_id, config.begin_of_image_id, config.end_of_image_id) == (299, 300, 302, 303)
    assert config.flow_head.width == 48 and config.flow_head.layers == 4
    params = checkpoints.load_params(tmp_path / "out", subtree="model")
    assert flat(params).keys() == {entry.path for entry in names.model_entries(config)}
    assert {leaf.dtype for leaf in flat(params).values()} == {jnp.dtype("bfloat16")}
    source = load_file(language_model / "model.safetensors")
    np.testing.assert_array_equal(
        np.asarray(params["decoder"]["layers_2"]["mlp"]["down"]["kernel"]), source["model.layers.2.mlp.down_proj.weight"].T
    )
    head = params["flow_head"]
    assert not np.asarray(head["final"]["output"]["kernel"]).any()
    assert not np.asarray(head["blocks_3"]["modulation"]["kernel"]).any()
    assert (np.asarray(head["blocks_0"]["norm"]["scale"]) == 1).all()


def test_a_language_model_exports_as_a_released_model(language_model, tmp_path):
    """With the image tokenizer it is to be trained with; what is exported converts to the same checkpoint."""
    write_qwen2_tokenizer(language_model, eos_id=299)
    convert(language_model, tmp_path / "out", vae=GOLDENS / "tiny_vae")
    export(tmp_path / "out", tmp_path / "exported")
    convert(tmp_path / "exported", tmp_path / "again")
    assert_same_trees(*(checkpoints.load_params(tmp_path / name) for name in ("out", "again")))
    assert checkpoints.load_config(tmp_path / "again")["model"] == checkpoints.load_config(tmp_path / "out")["model"]


def test_initialized_parameters_follow_the_releases():
    """N(0, std) projectors and time embedding, Xavier-uniform linears; the same for the same seed, another for another."""
    for path, sizes, low, high, std in (
        ("image_in_projector/kernel", (300, 200), -1, 1, 0.05),
        ("flow_head/time_embed/in/kernel", (300, 256), -1, 1, 0.02),
        ("flow_head/blocks_1/mlp_in/kernel", (300, 200), -math.sqrt(6 / 500), math.sqrt(6 / 500), math.sqrt(2 / 500)),
        ("flow_head/condition/kernel", (300, 200), -math.sqrt(6 / 500), math.sqrt(6 / 500), math.sqrt(2 / 500)),
    ):
        entry = names.Entry("x", path, names.LINEAR, sizes)
        array = param_stream.init_parameter(entry, 0.05, seed=1)
        assert array.shape == sizes[::-1] and array.dtype == np.float32
        assert low <= array.min() and array.max() <= high
        assert abs(array.mean()) < 0.02 * std * 5 and abs(array.std() / std - 1) < 0.02
        np.testing.assert_array_equal(array, param_stream.init_parameter(entry, 0.05, seed=1))
        assert not np.array_equal(array, param_stream.init_parameter(entry, 0.05, seed=2))
    for path, value in (("flow_head/final/modulation/kernel", 0), ("flow_head/final/output/kernel", 0)):
        assert (param_stream.init_parameter(names.Entry("x", path, names.LINEAR, (3, 4)), 0.05, 1) == value).all()
    for path, value in (("flow_head/blocks_0/norm/scale", 1), ("image_in_projector/bias", 0)):
        assert (param_stream.init_parameter(names.Entry("x", path, names.VECTOR, (3,)), 0.05, 1) == value).all()


@pytest.mark.parametrize("scan", [False, True])
def test_training_and_conversion_initialize_alike(scan):
    """The image parts have one distribution, whether a conversion or a run initializes them."""
    config = preset("tiny").with_transformer(layers=1, scan_layers=scan)
    config = dataclasses.replace(config, flow_head=dataclasses.replace(config.flow_head, width=128, layers=2))
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    params = unstack_layers(params) if scan else params
    for entry in names.image_entries(config):
        found = np.asarray(get_leaf(params, entry.path), np.float64)
        expected = param_stream.init_parameter(entry, 0.02, seed=0).astype(np.float64)
        assert found.shape == expected.shape, entry.path
        np.testing.assert_allclose(found.std(), expected.std(), rtol=0.1, err_msg=entry.path)
        largest = [np.abs(values).max() for values in (found, expected)]
        np.testing.assert_allclose(*largest, rtol=0.3, err_msg=entry.path)
        if not found.std():
            assert np.array_equal(found, expected), entry.path


def test_a_head_too_large_to_draw(language_model, edit_config, tmp_path):
    write_qwen2_tokenizer(language_model, eos_id=299)
    edit_config(fm_head_dim=10**7)
    with pytest.raises(InputError, match="a flow head of this size"):
        convert(language_model, tmp_path / "out")


def test_a_language_model_without_tokenizer_needs_room_for_the_released_ids(language_model, tmp_path):
    with pytest.raises(InputError, match=r"config\.json.*must be in \[0, 512\)"):
        convert(language_model, tmp_path / "out")


def test_an_empty_folder_may_be_the_destination(released, tmp_path):
    (tmp_path / "out").mkdir()
    convert(released, tmp_path / "out")
    assert checkpoints.load_config(tmp_path / "out")["model"]


def test_memory_follows_the_largest_tensor(tmp_path):
    """Reading one leaf after another holds one of them, and a copy while it is checked and laid out."""
    values = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 2048}
    values |= {"num_hidden_layers": 12, "vocab_size": 8, "rms_norm_eps": 1e-6, "fm_head_dim": 8, "fm_head_layers": 1}
    values |= dict.fromkeys(("boi", "eoi", "image_placeholder_id", "pad_token_id_added", "eos_token_id", "bos_token_id"), 5)
    entries = names.model_entries(NextStepConfig.from_released(values))
    tensors = {entry.source: np.ones(entry.source_shape, np.float32) for entry in entries}
    total, largest = (f(array.nbytes for array in tensors.values()) for f in (sum, max))
    assert total > 20 * largest
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    part = released_files.read_model(tmp_path, values)
    tracemalloc.start()
    for _, read in param_stream.ParamStream([part], np.dtype("float16"), 0, param_stream.no_progress):
        assert np.ascontiguousarray(read()).dtype == np.float16
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * largest
