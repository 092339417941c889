"""Recipes: conditions, checks of settings, the shipped ones."""

import importlib

import pytest

from nextstep_jax.data.curation.recipe import Condition, override, read_recipe, with_endpoint
from nextstep_jax.errors import InputError
from nextstep_jax.launch.shipped import config_names

BASE = {"name": "mine", "signals": {"size": {}, "ocr": {"min_confidence": 0.7}}, "duplicates": {}, "transforms": {}}


def read(**changes):
    return read_recipe({**BASE, "cuts": {"all": ()}, **changes})


@pytest.mark.parametrize(
    "text, found, holds",
    [
        ("size.min_side >= 256", 256, True),
        ("size.min_side > 256", 256, False),
        ("size.min_side<=256", 256, True),
        ("size.min_side < 256", 256, False),
        ("size.min_side == 256", 256, True),
        ("size.min_side != 256", 256, False),
        ("size.min_side >= -1.5e2", -149.5, True),
        ("size.min_side == en", "en", True),
        ("size.min_side != 'en'", "en", False),
        ("size.min_side >= 256", None, None),
    ],
)
def test_conditions(text, found, holds):
    assert Condition.parse(text, "here").holds({"size": {"min_side": found}}) is holds


@pytest.mark.parametrize("text", ["", "size", "min_side >= 2", "size.min_side", "size.min_side => 2", "size.min_side >= big"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(InputError, match="^here must "):
        Condition.parse(text, "here")


@pytest.mark.parametrize(
    "text, values, message",
    [
        ("size.width >= 2", {"min_side": 3}, "size has min_side, and no width"),
        ("size.code >= 2", {"code": "en"}, "size.code is 'en'"),
        ("size.code == en", {"code": 3}, "size.code is 3"),
    ],
)
def test_a_condition_on_something_else_than_was_measured(text, values, message):
    with pytest.raises(InputError, match=message):
        Condition.parse(text, "here").holds({"size": values})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"signal": {}}, r"config.signal is not a setting; did you mean config.signals\?"),
        ({"signals": {"sizes": {}}}, r"config.signals.sizes.kind must be one of size, .*, found 'sizes'"),
        ({"signals": {"ocr": {"min_confidences": 1}}}, r"config.signals.ocr.min_confidences is not a setting; did you mean"),
        ({"signals": {"ocr": {"min_confidence": "high"}}}, "config.signals.ocr.min_confidence must be a finite number"),
        ({"signals": {"ocr": 3}}, "config.signals.ocr must be a group of settings"),
        ({"signals": {"a.b": {"kind": "size"}}}, "config.signals.a.b: a stage's name has letters"),
        ({"sample_kinds": ("pair", "video")}, "config.sample_kinds: 'video' is not one of text, pair, edit, interleaved, pref"),
        ({"cuts": {}}, "config.cuts names no dataset"),
        ({"cuts": {"scores": ()}}, "config.cuts.scores: a dataset's name"),
        ({"cuts": {"../up": ()}}, "config.cuts.../up: a dataset's name"),
        ({"cuts": {"all": ("nsfw.score < 1",)}}, "config.cuts.all: 'nsfw.score < 1': nsfw is not measured; .* has size, ocr"),
        ({"cuts": {"all": ("size.min_side",)}}, r"config.cuts.all\[0\] must be SIGNAL.VALUE"),
        ({"duplicates": {"perceptual_hash": {}}}, "config.duplicates.perceptual_hash: perceptual_hash is not measured"),
        ({"duplicates": {"size": {}}}, "config.duplicates.size: expected a signal of kind perceptual_hash or minhash"),
        ({"duplicates": {"size": {"keep": "best"}}}, "config.duplicates.size.keep must be SIGNAL.VALUE"),
        ({"duplicates": {"size": {"max_distance": 40}}}, "config.duplicates.size.max_distance must be at most 16"),
        ({"transforms": {"controls": {"kinds": ("edges",)}}}, "config.transforms.controls.kinds: 'edges' is not one of canny"),
        ({"transforms": {"controls": {"per_image": 9}}}, "config.transforms.controls.per_image must be from 1 to 7"),
        ({"transforms": {"degradations": {"kinds": ("dust",)}}}, "config.transforms.degradations.kinds: 'dust' is not one of"),
        ({"transforms": {"recaption": {"languages": ("de",)}}}, "languages must be some of en, zh, found de"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message) as error:
        read(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argument", [None, "laptop"])
@pytest.mark.parametrize("name", config_names(curation=True))
def test_the_shipped_recipes_are_read(name, argument):
    module = importlib.import_module(f"nextstep_jax.configs.{name}")
    recipe = read_recipe(module.get_config(argument).to_dict())
    assert recipe.cuts and f"--config {name}" in module.__doc__
    with pytest.raises(InputError, match="a config file's argument can be laptop.*, found 'lap'"):
        module.get_config("lap")


def test_pairs_are_measured_by_an_embedder_where_one_is_brought():
    module = importlib.import_module("nextstep_jax.configs.curate_pairs")
    recipe = read_recipe(module.get_config("embedder").to_dict())
    assert [type(recipe.signals[name]).__name__ for name in ("aesthetics", "alignment")] == ["Aesthetics", "Alignment"]
    assert "alignment.score >= 0.24" in map(str, recipe.cuts["anneal"])


def test_command_lines_change_settings():
    settings = {**BASE, "signals": {"ocr": {}, "ask": {"kind": "judgement", "question": "?", "endpoint": ""}}, "cuts": {}}
    override(settings, "signals.ocr.min_confidence", "0.25")
    override(settings, "cuts.mine", "('ocr.area <= 0.1',)")
    with_endpoint(settings, "openai:http://localhost/v1#m")
    recipe = read_recipe(settings)
    assert recipe.signals["ocr"].min_confidence == 0.25 and recipe.signals["ask"].endpoint.endswith("#m")
    assert [str(condition) for condition in recipe.cuts["mine"]] == ["ocr.area <= 0.1"]
    with pytest.raises(InputError, match="config.name.x: name is a setting without parts"):
        override(settings, "name.x", "1")
