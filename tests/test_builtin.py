"""The model inside the package: it loads like any checkpoint, stays small, and does each of its jobs."""

import json
import re

import numpy as np
import pytest

from nextstep_jax.data import shapes
from nextstep_jax.evaluation.responses import generate_responses
from nextstep_jax.evaluation.shapes import default_prompts, evaluate
from nextstep_jax.generation.load import builtin_checkpoint
from nextstep_jax.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_checkpoint()


def test_ships_within_eight_megabytes():
    assert sum(path.stat().st_size for path in builtin_checkpoint().rglob("*") if path.is_file()) <= 8_000_000


def test_knows_the_words_of_its_dataset(pipeline):
    prompts = default_prompts(2)
    assert all(pipeline.vocabulary.encode(prompt.text) for prompt in prompts if prompt.text)
    assert pipeline.config.token_channels == 64 and pipeline.token_pixels == 16


def test_answers_every_category_and_gets_its_colors(pipeline):
    """What it scores is measured by `nextstep-jax evaluate shapes`; here, that its pictures have to do with the prompts."""
    prompts = default_prompts(1)
    responses = generate_responses(pipeline, prompts)
    report = evaluate(prompts, responses)
    assert report["n"] == len(prompts) == len(shapes.PROMPT_CATEGORIES)
    assert json.loads(json.dumps(report)) == report
    reds = pipeline.generate(["a red circle", "a blue circle"], n=4, seed=0)
    channels = np.stack([np.ptp(image.pixels.reshape(-1, 3).astype(int), axis=0) for image in reds])
    pixels = np.stack([image.pixels.astype(int) for image in reds])
    redness = (pixels[..., 0] - pixels[..., 2]).max((1, 2))
    blueness = (pixels[..., 2] - pixels[..., 0]).max((1, 2))
    assert channels.max(1).min() > 60, "a picture without any contrast"
    assert np.median(redness[:4]) > np.median(redness[4:]) and np.median(blueness[4:]) > np.median(blueness[:4])


def test_plans_its_edits(pipeline):
    """What there is it reads reliably; what shall be there is measured with the edits themselves."""
    right = 0
    for prompt in shapes.prompts("heldout", "edits", 7):
        image = pipeline.edit(shapes.render(prompt.scene), prompt.text)[0]
        before, change, after = image.record["thinking"].split(". ")
        assert " then " in change and len(before.split()) == 45 and len(after.split()) == 36
        found = set(re.findall(r"\d (\w+) (\w+) \d (\w+)", before)) - {("empty",) * 3}
        right += found == {(thing.shape, thing.color, thing.size) for thing in prompt.scene.objects}
    assert right >= 6
