"""Starting from nothing, from a whole checkpoint, and from one that lacks the image side."""

import dataclasses

import jax
import numpy as np
import pytest

from nextstep_jax import checkpoints
from nextstep_jax.config import preset
from nextstep_jax.errors import InputError
from nextstep_jax.models.nextstep import init_params
from nextstep_jax.models.param_layouts import stack_layers, unstack_layers
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.training.init import initial_params, to_canonical
from nextstep_jax.training.settings import InitConfig

CONFIG = preset("tiny").with_transformer(scan_layers=True, layers=2)
REINIT = (r"^model/image_(in|out)_projector/", r"^model/flow_head/")


def init(key):
    return {"model": init_params(CONFIG, key)}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def trained():
    """Parameters in training form, each leaf of random numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), jax.eval_shape(init, jax.random.key(0)))


def save(folder, params, leave_out=()):
    canonical = jax.tree.map(np.asarray, to_canonical(params))
    for name in leave_out:
        del canonical["model"][name]
    checkpoints.save_params(folder, canonical, {"model": CONFIG.to_released(), "image_tokenizer": None})
    return str(folder)


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_whole_checkpoint_comes_back_bit_for_bit(tmp_path, trained, mesh):
    folder = save(tmp_path / "checkpoint", trained)
    assert equal(initial_params(InitConfig(folder), init, jax.random.key(1), mesh), trained)


def test_an_unrolled_model_starts_from_the_same_checkpoint(tmp_path, trained, mesh):
    unrolled = CONFIG.with_transformer(scan_layers=False)
    folder = save(tmp_path / "checkpoint", trained)
    params = initial_params(InitConfig(folder), lambda key: {"model": init_params(unrolled, key)}, jax.random.key(1), mesh)
    assert equal(params, to_canonical(trained))


def test_a_text_model_gets_a_fresh_image_side(tmp_path, trained, mesh):
    """What a Qwen2.5 checkpoint lacks is drawn as from nothing, with the same key."""
    image_side = ("image_in_projector", "image_out_projector", "flow_head")
    folder = save(tmp_path / "qwen", trained, leave_out=image_side)
    params = initial_params(InitConfig(folder, REINIT), init, jax.random.key(1), mesh)["model"]
    drawn = initial_params(InitConfig(), init, jax.random.key(1), mesh)["model"]
    for name, tree in params.items():
        assert equal(tree, (drawn if name in image_side else trained["model"])[name]), name


def test_a_missing_parameter_is_an_error_that_names_it(tmp_path, trained, mesh):
    folder = save(tmp_path / "checkpoint", trained, leave_out=("image_in_projector",))
    with pytest.raises(InputError, match=r"has no model/image_in_projector/(kernel|bias)"):
        initial_params(InitConfig(folder, (r"flow_head",)), init, jax.random.key(1), mesh)


def test_a_superfluous_parameter_is_an_error_that_names_it(tmp_path, trained, mesh):
    deeper = {"model": trained["model"] | {"decoder": stack_deeper(trained["model"]["decoder"])}}
    with pytest.raises(InputError, match="holds model/decoder/layers_2/"):
        initial_params(InitConfig(save(tmp_path / "checkpoint", deeper)), init, jax.random.key(1), mesh)


def stack_deeper(decoder):
    return decoder | {"layers": jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1]]), decoder["layers"])}


def test_another_shape_is_an_error_that_says_both(tmp_path, trained, mesh):
    folder = save(tmp_path / "checkpoint", trained)
    wider = dataclasses.replace(CONFIG, flow_head=dataclasses.replace(CONFIG.flow_head, width=64))
    with pytest.raises(InputError, match=r"model/flow_head/\S+ has shape \(.*48.*\), expected \(.*64.*\)"):
        initial_params(InitConfig(folder), lambda key: {"model": init_params(wider, key)}, jax.random.key(1), mesh)


@pytest.mark.parametrize("width, layers", [(48, 3), (64, 3), (48, 2), (32, 4)])
def test_named_parameters_are_initialized_anew_whatever_the_checkpoint_holds(tmp_path, trained, mesh, width, layers):
    """The paper's ablation: a stage-1 model with a flow head of another size, or of the same, that starts over."""
    folder = save(tmp_path / "checkpoint", trained)
    config = dataclasses.replace(CONFIG, flow_head=dataclasses.replace(CONFIG.flow_head, width=width, layers=layers))

    def init(key):
        return {"model": init_params(config, key)}

    params = initial_params(InitConfig(folder, (r"^model/flow_head/",)), init, jax.random.key(1), mesh)["model"]
    fresh = initial_params(InitConfig(), init, jax.random.key(1), mesh)["model"]
    assert equal(params.pop("flow_head"), fresh["flow_head"])
    assert equal(params, {name: tree for name, tree in trained["model"].items() if name != "flow_head"})


def test_a_map_head_is_left_behind_where_none_is_trained(tmp_path, trained, mesh):
    head = {"blocks": {"norm": {"scale": np.ones((2, 8), np.float32)}}}
    folder = save(tmp_path / "c", {"model": trained["model"] | {"map_head": head}})
    assert equal(initial_params(InitConfig(folder), init, jax.random.key(1), mesh), trained)


def test_an_expression_that_matches_nothing_is_an_error(tmp_path, trained, mesh):
    folder = save(tmp_path / "checkpoint", trained)
    with pytest.raises(InputError, match="config.init.reinit: 'flowhead' matches no parameter"):
        initial_params(InitConfig(folder, ("flowhead",)), init, jax.random.key(1), mesh)


def test_stacking_agrees_with_the_scanned_form(mesh):
    unrolled = CONFIG.with_transformer(scan_layers=False)
    shapes = jax.eval_shape(lambda key: stack_layers(init_params(unrolled, key)), jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(jax.eval_shape(init, jax.random.key(0))["model"])


def test_a_subtree_begins_as_a_copy_of_another(tmp_path, trained, mesh):
    """A model with one more layer, which begins as the last."""
    layers = CONFIG.transformer.layers
    config = CONFIG.with_transformer(layers=layers + 1)
    last, new = (f"model/decoder/layers_{i}" for i in (layers - 1, layers))
    settings = InitConfig(save(tmp_path / "c", trained), copies=((new, last),))

    def init(key):
        return {"model": init_params(config, key)}

    decoder = unstack_layers(initial_params(settings, init, jax.random.key(0), mesh)["model"])["decoder"]
    stored = unstack_layers(trained["model"])["decoder"]
    for i in range(layers + 1):
        assert equal(decoder[f"layers_{i}"], stored[f"layers_{min(i, layers - 1)}"])
    wrong = dataclasses.replace(settings, copies=((new, "model/decoder/layer"),))
    with pytest.raises(InputError, match="no model/decoder/layer to begin model/decoder/layers_"):
        initial_params(wrong, init, jax.random.key(0), mesh)
