"""The form of settings and arguments: a value that cannot be used is one line, whatever its type."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep_jax.errors import InputError
from nextstep_jax.generation.arguments import require_float, require_int
from nextstep_jax.generation.config import GenerationConfig, recommended
from nextstep_jax.generation.interleaved import generate_interleaved
from nextstep_jax.generation.sizes import image_grid, trained_sizes

# A value of each type that somebody passes by mistake.
ODD = (None, True, False, 1.5, -1, 0, 10**30, float("nan"), float("inf"), "", "7", b"7", (), [1], {}, object(), 1j, np.ones(3))
TYPES = {int: (int, np.integer), float: (int, float, np.number), bool: (bool, np.bool_), str: (str,)}


def fits(value, kind):
    return isinstance(value, TYPES[kind]) and (kind is bool or not isinstance(value, bool))


@pytest.mark.parametrize("field", dataclasses.fields(GenerationConfig), ids=lambda field: field.name)
def test_a_setting_is_its_declared_type_or_refused(field):
    for value in ODD:
        try:
            config = GenerationConfig(**{field.name: value})
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert fits(value, field.type), value
            assert type(getattr(config, field.name)) is field.type


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none()), st.integers(-5, 5))
def test_whole_numbers(value, least):
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if whole:
        assert require_int("n", value, least) == value
    else:
        with pytest.raises(InputError, match="^n must be a whole number of at least"):
            require_int("n", value, least)


@given(st.one_of(st.integers(-(2**60), 2**60), st.floats(), st.booleans(), st.text()))
def test_finite_numbers(value):
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        assert require_float("x", value) == float(value)  # integers beyond 2**53 are rounded
    else:
        with pytest.raises(InputError, match="^x must be a number, found"):
            require_float("x", value)


def test_unknown_settings_name_the_nearest_and_old_ones_the_new():
    with pytest.raises(InputError, match="unknown generation settings stesp; did you mean steps\\?"):
        GenerationConfig().replace(stesp=3)
    with pytest.raises(InputError, match="last_steps is now final_steps; positive is now prompt_suffix"):
        GenerationConfig().replace(positive="a", last_steps=2)
    with pytest.raises(InputError, match="config.json: generation: think is now thinking"):
        recommended("1.1", {"edit": {"think": True}})


CALLS = {
    "generate": lambda pipeline, **changes: pipeline.generate(**{"prompts": "a red circle"} | changes),
    "edit": lambda pipeline, **changes: pipeline.edit(
        **{"images": np.zeros((64, 64, 3), np.uint8), "instruction": "a red circle"} | changes
    ),
    "generate_text": lambda pipeline, **changes: pipeline.generate_text(**{"prompt": "a red circle"} | changes),
    "generate_interleaved": lambda pipeline, **changes: generate_interleaved(pipeline, **{"prompt": "a red"} | changes),
}
REFUSED = {
    "generate": {
        "prompts": (123, None, b"a", {}, 1.5, [], [[]], ["a", 3], [1.5], [True], [-1], [10**6], [["a"]], [None], "\ud800"),
        "height": (0, -16, 1.5, "64", True, 20),
        "width": (0, 64.0, float("nan"), [64]),
        "aspect": (0, "", "1", "0:1", 1.5, "9:1"),
        "n": (0, 1.5, True, "2"),
        "seed": (-1, 2**63, 1.5, None, "1"),
        "settings": ({"cfg": 3.0}, 3),
    },
    "edit": {
        "images": (123, None, [], [3], {}),
        "instruction": (123, None, "", [], [10**6]),
        "height": (0, 1.5),
        "n": (0, 2.0),
        "seed": (-1, 1.5),
        "settings": ({},),
    },
    "generate_text": {
        "prompt": (123, None, "", [], [0.5], [10**6]),
        "images": (3, None, [None]),
        "max_tokens": (0, 1.5, "3", True),
        "temperature": (-1, float("nan"), "0", True),
        "top_p": (0, 1.5, float("nan"), "1", False),
        "seed": (-1, 2**63, 1.5),
        "settings": ("a",),
    },
    "generate_interleaved": {
        "prompt": (123, ""),
        "max_images": (-1, 1.5, True),
        "max_tokens": (0,),
        "temperature": (-1,),
        "seed": (-1, 1.5),
        "settings": (3,),
    },
}


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [(call, name, value) for call, names in REFUSED.items() for name, values in names.items() for value in values],
)
def test_arguments_are_refused_before_anything_runs(tiny_pipeline, monkeypatch, call, name, value):
    for module, function in (("token_loop", "prefill"), ("text", "prefill_ids")):
        monkeypatch.setattr(f"nextstep_jax.generation.{module}.{function}", None)  # calling it is no InputError
    with pytest.raises(InputError) as error:
        CALLS[call](tiny_pipeline, **{name: value})
    assert "\n" not in str(error.value)


def test_a_side_of_0_is_not_a_side_that_was_not_given():
    settings = GenerationConfig(image_size=64)
    assert image_grid(settings, 16) == (4, 4) and image_grid(settings, 16, height=32) == (2, 4)
    for side in ("height", "width"):
        with pytest.raises(InputError, match=f"^{side} must be a whole number of at least 1, found 0"):
            image_grid(settings, 16, **{side: 0})
        with pytest.raises(InputError, match="not both"):
            image_grid(settings, 16, aspect="1:1", **{side: 0})
    with pytest.raises(InputError, match="image_size must be at least 16 pixels"):
        image_grid(settings.replace(image_size=8), 16, aspect="1:1")


@pytest.mark.parametrize("sizes", [3, "64", [64], [[64]], [[64, 0]], [[64, "64"]], [[64, 64, 3]]])
def test_trained_sizes_of_another_form_are_refused(sizes):
    with pytest.raises(InputError, match="trained_sizes"):
        trained_sizes({"trained_sizes": sizes})
    assert trained_sizes({"trained_sizes": [[64, 96]]}) == [(64, 96)] and trained_sizes({}) == []
