"""The image tokenizer against the released implementation's numbers, and its plain functions against their definitions."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import GOLDENS
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.errors import InputError
from nextstep_jax.models import image_tokenizer as it

BOUND = 2e-5


def from_bfl(tensors):
    """The parameter tree for BFL-named torch tensors."""
    params = {}
    for name, value in tensors.items():
        name = re.sub(r"(down|up|block)\.(\d+)", r"\1_\2", name).replace("nin_shortcut", "shortcut").replace("attn_1", "attention")
        name = re.sub(r"(upsample|downsample)\.conv", r"\1", name).replace("proj_out", "out")
        *path, leaf = name.split(".")
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
            value = value[0, 0] if value.shape[:2] == (1, 1) else value
        if leaf == "weight":
            leaf = "kernel" if value.ndim > 1 else "scale"
        node = params
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(value)
    return params


def nhwc(x):
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def run(params, config, method, x):
    return jax.jit(lambda p, x: it.ImageTokenizer(config).apply({"params": p}, x, method=method))(params, x)


def assert_near(found, expected, bound=BOUND):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=bound)


def released_config(path):
    return ImageTokenizerConfig.from_released(json.loads((GOLDENS / path).read_text()))


@pytest.fixture(scope="module")
def tiny_params():
    return from_bfl(load_file(GOLDENS / "tiny_vae/checkpoint.safetensors"))


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "vae.safetensors")


@pytest.mark.parametrize("size", ["64x64", "48x96"])
def test_encode_and_decode_match_the_release(tiny_params, golden, size):
    config = released_config("tiny_vae/config.json")
    posterior = run(tiny_params, config, "encode", nhwc(golden[f"{size}.x"]))
    assert_near(posterior.mean, nhwc(golden[f"{size}.mean"]))
    assert_near(posterior.logvar, nhwc(golden[f"{size}.logvar"]))
    raw_mean, raw_logvar = np.split(golden[f"{size}.encoder_raw"], 2, axis=1)
    assert_near(posterior.mean, nhwc(raw_mean))
    assert_near(posterior.logvar, jnp.clip(nhwc(raw_logvar), -30, 20))
    assert_near(run(tiny_params, config, "decode", nhwc(golden[f"{size}.z"])), nhwc(golden[f"{size}.decode"]))
