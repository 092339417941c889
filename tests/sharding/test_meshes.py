"""The same losses, gradients, attention and images whatever mesh they are computed on: eight pretended devices, in a process
of their own.
"""

import json
import os
import pathlib
import socket
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


def mixed_batch(channels, seed=0, rows=8, length=32):
    """Rows of three packed samples: text; text and an image; an image that is no target, and text. The rest is padding."""
    from nextstep_jax.batch import Batch

    rng = np.random.default_rng(seed)
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


def off(found, expected) -> float:
    """The largest difference, the largest expected entry being 1."""
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


def compute():
    """Print how far everything computed on a mesh is from what one device computes."""
    found = {"training": training(), "splash": splash(), "generation": generation()}
    print(json.dumps(found | {"post_training": {name: post_training(name) for name in ("preference", "nft", "grpo")}}))


def splash():
    """The attention kernel split over rows, heads and queries, and its gradients, from the plain one without a mesh."""
    import jax

    from nextstep_jax.models.attention import causal_attention
    from nextstep_jax.sharding.mesh import make_mesh

    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(2, 256, heads, 128)).astype(np.float32) for heads in (4, 2, 2, 4))
    ids = np.sort(rng.integers(1, 4, (2, 256)), axis=1).astype(np.int32)

    def run(kernel, q, k, v):
        y, pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, ids, kernel), q, k, v)
        return y, *pull(g)

    expected = jax.jit(run, static_argnums=0)("xla", q, k, v)
    with jax.set_mesh(make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})):
        found = jax.jit(run, static_argnums=0)("splash", q, k, v)
    return max(map(off, found, expected))


def generation():
    """Image tokens of a decode split over `tensor`, from those of one device; and over what its cache is split."""
    import jax
    import jax.numpy as jnp

    from nextstep_jax.config import preset
    from nextstep_jax.generation.token_loop import Prompt, SamplerConfig, decode_tokens, prefill
    from nextstep_jax.models.nextstep import init_params
    from nextstep_jax.sharding.mesh import make_mesh
    from nextstep_jax.sharding.params import state_shardings

    config, settings = preset("tiny").with_transformer(layers=2), SamplerConfig(branches=2, steps=3)
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.1, shapes)
    ids = rng.integers(0, 400, (2, 5)).astype(np.int32)
    empty = np.zeros((2, 5, config.token_channels), np.float32)
    prompt = Prompt(ids, empty, np.zeros((2, 5), bool), np.array([5, 3], np.int32))
    noise = rng.normal(size=(4, settings.num_noise_draws, 1, config.token_channels)).astype(np.float32)
    guidance = np.tile(np.float32([2.0, 1.0]), (4, 1))

    def generate(params):
        state = prefill(config, params, prompt, branches=2, tokens=4)
        return decode_tokens(config, settings, params, state, noise, guidance, jnp.int32(4))

    expected = generate(params).tokens
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        place = state_shardings({"model": params}, mesh)["model"]
        found = generate(jax.device_put(params, place))
    return {"tokens": off(found.tokens, expected), "cache": str(found.cache.layers[0].keys.sharding.spec)}


def training():
    """For each mesh, the loss, and how far the gradients of each parameter are from those of one device."""
    import jax

    from nextstep_jax.config import preset
    from nextstep_jax.sharding.mesh import global_batch, make_mesh
    from nextstep_jax.sharding.params import path_string, state_shardings
    from nextstep_jax.training.multitask import make_objective
    from nextstep_jax.training.settings import MultitaskLossConfig

    config = preset("tiny").with_transformer(layers=2, scan_layers=True, remat="full")
    objective = make_objective(config, max_text_targets=32, max_image_targets=16, settings=MultitaskLossConfig())
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    # Every parameter away from its initial value, so that each has a gradient.
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.1, shapes)
    batch, key, found, reference = mixed_batch(config.token_channels), jax.random.key(2), {}, None
    for name, sizes in MESHES.items():
        mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])
        with jax.set_mesh(mesh):
            place = state_shardings(params, mesh)

            def loss(params, batch):
                return objective.loss(params, batch, key, objective.normalizers(batch))[0]

            gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, place))
            value, grads = gradient(jax.device_put(params, place), global_batch(batch, mesh, objective.batch_axes))
            grads = {path_string(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]}
        reference = reference or grads
        distances = {path: off(grads[path], g) for path, g in reference.items()}
        found[name] = {"loss": float(value), "worst": max(distances.values()), "where": max(distances, key=distances.get)}
    return found


