"""The sharding table covers every parameter of both models, and says no when it must."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from nextstep_jax.config import ImageTokenizerConfig, preset
from nextstep_jax.errors import InputError
from nextstep_jax.models.image_tokenizer import ImageTokenizer
from nextstep_jax.models.nextstep import init_params
from nextstep_jax.models.param_layouts import stack_layers
from nextstep_jax.sharding import mesh as meshes
from nextstep_jax.sharding import params as sharding
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.sharding.rules import LOGICAL_RULES, row_major
from nextstep_jax.training.optimizer import OptimizerConfig, make_optimizer
from nextstep_jax.training.state import create_state


@dataclasses.dataclass(frozen=True)
class FakeMesh:
    """A mesh of as many devices as a test likes: the table asks for nothing but axis names and sizes."""

    shape: dict

    @property
    def axis_names(self):
        return tuple(self.shape)


POD = FakeMesh({"data": 2, "fsdp": 16, "tensor": 4, "sequence": 1})


def abstract_model(name, **changes):
    config = preset(name).with_transformer(**changes)
    return {"model": jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))}


def leaves_by_path(tree):
    return {sharding.path_string(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("changes", [{}, {"scan_layers": True}, {"fused_projections": True}])
def test_every_large_parameter_of_the_14b_model_is_split(changes):
    leaves = leaves_by_path(abstract_model("14b", **changes))
    total = sum(leaf.size for leaf in leaves.values())
    for path, leaf in leaves.items():
        spec = sharding.parameter_spec(path, leaf.shape, POD)
        assert len(spec) == leaf.ndim
        if leaf.size > 1e-4 * total:
            assert sharding.shards(spec, POD) >= 16, path


def test_stacked_and_per_layer_parameters_are_split_alike():
    params = abstract_model("tiny")
    unrolled = leaves_by_path(params)
    stacked = leaves_by_path({"model": jax.eval_shape(stack_layers, params["model"])})
    for path, leaf in stacked.items():
        spec = sharding.parameter_spec(path, leaf.shape, POD)
        bare = re.sub("/(layers|blocks)/", r"/\1_0/", path)
        expected = sharding.parameter_spec(bare, unrolled[bare].shape, POD)
        assert spec == (PartitionSpec(None, *expected) if bare != path else expected), path


def test_the_image_tokenizer_is_covered():
    config = ImageTokenizerConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, resolution=16)
    shapes = jax.eval_shape(ImageTokenizer(config).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    leaves = leaves_by_path({"image_tokenizer": shapes})
    assert leaves
    for path, leaf in leaves.items():
        spec = sharding.parameter_spec(path, leaf.shape, POD)
        if path.endswith("conv1/kernel"):
            assert spec == PartitionSpec(None, None, None, "fsdp")


@pytest.mark.parametrize("muon", [(), (r"layers/.*kernel$",)])
def test_moments_and_average_lie_where_their_parameter_lies(muon):
    params = abstract_model("tiny", scan_layers=True)
    optimizer = make_optimizer(params, optax.constant_schedule(1e-3), OptimizerConfig(muon=muon))
    state = jax.eval_shape(lambda p: create_state(p, optimizer, ema=True), params)
    mesh = make_mesh({}, jax.devices()[:1])
    placed = sharding.state_shardings(state, mesh)
    kernel = "decoder/layers/mlp/up/kernel"
    expected = PartitionSpec(None, "fsdp", "tensor")
    paths = jax.tree_util.tree_leaves_with_path((placed.opt_state, placed.ema))
    found = [leaf.spec for path, leaf in paths if sharding.path_string(path).endswith(kernel)]
    assert found == [expected] * (2 if muon else 3)
    assert placed.step.spec == PartitionSpec()
    counts = [leaf for path, leaf in paths if not sharding.parameter_path(path)]
    assert counts and all(leaf.spec == PartitionSpec() for leaf in counts)


def test_a_dimension_that_does_not_divide_stays_whole():
    """3 key/value heads on 4 tensor shards: no padding, no error, but a copy."""
    spec = sharding.parameter_spec("model/decoder/layers_0/attention/k/kernel", (64, 3, 16), POD)
    assert spec == PartitionSpec("fsdp", None, None)


def test_an_axis_goes_to_the_first_dimension_that_it_divides():
    """The MLP's last kernel [F, D] is split along F over `tensor` and `fsdp`, or else along D."""
    kernel, sizes = "model/decoder/layers_0/mlp/down/kernel", POD.shape
    rows = sizes["tensor"] * sizes["fsdp"]
    assert sharding.parameter_spec(kernel, (3 * rows, 64), POD) == PartitionSpec(("tensor", "fsdp"), None)
    assert sharding.parameter_spec(kernel, (sizes["tensor"], 64), POD) == PartitionSpec("tensor", "fsdp")


def test_a_large_parameter_that_would_be_copied_everywhere_is_an_error(monkeypatch):
    monkeypatch.setitem(LOGICAL_RULES, "embed", ())
    monkeypatch.setitem(LOGICAL_RULES, "vocab", ())
    monkeypatch.setattr(sharding, "NamedSharding", lambda mesh, spec: spec)
    with pytest.raises(InputError, match=r"model/embedding/embedding \(512, 64\) holds \d+\.\d% .* 64 devices"):
        sharding.state_shardings(abstract_model("tiny"), POD)


def test_an_unknown_parameter_is_an_error_that_names_it():
    with pytest.raises(InputError, match="model/router/gate"):
        sharding.parameter_spec("model/router/gate", (4, 4), POD)


def test_the_table_lists_every_parameter_and_their_sum():
    params = abstract_model("tiny", scan_layers=True)
    table = sharding.sharding_table(params, POD).splitlines()
    assert len(table) == len(jax.tree.leaves(params)) + 2
    assert any("embedding/embedding" in line and "512x64" in line and "tensor, fsdp" in line for line in table)
    assert table[-1].startswith("total")
    everything = sum(float(line.split()[-1]) for line in table[1:-1])
    assert float(table[-1].split()[-1]) == pytest.approx(everything, abs=0.05)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"model": 1}, "among"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"tensor": 0}, "positive"),
        ({"tensor": 3}, "does not fit 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(sizes, jax.devices()[:1])


def sliced_devices(slices, each):
    """Devices of a multi-slice job: as much of them as placing looks at."""

    def device(number):
        return types.SimpleNamespace(id=number, platform="gpu", device_kind="gpu", process_index=0, slice_index=number // each)

    return [device(number) for number in range(slices * each)]


def test_slices_lie_along_the_data_axis():
    placed = meshes._arrange((4, 2, 1, 1), sliced_devices(2, 4))
    assert placed.shape == (4, 2, 1, 1)
    slices = np.vectorize(lambda device: device.slice_index)(placed)[:, :, 0, 0]
    assert slices.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_a_data_axis_that_does_not_divide_into_the_slices_is_an_error():
    with pytest.raises(InputError, match="data must be a multiple of the 2 slices, found 1"):
        meshes._arrange((1, 8, 1, 1), sliced_devices(2, 4))


@pytest.mark.parametrize(
    "rows, part", [(16, "f32[2,4,3]"), (1, "f32[1,4,3]")]
)  # a single row, as in an initialization, is whole
def test_each_device_has_the_layout_of_its_part(rows, part):
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 4, 1, 2), ("data", "fsdp", "tensor", "sequence"))):
        program = jax.make_jaxpr(lambda x: row_major(x, "batch", "sequence", "width"))(jnp.zeros((rows, 8, 3)))
    (constraint,) = re.findall(r":(f32\[[\d,]*\]).* = layout_constraint", str(program))
    assert constraint == part
