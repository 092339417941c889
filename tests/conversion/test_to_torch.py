import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nextstep_jax import checkpoints
from nextstep_jax.conversion import convert, export
from nextstep_jax.errors import DamagedDataError, InputError
from tests.conversion.folders import to_diffusers, write_tokenizer

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def load(*files: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors by name, read by the safetensors library."""
    return {name: array for file in files for name, array in load_file(file).items()}


def assert_same_bytes(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def round_trip(released: pathlib.Path, tmp_path: pathlib.Path, **options):
    convert(released, tmp_path / "checkpoint")
    return export(tmp_path / "checkpoint", tmp_path / "exported", **options)


def test_convert_then_export_gives_the_released_bytes(released, tmp_path, model_tensors, tokenizer_tensors, model_config):
    result = round_trip(released, tmp_path)
    out = tmp_path / "exported"
    assert_same_bytes(load(out / "model.safetensors"), model_tensors)
    assert_same_bytes(load(out / "vae/checkpoint.safetensors"), tokenizer_tensors)
    assert json.loads((out / "config.json").read_text()) == model_config
    assert (out / "vae/config.json").read_text().split() == (released / "vae/config.json").read_text().split()
    assert result.left_out == () and result.tensors == len(model_tensors) + len(tokenizer_tensors)
    assert result.nbytes == sum(array.nbytes for array in (*model_tensors.values(), *tokenizer_tensors.values()))
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "vae"]
    with safe_open(out / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_bits_and_mixed_dtypes_survive(released, tmp_path, edit):
    """Bits, not values: negative zeros, subnormals, and dtypes side by side, each aligned to itself."""
    odd = np.array([-0.0, 1e-45, -1e-45, 3.3e38] * 16, np.float32)

    def change(tensors):
        tensors["norm.weight"] = odd
        tensors["image_in_projector.bias"] = odd.astype(BFLOAT16)
        tensors["layers.0.mlp.up_proj.weight"] = tensors["layers.0.mlp.up_proj.weight"].astype(np.float16)

    edit(change)
    round_trip(released, tmp_path)
    assert_same_bytes(load(tmp_path / "exported/model.safetensors"), load(released / "model.safetensors"))
    header = json.loads((tmp_path / "exported/model.safetensors").read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    sizes = {"F32": 4, "BF16": 2, "F16": 2}
    rows = [row for name, row in header.items() if name != "__metadata__"]
    assert all(row["data_offsets"][0] % sizes[row["dtype"]] == 0 for row in rows)


def test_shards(released, tmp_path, model_tensors):
    round_trip(released, tmp_path, shard_bytes=200_000)
    out = tmp_path / "exported"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))] and len(files) > 3
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in model_tensors.values())
    for file in files:
        tensors = load(out / file)
        assert sum(array.nbytes for array in tensors.values()) <= 200_000 or len(tensors) == 1
        assert {name for name, where in index["weight_map"].items() if where == file} == tensors.keys()
    assert_same_bytes(load(*(out / file for file in files)), model_tensors)
    convert(out, tmp_path / "again")
    assert checkpoints.load_config(tmp_path / "again")["model"] == checkpoints.load_config(tmp_path / "checkpoint")["model"]


def test_a_tied_head_that_was_stored_is_stored_again(released, tmp_path, edit, edit_config):
    edit_config(tie_word_embeddings=True)
    edit(lambda tensors: tensors.update({"lm_head.weight": tensors["embed_tokens.weight"]}))
    round_trip(released, tmp_path)
    assert_same_bytes(load(tmp_path / "exported/model.safetensors"), load(released / "model.safetensors"))


def test_a_tied_head_follows_its_embedding_to_another_dtype(released, tmp_path, edit, edit_config):
    edit_config(tie_word_embeddings=True)
    edit(lambda tensors: tensors.update({"lm_head.weight": tensors["embed_tokens.weight"]}))
    convert(released, tmp_path / "checkpoint", dtype="bfloat16")
    export(tmp_path / "checkpoint", tmp_path / "exported")
    found = load(tmp_path / "exported/model.safetensors")
    assert found["lm_head.weight"].dtype == BFLOAT16 and found["gen_pos_embed"].dtype == np.float32
    assert found["lm_head.weight"].tobytes() == found["embed_tokens.weight"].tobytes()


def test_buffers_that_cannot_be_made_again_are_named(released, tmp_path, edit, model_tensors):
    def change(tensors):
        tensors["gen_pos_embed"] = tensors["gen_pos_embed"] + 1
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    edit(change)
    result = round_trip(released, tmp_path)
    assert set(result.left_out) == {"gen_pos_embed", "layers.0.self_attn.rotary_emb.inv_freq"}
    expected = {name: array for name, array in model_tensors.items() if name != "gen_pos_embed"}
    assert_same_bytes(load(tmp_path / "exported/model.safetensors"), expected)


def test_diffusers_names_come_back(released, tmp_path, tokenizer_tensors):
    """With the config and the file name that diffusers gives them, of the whole model and of the image tokenizer alone."""
    for file in (released / "vae").iterdir():
        file.unlink()
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [32] * 4, "layers_per_block": 1, "latent_channels": 16}
    config |= {"norm_num_groups": 32, "sample_size": 64, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    (released / "vae/config.json").write_text(json.dumps(config))
    spelled = to_diffusers(tokenizer_tensors, 4)
    save_file(spelled, released / "vae/diffusion_pytorch_model.safetensors")
    for name, source, folder in (("whole", released, "exported/vae"), ("alone", released / "vae", "exported")):
        round_trip(source, tmp_path / name)
        back = tmp_path / name / folder
        assert sorted(path.name for path in back.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
        assert_same_bytes(load(back / "diffusion_pytorch_model.safetensors"), spelled)
        assert json.loads((back / "config.json").read_text()) == config


def test_an_image_tokenizer_alone(released, tmp_path, tokenizer_tensors):
    round_trip(released / "vae", tmp_path)
    out = tmp_path / "exported"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.safetensors", "config.json"]
    assert_same_bytes(load(out / "checkpoint.safetensors"), tokenizer_tensors)


def test_a_checkpoint_that_was_never_released(released, tmp_path, model_tensors):
    """Trained checkpoints carry no provenance."""
    convert(released, tmp_path / "converted")
    config = checkpoints.load_config(tmp_path / "converted")
    params = checkpoints.load_params(tmp_path / "converted")
    checkpoints.save_params(tmp_path / "trained", params, {key: config[key] for key in ("model", "image_tokenizer")})
    assert export(tmp_path / "trained", tmp_path / "out").left_out == ()
    assert_same_bytes(
        load(tmp_path / "out/model.safetensors"), {k: v for k, v in model_tensors.items() if k != "gen_pos_embed"}
    )


def test_parameters_that_are_not_those_of_the_config(released, tmp_path):
    convert(released, tmp_path / "converted")
    config, params = checkpoints.load_config(tmp_path / "converted"), checkpoints.load_params(tmp_path / "converted")
    params["model"]["decoder"]["final_norm"] = {"scale": np.ones(3, np.float32), "bias": np.ones(3, np.float32)}
    del params["model"]["lm_head"]
    checkpoints.save_params(tmp_path / "odd", params, config)
    with pytest.raises(InputError) as caught:
        export(tmp_path / "odd", tmp_path / "out")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    wanted = ["decoder/final_norm/bias: unknown", "decoder/final_norm/scale: shape [3], expected [64]"]
    assert lines == [*wanted, "lm_head/kernel: missing"]
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(released, tmp_path):
    convert(released, tmp_path / "checkpoint")
    (tmp_path / "file").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    for src, dst, message in (
        (tmp_path / "nowhere", tmp_path / "out", "no such folder"),
        (released, tmp_path / "out", "no checkpoint"),
        (tmp_path / "checkpoint", tmp_path / "file", "already exists"),
        (tmp_path / "checkpoint", tmp_path / "checkpoint", "already exists"),
        (tmp_path / "checkpoint", tmp_path / "file/out", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            export(src, dst)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_damaged_checkpoint_is_not_exported(released, tmp_path):
    convert(released, tmp_path / "checkpoint")
    victim = max((tmp_path / "checkpoint/params").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DamagedDataError):
        export(tmp_path / "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_tokenizer_files_come_back(released, tmp_path):
    write_tokenizer(released)
    files = {"tokenizer_config.json": b'{"a": 1}', "special_tokens_map.json": b"{}\n"}
    for name, data in files.items():
        (released / name).write_bytes(data)
    round_trip(released, tmp_path)
    for name in (*files, "tokenizer.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (released / name).read_bytes()


def test_a_map_head_is_left_out(released, tmp_path, model_tensors, model_config):
    convert(released, tmp_path / "checkpoint")
    config = checkpoints.load_config(tmp_path / "checkpoint")
    params = checkpoints.load_params(tmp_path / "checkpoint")
    params["model"]["map_head"] = params["model"]["flow_head"]
    config["model"]["map_head"] = True
    checkpoints.save_params(tmp_path / "with", params, config)
    result = export(tmp_path / "with", tmp_path / "exported")
    assert result.left_out == ("map_head",)
    assert_same_bytes(load(tmp_path / "exported/model.safetensors"), model_tensors)
    assert json.loads((tmp_path / "exported/config.json").read_text()) == model_config