def post_training(objective_name):
    """For each of three meshes, how far loss and gradients of a step are from those of one device: rollouts, reference, and the
    step itself are made on the mesh; what the images are worth is given.
    """
    import types

    import jax

    from nextstep_jax.batch import PairedBatch
    from nextstep_jax.config import preset
    from nextstep_jax.sharding.mesh import global_batch, make_mesh
    from nextstep_jax.sharding.params import state_shardings
    from nextstep_jax.training import online, preference
    from nextstep_jax.training.config import base_config, model_fields, resolve
    from nextstep_jax.training.image_scores import Scores
    from nextstep_jax.training.init import initial_params

    config = base_config(objective_name)
    model = preset("tiny").with_transformer(layers=1, scan_layers=True)
    config.model, rng = model_fields(model), np.random.default_rng(1)
    if objective_name == "preference":
        config.data.seq_len, config.loss.beta, config.loss.beta_text = 32, 5.0, 0.5
        run = resolve(config)
        (winners, kinds), (losers, _) = (mixed_batch(model.token_channels, seed) for seed in (0, 1))
        batch, objective = (PairedBatch(winners, losers), kinds), preference.make_objective(run)
    else:
        config.rollouts.update({"images": 2, "steps": 3, "image_size": 32})
        config.loss.kl_weight = 0.1
        run = resolve(config)
        batch = online.rollouts.PromptRows(rng.integers(0, 400, (8, 64)).astype(np.int32), np.arange(8, 16), np.arange(8))
        batch, objective = jax.tree.map(lambda a: a.astype(np.int32), batch), online.make_objective(run)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.1, shapes)
    totals = rng.uniform(size=(8, 2)).astype(np.float32)
    scores, key, expected, found = Scores(totals, np.arange(8) != 3, {"one": totals}), jax.random.key(2), None, {}
    for name in ("1", "8x1", "2x4"):
        sizes = MESHES[name]
        mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, state_shardings(params, mesh))
            state = types.SimpleNamespace(step=jax.numpy.int32(3), params=placed, averaged_params=placed)
            mine = global_batch(batch, mesh, objective.batch_axes)
            if objective_name == "preference":
                mine = preference.open_collector(run, objective, None, key)(state, mine, key)
            else:
                settings = online.generation_settings(run)
                drawn = jax.jit(online.make_draw(run, settings, (2, 2), mesh))(placed, mine, state.step, key)
                assert len(drawn.read.addressable_shards) == mesh.size
                reference = initial_params(run.init, objective.init, key, mesh)
                scored = global_batch(scores, mesh, objective.batch_axes)
                complete = jax.jit(online.make_complete(run, settings))
                mine = complete(None, reference, drawn, scored, state.step, key)

            def loss(params, batch):
                return objective.loss(params, batch, key, objective.normalizers(batch))[0]

            value, grads = jax.jit(jax.value_and_grad(loss))(placed, mine)
        leaves = [np.asarray(value), *map(np.asarray, jax.tree.leaves(grads))]
        expected = expected or leaves
        scale = max(np.abs(leaf).max() for leaf in expected[1:])
        found[name] = max(float(np.abs(a - b).max() / scale) for a, b in zip(leaves, expected, strict=True))
        assert scale > 1e-6
    return found


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
    training = results["training"]
    assert training[name]["loss"] == pytest.approx(training["1"]["loss"], rel=1e-5)
    assert training[name]["worst"] < 1e-5, training[name]["where"]


@pytest.mark.parametrize("objective", ["preference", "nft", "grpo"])
def test_a_mesh_changes_no_step_of_post_training(results, objective):
    """A preference is a small difference of errors, and of drawn tokens each is the next one's input."""
    assert max(results["post_training"][objective].values()) < 1e-4


def test_the_attention_kernel_is_the_same_split_over_rows_heads_and_queries(results):
    assert results["splash"] < 1e-5


def test_decoding_split_over_heads_draws_the_same_tokens(results):
    """Rounding differs a little in each step, and each token is the next one's input."""
    assert results["generation"]["tokens"] < 1e-4
    assert "'tensor'" in results["generation"]["cache"]


if __name__ == "__main__":
    compute()


ROWS_OF_TWO_PROCESSES = """
import sys
import jax
import numpy as np
from nextstep_jax.sharding.mesh import global_batch, make_mesh
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
whole = np.arange(32).reshape(4, 8)
for axis in ("data", "sequence", "tensor"):
    mesh = make_mesh({axis: 2})
    mine = whole if axis != "data" else whole[2 * jax.process_index() :][:2]
    made = global_batch({"ids": mine, "rows": mine[:, 0]}, mesh)
    assert made["ids"].shape == (4, 8) and made["rows"].shape == (4,), (axis, made)
    for array, expected in ((made["ids"], whole), (made["rows"], whole[:, 0])):
        (shard,) = array.addressable_shards
        np.testing.assert_array_equal(shard.data, expected[shard.index])
"""


def test_a_batch_over_two_processes_is_whole_whichever_axis_they_lie_along():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ROWS_OF_TWO_PROCESSES, str(port), str(i)], env=environment, stderr=subprocess.PIPE
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
