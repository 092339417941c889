"""The same loss and gradients whatever mesh they are computed on: eight pretended devices, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

# data x fsdp x tensor x sequence; the first is one device.
MESHES = {
    "1": {},
    "8x1": {"fsdp": 8},
    "2x4": {"fsdp": 2, "tensor": 4},
    "4x2": {"fsdp": 4, "tensor": 2},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "2x2 and sequence 2": {"fsdp": 2, "tensor": 2, "sequence": 2},
}


def mixed_batch(channels, rows=8, length=32):
    """Rows of three packed samples: text; text and an image; an image that is no target, and text. The rest is padding."""
    from nextstep_jax.batch import Batch

    rng = np.random.default_rng(0)
    shape = (rows, length)
    segments, positions, is_image = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    text_weight, image_weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    kinds = np.zeros(shape, np.int8)
    for row in range(rows):
        first = rng.integers(4, 8)
        for number, (start, stop, image, target) in enumerate(
            [(0, first, 0, 0), (first, first + 10, 6, 1), (first + 10, 28, 4, 0)], 1
        ):
            segments[row, start:stop], kinds[row, start:stop] = number, number
            positions[row, start:stop] = np.arange(stop - start)
            is_image[row, stop - image - 1 : stop - 1] = image > 0
            image_weight[row, stop - image - 1 : stop - 1] = target
            text_weight[row, start + 1 : stop] = ~is_image[row, start + 1 : stop]
    tokens = rng.normal(size=(*shape, channels)).astype(np.float32) * is_image[..., None]
    ids = rng.integers(0, 500, shape).astype(np.int32)
    return Batch(ids, tokens, is_image, positions, segments, text_weight, image_weight), kinds


def compute():
    """Print, for each mesh, the loss and how far its gradients are from those of one device (largest entry of each parameter =
    1).
    """
    import jax

    from nextstep_jax.config import preset
    from nextstep_jax.sharding.mesh import global_batch, make_mesh
    from nextstep_jax.sharding.params import path_string, state_shardings
    from nextstep_jax.training.multitask import make_task

    config = preset("tiny").with_transformer(layers=2, scan_layers=True, remat="full")
    task = make_task(config, text_capacity=1.0, image_capacity=0.5, length=32)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    # Every parameter away from its initial value, so that each has a gradient.
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.1, shapes)
    batch, key, found, reference = mixed_batch(config.token_channels), jax.random.key(2), {}, None
    for name, sizes in MESHES.items():
        mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])
        with jax.set_mesh(mesh):
            place = state_shardings(params, mesh)

            def loss(params, batch):
                return task.loss(params, batch, key, task.totals(batch))[0]

            gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, place))
            value, grads = gradient(jax.device_put(params, place), global_batch(batch, mesh, task.batch_axes))
            grads = {path_string(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]}
        reference = reference or grads
        off = {path: float(np.abs(grads[path] - g).max() / np.abs(g).max()) for path, g in reference.items()}
        found[name] = {"loss": float(value), "worst": max(off.values()), "where": max(off, key=off.get)}
    print(json.dumps(found))


@pytest.fixture(scope="module")
def results():
    """What `compute` prints in a process with eight devices."""
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_a_mesh_changes_neither_loss_nor_gradients(results, name):
    assert results[name]["loss"] == pytest.approx(results["1"]["loss"], rel=1e-5)
    assert results[name]["worst"] < 1e-5, results[name]["where"]


if __name__ == "__main__":
    compute()
