"""The committed configs hold the paper's values (Table 1, Table 6, section 4.2), and resolve to what is in resolved/.

After a change to a config or to a default, write the resolved settings again and look at what changed:

    python -m tests.training.test_configs && git diff tests/training/resolved
"""

import dataclasses
import importlib
import json
import pathlib
import re

import pytest

from nextstep_jax.config import preset
from nextstep_jax.errors import InputError
from nextstep_jax.launch.shipped import config_names
from nextstep_jax.schema import flatten, plain
from nextstep_jax.training.config import resolve
from nextstep_jax.training.multitask import packing_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RESOLVED = pathlib.Path(__file__).parent / "resolved"
NAMES = config_names()


def get(name, argument=None):
    return importlib.import_module(f"nextstep_jax.configs.{name}").get_config(argument)


@pytest.mark.parametrize(
    "name, steps, warmup, rate, schedule, length, shares",
    [
        ("nextstep_14b_stage1", 200_000, 5_000, 1e-4, "constant", 16_384, {"text": 0.2, "pairs": 0.6, "interleaved": 0.2}),
        ("nextstep_14b_stage2", 100_000, 5_000, 1e-5, "constant", 16_384, {"text": 0.2, "pairs": 0.6, "interleaved": 0.2}),
        (
            "nextstep_14b_anneal",
            20_000,
            0,
            1e-5,
            "cosine",
            16_384,
            {"text": 0.2, "pairs": 0.6, "edits": 0.1, "interleaved": 0.1},
        ),
        ("nextstep_14b_sft", 10_000, 500, 1e-5, "cosine", 8_192, {"pairs": 0.9, "edits": 0.1}),
    ],
)
def test_the_stages_follow_table_1(name, steps, warmup, rate, schedule, length, shares):
    config = get(name)
    optimizer = config.optimizer
    assert (config.steps, optimizer.warmup_steps, optimizer.learning_rate) == (steps, warmup, rate)
    assert (optimizer.schedule, optimizer.min_learning_rate, optimizer.weight_decay) == (schedule, 0.0, 0.1)
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.grad_clip_norm) == (0.9, 0.95, 1e-8, 1.0)
    assert config.data.seq_len == length
    assert {name: source.weight for name, source in config.data.sources.items() if source.weight} == shares
    model = resolve(config).model
    assert (model.text_loss_weight, model.image_loss_weight) == (0.01, 1.0)
    assert model.transformer == preset("14b").with_transformer(dtype="bfloat16", remat="full", scan_layers=True).transformer


@pytest.mark.parametrize("name", ["nextstep_14b_dpo", "nextstep_14b_self_cot_dpo"])
def test_preference_training_follows_table_1(name):
    config = get(name)
    optimizer = config.optimizer
    assert (config.steps, optimizer.warmup_steps, optimizer.learning_rate) == (300, 200, 2e-6)
    assert (optimizer.schedule, optimizer.weight_decay) == ("constant", 0.1)
    assert (config.model.latent_size, config.init.reinit) == (64, ())


@pytest.mark.parametrize("stage, tokens", [("stage1", 1.23e12), ("stage2", 0.61e12), ("anneal", 40e9), ("sft", 5e9)])
def test_the_stages_see_the_tokens_of_table_1(stage, tokens):
    config = get(f"nextstep_14b_{stage}")
    assert config.steps * config.data.batch_size * config.data.seq_len == pytest.approx(tokens, rel=0.06)


@pytest.mark.parametrize("name, layers, width", [("40m", 6, 1024), ("157m", 12, 1536), ("528m", 24, 2048)])
def test_the_flow_heads_follow_table_6(name, layers, width):
    """Stage 1 but for the head, which alone starts over, and the number of steps (section 6.2)."""
    ablation, stage = resolve(get(f"flow_head_{name}")), resolve(get("nextstep_14b_stage1"))
    head = ablation.model.flow_head
    assert (head.layers, head.width, ablation.steps) == (layers, width, 10_000)
    assert ablation.init.reinit == (r"^model/flow_head/",) and not ablation.optimizer.frozen
    optimizer = dataclasses.replace(ablation.optimizer, warmup_steps=stage.optimizer.warmup_steps)
    model = dataclasses.replace(ablation.model, flow_head=stage.model.flow_head)
    same = {"model": model, "optimizer": optimizer, "name": stage.name, "steps": stage.steps, "init": stage.init}
    assert dataclasses.replace(ablation, **same) == stage


def test_the_tokenizer_follows_section_4_2():
    config = get("tokenizer_f8ch16")
    tokenizer = resolve(config).image_tokenizer
    assert (tokenizer.downsample, tokenizer.latent_channels) == (8, 16)
    assert tokenizer.normalize and tokenizer.normalize_patch == 2 and tokenizer.perturbation == 0.5
    assert (config.steps, config.data.batch_size, config.optimizer.warmup_steps) == (50_000, 512, 1_000)


def resolved(name):
    """The settings of a config and of its laptop form, as JSON."""
    return json.dumps({form: plain(resolve(get(name, form))) for form in ("", "laptop")}, indent=1) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_config_resolves_to_its_golden(name):
    assert resolved(name) == (RESOLVED / f"{name}.json").read_text(encoding="utf-8"), "see the docstring of this file"


def test_there_is_no_golden_without_a_config():
    assert [path.stem for path in sorted(RESOLVED.iterdir())] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_resolved_settings_resolve_to_themselves(name):
    """What a run writes down can be read back."""
    run = resolve(get(name))
    assert resolve(json.loads(json.dumps(plain(run)))) == run


@pytest.mark.parametrize("name, most", [("nextstep_14b_stage1", 12_288), ("nextstep_14b_stage2", 16_384)])
def test_rows_are_packed_to_the_most_targets_of_the_heads(name, most):
    config = get(name)
    run = resolve(config)
    found = packing_config(run, run.model, data_shard=0)
    assert (found.max_text_targets, found.max_image_targets) == (most, most)


def test_the_pages_say_what_is_there():
    """Settings, tests and configs that docs/stages.md names exist."""
    page = (CONFIGS.parent / "docs" / "stages.md").read_text(encoding="utf-8")
    for file, test in re.findall(r"`((?:\w+/)*test_\w+)(?:\.py)?(?:::(\w+))?`", page):
        path = CONFIGS.parent / "tests" / ("training/test_configs.py" if file == "test_configs" else f"{file}.py")
        assert path.is_file() and f"def {test}" in path.read_text(encoding="utf-8"), (file, test)
    known = {name for stage in NAMES for name, _ in flatten(plain(resolve(get(stage))), "")}
    named = re.findall(r"`((?:data|loss|model|optimizer|image_tokenizer|init)\.[\w.]*\w)`", page.replace("NAME", "pairs"))
    assert len(named) > 20 and all(any(f"{k}.".startswith(f".{name}.") for k in known) for name in named)


def test_the_docstrings_say_how_to_launch_and_what_to_expect():
    for name in NAMES:
        text = importlib.import_module(f"nextstep_jax.configs.{name}").__doc__
        assert f"nextstep-jax train --config {name} " in text
        assert f"{name}:laptop" in text
        assert "Expected: " in text and "Expected: EXPECTED" not in text, name


def test_another_argument_is_an_error():
    with pytest.raises(InputError, match="laptop, found 'desktop'"):
        get("nextstep_14b_sft", "desktop")


if __name__ == "__main__":
    for golden in NAMES:
        (RESOLVED / f"{golden}.json").write_text(resolved(golden), encoding="utf-8")
