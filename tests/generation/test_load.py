"""Checkpoints of which a part is missing, and what `info` says of the others."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from nextstep_jax import checkpoints
from nextstep_jax.errors import InputError, UnfamiliarWarning
from nextstep_jax.generation.load import builtin_checkpoint, describe, require_usable
from nextstep_jax.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, tiny_config, tiny_params, tiny_vocabulary):
    """A folder without an image tokenizer, as converting a language model makes it."""
    folder = tmp_path_factory.mktemp("language") / "model"
    config = {"model": tiny_config.to_released(), "image_tokenizer": None}
    checkpoints.save_params(folder, {"model": tiny_params}, config, {"tokenizer.json": tiny_vocabulary.to_bytes()})
    return folder


def test_a_language_model_writes_text_and_says_what_images_need(language_model, tiny_pipeline):
    pipeline = Pipeline.from_checkpoint(language_model)
    assert pipeline.generate_text("a red", max_tokens=4) == tiny_pipeline.generate_text("a red", max_tokens=4)
    for call in (
        lambda: pipeline.generate("a red circle"),
        lambda: pipeline.edit("none.png", "a red circle"),
        lambda: pipeline.generate_text("", ["none.png"]),
    ):
        with pytest.raises(InputError, match="has no image tokenizer .*nextstep-jax convert --vae"):
            call()


def test_settings_are_refused_from_the_config_alone(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_params", None)
    require_usable(tiny_checkpoint, False, {"steps": 2}, 64, 64)
    for changes, size, message in (
        ({"final_steps": 4}, {}, "final_steps must be at most steps"),
        ({"guidance_start": 1.5}, {}, "guidance_start must be a number of at least 0 and at most 1"),
        (
            {"guidance_start": 0.1, "guidance_end": 0.3},
            {},
            r"none of the times of sampler 'ode' with 3 steps lies .* 0.1 up to",
        ),
        ({"sampler": "map", "guidance_end": 0.7}, {}, "'map' was distilled with guidance at all times"),
        ({"image_cfg": 2.0}, {}, "needs an input image"),
        ({}, {"height": 20}, "multiple of 16"),
        ({}, {"aspect": "square"}, "aspect must be"),
    ):
        with pytest.raises(InputError, match=message):
            require_usable(tiny_checkpoint, False, changes, **size)


def test_info_says_what_the_model_knows(language_model, tiny_checkpoint):
    knows = describe(builtin_checkpoint())["knows"]
    assert (
        knows["sizes"].startswith("64x64, 80x48, ")
        and " triangle " in knows["language"]
        and "letter by letter" in knows["language"]
    )
    assert describe(language_model)["knows"]["sizes"] == "not recorded"
    assert "##" not in json.dumps(knows)


def test_unfamiliar_words_and_sizes_are_warned_of(tiny_pipeline, recwarn):
    import dataclasses

    known = dataclasses.replace(tiny_pipeline, overrides={**tiny_pipeline.overrides, "trained_sizes": [[32, 64], [64, 64]]})
    known.generate("a red circle")
    assert not [w for w in recwarn if issubclass(w.category, UnfamiliarWarning)]
    with pytest.warns(UnfamiliarWarning, match="not trained with 'cat', 'Dog';") as caught:
        known.generate(["a red cat", "a Dog of cat"], height=32, width=64)
    assert [w.filename for w in caught] == [__file__]
    with pytest.warns(UnfamiliarWarning, match="not trained to draw images of 32x64 pixels, only of 64x32, 64x64"):
        known.generate("a red circle", height=64, width=32)
    with pytest.warns(UnfamiliarWarning, match="'cat'"):
        known.edit(known.generate("a red circle")[0].pixels, "<image> a cat")


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_int8_takes_no_more_memory_than_its_result_and_the_largest_leaf(tmp_path, stored):
    """Kernels are rounded as they are read: what was stored is never there as a whole."""
    program = pathlib.Path(__file__).parent / "programs/load_memory.py"
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, program, tmp_path, stored, "int8"]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)
    read_ahead = used["largest"] / 4
    assert used["peak"] < used["kept"] + used["largest"] + read_ahead, used
