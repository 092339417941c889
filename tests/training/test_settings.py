"""Settings: every one's form is checked, with one line that names it; command lines, files and defaults agree."""

import dataclasses
import importlib
import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep_jax.errors import InputError
from nextstep_jax.schema import field_types, flatten, parse, plain, read
from nextstep_jax.training.config import RENAMED, RUNS, base_config, override, resolve, source


def laptop():
    return importlib.import_module("configs.nextstep_14b_sft").get_config("laptop")


def changed(path, text):
    """The resolved settings with one changed on the command line."""
    config = laptop()
    override(config, path, text)
    return resolve(config)


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("steps", "1e2", 100),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.lr_multipliers", "(('embedding', 0.1),)", (("embedding", 0.1),)),
        ("data.grids", "((4, 4), (2, 8))", ((4, 4), (2, 8))),
        ("data.grids", "()", ()),
        ("data.sources.mine.path", "tars/*.tar", "tars/*.tar"),
        ("data.sources.pairs.thinking", "true", True),
        ("data.sources.pairs.augmentation.caption_variants.short", "0.5", 0.5),
        ("model.image_loss_weight", "2", 2.0),
        ("samples.generation.edit.cfg", "2.5", 2.5),
        ("name", "7", "7"),
        ("wandb.mode", "online", "online"),
        ("seed", str(2**63 - 1), 2**63 - 1),
    ],
)
def test_what_a_command_line_can_say(path, text, found):
    value = changed(path, text)
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    assert value == found and type(value) is type(found)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("optimizer.eeps", "1", "config.optimizer.eeps is not a setting; did you mean config.optimizer.eps?"),
        ("optimiser.learning_rate", "1", "config.optimiser is not a setting; did you mean config.optimizer?"),
        ("zzz", "1", "config.zzz is not a setting; config has objective, name, seed"),
        ("steps.x", "1", "config.steps is a setting without parts"),
        ("optimizer", "1", "config.optimizer is a group of settings"),
        ("data.sources.mine", "x", "config.data.sources.mine is a group of settings"),
        ("data.sources.pair.weight", "1", "config.data.sources.pair.path is missing"),
        ("data.sources.pairs.weight", "-1", "config.data.sources.pairs.weight must be at least 0, found -1"),
        ("data.sources.pairs.kind", "edits", "config.data.sources.pairs.kind must be one of"),
        ("data.sources.pairs.augmentation.image_first", "2", "config.data.sources.pairs.augmentation.image_first must be"),
        ("data.grids", "(4, 4)", r"config.data.grids[0] must be a tuple (a whole number, a whole number), found 4"),
        ("data.grids", "((4, 0),)", r"config.data.grids[0][1] must be at least 1, found 0"),
        ("optimizer.lr_multipliers", "('embedding', 0.1)", "config.optimizer.lr_multipliers[0] must be a tuple (a string"),
        ("optimizer.lr_multipliers", "(('(embedding', 0.1),)", "config.optimizer.lr_multipliers[0][0] must be a regular"),
        ("optimizer.no_decay", "(bias", "config.optimizer.no_decay must be a regular expression (missing )"),
        ("optimizer.frozen", "encoder", "config.optimizer.frozen must be a tuple, each entry a string such as ('a', 'b')"),
        ("optimizer.schedule", "step", "config.optimizer.schedule must be one of constant, cosine, found 'step'"),
        ("optimizer.warmup_steps", "30", "config.optimizer.warmup_steps must be at least 0 and less than steps (30), found 30"),
        ("optimizer.min_learning_rate", "1", "config.optimizer.min_learning_rate must be in [0, 0.005]"),
        ("optimizer.learning_rate", "nan", "config.optimizer.learning_rate must be a finite number, found 'nan'"),
        ("optimizer.learning_rate", "1e999", "config.optimizer.learning_rate must be a finite number, found inf"),
        ("seed", "-1", "config.seed must be in [0, 2**63), found -1"),
        ("seed", str(2**63), f"config.seed must be in [0, 2**63), found {2**63}"),
        ("seed", "1.5", "config.seed must be a whole number, found 1.5"),
        ("steps", "many", "config.steps must be a whole number, found 'many'"),
        ("steps", "True", "config.steps must be a whole number, found True"),
        ("steps", "0", "config.steps must be at least 1, found 0"),
        ("data.data_shards", "3", "config.data.batch_size (4) is not a multiple of data_shards (3)"),
        ("ema_decay", "1", "config.ema_decay must be in [0, 1), found 1.0"),
        ("max_target_fraction.image", "0", "config.max_target_fraction.image must be in (0, 1], found 0.0"),
        ("mesh.data", "0", "config.mesh.data must be at least 1, or -1"),
        ("profile.start", "3", "config.profile.start must be at most stop, found 3 and 0"),
        ("model.transformer.heads", "3", "config.model.transformer.heads (3) is not a multiple of kv_heads (2)"),
        ("model.transformer.dtype", "fp8", "config.model.transformer.dtype must be one of"),
        ("samples.generation.stepz", "3", "config.samples.generation.stepz is not a setting; did you mean config.s"),
        ("samples.generation.steps", "x", "config.samples.generation.steps must be a whole number, found 'x'"),
        ("start.checkpoint", "x", "config.start.checkpoint is now config.init.checkpoint"),
        ("optimizer.clip", "1", "config.optimizer.clip is now config.optimizer.grad_clip_norm"),
        ("data.sources.pairs.share", "1", "config.data.sources.pairs.share is now config.data.sources.pairs.weight"),
        ("samples.generation.negative", "", "config.samples.generation.negative is now config.samples.generation."),
    ],
)  # fmt: skip
def test_what_it_cannot_say_is_one_line_that_names_the_setting(path, text, message):
    with pytest.raises(InputError) as error:
        changed(path, text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@given(st.sampled_from([name for name, _ in flatten(plain(resolve(laptop())), "config")]), st.text(max_size=12))
def test_any_text_is_a_value_or_one_line(name, text):
    path = name.removeprefix("config.")
    try:
        run = changed(path, text)
    except InputError as error:
        assert "\n" not in str(error).replace(repr(text), "").replace(text, "")
    else:
        assert resolve(json.loads(json.dumps(plain(run)))) == run


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_says_the_new_one_in_files_too(old):
    values = plain(resolve(laptop()))
    group, names = values, old.replace("*", "pairs").split(".")
    for name in names[:-1]:
        group = group.setdefault(name, {})
    group[names[-1]] = {} if old in ("start", "capacity") else 1
    with pytest.raises(InputError, match=r"^config\.\S+ is now config\.\S+$"):
        resolve(values)


def test_every_new_name_exists():
    for new in RENAMED.values():
        if "generation" not in new:
            config = laptop()
            config.data.validation.pairs = source("x")
            value = config
            for name in new.replace("*", "pairs").split("."):
                value = value[name]


@pytest.mark.parametrize(("objective", "kind"), RUNS.items())
def test_the_defaults_of_config_files_are_those_of_the_settings(objective, kind):
    assert resolve(base_config(objective)) == kind()


def test_a_config_file_of_another_objective_is_an_error():
    with pytest.raises(InputError, match=f"config.objective must be one of {', '.join(RUNS)}, found 'distillation'"):
        base_config("distillation")


@pytest.mark.parametrize("kind", RUNS.values())
def test_every_setting_has_a_type_and_a_default(kind):
    def check(kind):
        for field in dataclasses.fields(kind):
            entry = field_types(kind)[field.name]
            assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            if dataclasses.is_dataclass(entry):
                check(entry)

    check(kind)


def test_settings_are_frozen():
    run = resolve(laptop())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.optimizer.learning_rate = 1.0


@dataclasses.dataclass(frozen=True)
class Example:
    number: float = 0.0
    count: int | None = None
    names: typing.Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


@given(
    st.builds(
        Example,
        st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.integers(),
        st.dictionaries(st.text(), st.lists(st.integers()).map(tuple)),
    )
)
def test_json_brings_settings_back(example):
    assert read(Example, json.loads(json.dumps(plain(example))), "example") == example


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_numbers_as_python_writes_them_come_back(number, count):
    assert parse(float, repr(number), "x") == number
    assert parse(int, repr(count), "x") == count
    assert parse(int | None, "None", "x") is None


@given(st.one_of(st.none(), st.booleans(), st.text(), st.lists(st.integers()), st.just(math.inf)))
def test_what_is_no_number_is_refused(value):
    for kind in (int, float):
        with pytest.raises(InputError, match="^x must be a .* number, found "):
            read(kind, value, "x")
