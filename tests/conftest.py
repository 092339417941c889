"""Shared fixtures: where the golden data lies, and tiny models built once per session. And which tests may be skipped."""

import dataclasses
import importlib.util
import os
import pathlib
import re

import hypothesis
import numpy as np
import pytest

from tests import shape_checks

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs run here for a moment only: most of a test's time would go into optimizing them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
shape_checks.install()

MAY_SKIP = "NEXTSTEP_JAX_MAY_SKIP"  # a regular expression: a test skipped for a reason without it is a failure


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Where MAY_SKIP is set, tests skipped for another reason are named, and the run has failed."""
    reporter, allowed = session.config.pluginmanager.get_plugin("terminalreporter"), os.environ.get(MAY_SKIP)
    if reporter is None or allowed is None:
        return
    for report in reporter.stats.get("skipped", ()):
        _, _, reason = report.longrepr
        if not re.search(allowed, reason):
            reporter.write_line(f"\n{report.nodeid}: may not be skipped here: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items):
    """Without libtpu the tests that compile for TPUs are skipped."""
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu_compiler"):
                item.add_marker(pytest.mark.skip(reason="needs libtpu, the extra test-tpu"))


# A busy machine is no failure: properties have no time limit of their own.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

GOLDENS = pathlib.Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of the golden files."""
    return GOLDENS


@pytest.fixture(scope="session")
def tiny_vocabulary():
    """A word-level text tokenizer with the NextStep special tokens."""
    from nextstep_jax.data.vocabulary import Vocabulary, word_vocabulary

    return Vocabulary.from_bytes(word_vocabulary(["red", "blue", "circle", "square", "a", "of", "left"]), "tokenizer.json")


@pytest.fixture(scope="session")
def tiny_config(tiny_vocabulary):
    """The tiny preset with the ids of `tiny_vocabulary`."""
    from nextstep_jax.config import preset

    special = tiny_vocabulary.special
    return dataclasses.replace(
        preset("tiny"),
        bos_id=special.eos,
        eos_id=special.eos,
        pad_id=special.pad,
        begin_of_image_id=special.begin_of_image,
        end_of_image_id=special.end_of_image,
        image_placeholder_id=special.image_placeholder,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Random canonical parameters, every one of them away from its initial value so that each has an effect."""
    import jax

    from nextstep_jax.models.nextstep import init_params

    params = init_params(tiny_config, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        last = path[-1].key
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if last == "scale":
            return 1 + np.float32(0.1) * noise
        if last == "bias":
            return np.float32(0.05) * noise
        gain = 0.5 if last == "embedding" else 0.6 / np.sqrt(np.prod(leaf.shape[:-1]))
        return noise * np.float32(gain)

    return jax.tree_util.tree_map_with_path(draw, params)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """(config, params) of a small image tokenizer with a deterministic, normalized encoder; 8 pixels per latent pixel."""
    import jax
    import jax.numpy as jnp

    from nextstep_jax.config import ImageTokenizerConfig
    from nextstep_jax.models.image_tokenizer import ImageTokenizer

    config = ImageTokenizerConfig(
        resolution=64,
        channels=32,
        channel_multipliers=(1,),
        blocks_per_level=1,
        stem_patch=8,
        scaling=1.0,
        shift=0.0,
        deterministic=True,
        normalize=True,
        normalize_patch=2,
    )
    params = jax.jit(ImageTokenizer(config).init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))["params"]
    return config, params


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_config, tiny_params, tiny_tokenizer, tiny_vocabulary) -> pathlib.Path:
    """A complete checkpoint folder of the tiny models, cheap to generate with."""
    from nextstep_jax import checkpoints

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tokenizer_config, tokenizer_params = tiny_tokenizer
    config = {"model": tiny_config.to_released(), "image_tokenizer": tokenizer_config.to_released()}
    config["generation"] = {
        "image_size": 64,
        "steps": 3,
        "sampler": "ode",
        "cfg": 2.0,
        "negative_prompt": "",
        "edit": {"image_cfg": 1.5},
    }
    leaves = {"model": tiny_params, "image_tokenizer": tokenizer_params}
    checkpoints.save_params(folder, leaves, config, {"tokenizer.json": tiny_vocabulary.to_bytes()})
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint):
    """A Pipeline on `tiny_checkpoint`."""
    from nextstep_jax.generation.pipeline import Pipeline

    return Pipeline.from_checkpoint(tiny_checkpoint)


@pytest.fixture
def server():
    """A web server on the loopback interface; its `answer` is what a test makes it."""
    from tests.stand_in import StandIn

    stand_in = StandIn()
    yield stand_in
    stand_in.close()
