"""Fixtures of the checkpoint tests: a small tree of parameters and how to run a program of its own."""

import os
import pathlib
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PROGRAMS = pathlib.Path(__file__).parent / "programs"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def params():
    """Nested parameters of every kind that occurs: bf16, f16 and f32, matrices, a scalar, one leaf over several chunks."""
    rng = np.random.default_rng(0)
    return {
        "model": {
            "embedding": {"embedding": rng.standard_normal((33, 70)).astype(jnp.bfloat16)},
            "decoder": {
                "layers_0": {
                    "q": {"kernel": rng.standard_normal((8, 4, 6)).astype(np.float32), "bias": np.zeros((4, 6), np.float16)}
                },
                "scale": np.asarray(3, np.float32),
            },
        },
        "image_tokenizer": {"conv_in": {"kernel": rng.standard_normal((3, 3, 16, 64)).astype(np.float32)}},
    }


@pytest.fixture
def start_program():
    """Start tests/checkpoints/programs/NAME with arguments; whatever still runs at the end is killed."""
    started = []

    def start(name, *arguments, devices=1):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(PROGRAMS / name), *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run_program(start_program):
    """Run a program to its end; returns what it printed. It must succeed."""

    def run(name, *arguments, devices=1):
        process = start_program(name, *arguments, devices=devices)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    return run


@pytest.fixture
def state(params):
    """A training state in miniature: a step, stacked parameters, moments, a Python number."""
    rng = np.random.default_rng(1)
    stacked = {"layers": {"q": {"kernel": jnp.asarray(rng.standard_normal((3, 8, 6)), jnp.float32)}}, "scale": jnp.ones((8,))}
    model = {"embedding": {"embedding": jnp.asarray(params["model"]["embedding"]["embedding"])}, "decoder": stacked}
    return {
        "step": jnp.int32(7),
        "params": {"model": model},
        "opt": (Moments(jax.tree.map(jnp.zeros_like, model), jax.tree.map(jnp.ones_like, model)), ()),
        "skipped": 2,
    }


class Moments(typing.NamedTuple):
    """As an optimizer keeps them."""

    first: typing.Any
    second: typing.Any


@pytest.fixture(scope="session")
def assert_same():
    """Check that two trees have the same structure, dtypes, shapes and bits."""

    def check(expected, found):
        assert jax.tree.structure(expected) == jax.tree.structure(found)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            a = np.asarray(a, jax.dtypes.canonicalize_dtype(type(a))) if isinstance(a, int) else np.asarray(a)
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())

    return check
