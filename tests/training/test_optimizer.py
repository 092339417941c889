"""Schedules, masks by name, learning-rate multipliers, freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nextstep_jax.errors import InputError
from nextstep_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer, merge, split_frozen


@pytest.fixture
def params():
    return {
        "model": {
            "embedding": {"embedding": jnp.full((4, 2), 2.0)},
            "decoder": {"final_norm": {"scale": jnp.full((2,), 2.0)}},
            "flow_head": {"input": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)}},
        }
    }


def run(optimizer, params, grads, steps=1):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_constant_schedule_warms_up_linearly_and_stays():
    schedule = learning_rate_schedule("constant", 1e-4, 0.0, 5, 100)
    np.testing.assert_allclose([schedule(n) for n in (0, 1, 4, 5, 99)], [2e-5, 4e-5, 1e-4, 1e-4, 1e-4], rtol=1e-6)


def test_cosine_schedule_goes_from_peak_to_floor():
    schedule = learning_rate_schedule("cosine", 1e-5, 1e-6, 0, 100)
    np.testing.assert_allclose([schedule(n) for n in (0, 50, 100)], [1e-5, 5.5e-6, 1e-6], rtol=1e-5)


@pytest.mark.parametrize(("kind", "floor", "warmup", "steps"), [("cosine", 1e-6, 500, 10_000), ("constant", 0.0, 7, 20)])
def test_a_schedule_is_its_formula_at_every_update(kind, floor, warmup, steps):
    """SFT's: a linear rise over the warm-up, then the cosine over what is left, ending at the floor with the last step."""
    n, peak = np.arange(steps + 1, dtype=np.float64), 1e-5
    along = (n - warmup) / (steps - warmup)
    after = floor + (peak - floor) * (1 + np.cos(np.pi * along)) / 2 if kind == "cosine" else np.full(len(n), peak)
    expected = np.where(n < warmup, peak * (n + 1) / warmup, after)
    found = jax.vmap(learning_rate_schedule(kind, peak, floor, warmup, steps))(jnp.arange(steps + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * peak)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("step", 1e-4, 0.0, 0, 10), "schedule"),
        (("cosine", 1e-4, 1e-3, 0, 10), "min_learning_rate"),
        (("constant", 0.0, 0.0, 0, 10), "learning_rate"),
        (("constant", float("nan"), 0.0, 0, 10), "learning_rate"),
        (("constant", 1e-4, 0.0, 10, 10), "warmup"),
    ],
)
def test_a_schedule_that_cannot_be_is_an_error(arguments, word):
    with pytest.raises(InputError, match=word):
        learning_rate_schedule(*arguments)


def test_the_update_is_adamw(params):
    """One step of AdamW by hand: bias-corrected moments give g / (|g| + eps), and the decay is multiplied by the learning
    rate.
    """
    rate, decay, g = 0.1, 0.5, 0.25
    grads = jax.tree.map(lambda p: jnp.full_like(p, g), params)
    new = run(
        make_optimizer(params, optax.constant_schedule(rate), OptimizerConfig(weight_decay=decay, grad_clip_norm=0)),
        params,
        grads,
    )
    decayed, plain = 2.0 - rate * (1.0 + decay * 2.0), 2.0 - rate
    model = new["model"]
    np.testing.assert_allclose(model["embedding"]["embedding"], decayed, rtol=1e-6)
    np.testing.assert_allclose(model["flow_head"]["input"]["kernel"], decayed, rtol=1e-6)
    np.testing.assert_allclose(model["flow_head"]["input"]["bias"], plain, rtol=1e-6)
    np.testing.assert_allclose(model["decoder"]["final_norm"]["scale"], plain, rtol=1e-6)


def test_clipping_scales_the_whole_gradient(params):
    """Two steps with gradients of different size: Adam's moments see the clipped values."""
    grads = jax.tree.map(lambda p: jnp.full_like(p, 3.0), params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    clipped = jax.tree.map(lambda g: jnp.full_like(g, 1 / np.sqrt(count)), grads)
    schedule = optax.constant_schedule(0.1)
    state = make_optimizer(params, schedule, OptimizerConfig(grad_clip_norm=1.0)).init(params)
    _, state = make_optimizer(params, schedule, OptimizerConfig(grad_clip_norm=1.0)).update(grads, state, params)
    reference = make_optimizer(params, schedule, OptimizerConfig(grad_clip_norm=0)).init(params)
    _, reference = make_optimizer(params, schedule, OptimizerConfig(grad_clip_norm=0)).update(clipped, reference, params)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_multipliers_scale_the_learning_rate_and_the_first_match_counts(params):
    grads = jax.tree.map(jnp.ones_like, params)
    multipliers = (("flow_head/.*bias", 0.0), ("flow_head", 0.5))
    new = run(
        make_optimizer(params, optax.constant_schedule(0.1), OptimizerConfig(weight_decay=0.0, lr_multipliers=multipliers)),
        params,
        grads,
    )["model"]
    np.testing.assert_allclose(new["flow_head"]["input"]["bias"], 2.0)
    np.testing.assert_allclose(new["flow_head"]["input"]["kernel"], 1.95, rtol=1e-5)
    np.testing.assert_allclose(new["embedding"]["embedding"], 1.9, rtol=1e-5)


def test_frozen_parameters_are_set_apart_and_put_back(params):
    trainable, rest = split_frozen(params, ["embedding", "norm"])
    assert trainable["model"]["embedding"]["embedding"] is None
    assert rest["model"]["flow_head"]["input"]["kernel"] is None
    assert len(jax.tree.leaves(trainable)) == 2
    merged = merge(trainable, rest)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize(
    "frozen, message", [(["no_such_layer"], "matches no parameter"), (["."], "no parameter to train"), (["("], "regular")]
)
def test_freezing_nothing_or_everything_is_an_error(params, frozen, message):
    with pytest.raises(InputError, match=message):
        split_frozen(params, frozen)


def test_a_multiplier_that_matches_nothing_is_an_error(params):
    with pytest.raises(InputError, match="no_such_layer"):
        make_optimizer(params, optax.constant_schedule(0.1), OptimizerConfig(lr_multipliers=(("no_such_layer", 0.1),)))


@pytest.mark.parametrize(("layers", "one"), [({"layers": 3}, lambda k: k[1]), ({"layers_1": None}, lambda k: k)])
def test_muon_orthogonalizes_each_matrix_of_a_stack_and_leaves_the_rest_to_adam(layers, one):
    """Every singular value of an update ends near the same one; its RMS is what AdamW's usually is."""
    name, count = next(iter(layers.items()))
    lead, rng = (count,) if count else (), np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    attention = {"q": {"kernel": draw(16, 4, 8)}, "o": {"kernel": draw(4, 8, 16), "bias": draw(16)}}
    grads = {"model": {"decoder": {name: {"attention": attention, "mlp": {"down": {"kernel": draw(24, 16)}}}}}}
    params = jax.tree.map(jnp.zeros_like, grads)
    settings = dict(weight_decay=0.0, grad_clip_norm=0.0)
    muon = run(
        make_optimizer(params, optax.constant_schedule(0.1), OptimizerConfig(muon=(r"layers.*kernel$",), **settings)),
        params,
        grads,
    )
    adam = run(make_optimizer(params, optax.constant_schedule(0.1), OptimizerConfig(**settings)), params, grads)
    layer, plain = muon["model"]["decoder"][name], adam["model"]["decoder"][name]
    np.testing.assert_allclose(layer["attention"]["o"]["bias"], plain["attention"]["o"]["bias"], rtol=1e-6)
    for kernel, inputs in (
        (layer["attention"]["q"]["kernel"], 16),
        (layer["attention"]["o"]["kernel"], 32),
        (layer["mlp"]["down"]["kernel"], 24),
    ):
        matrix = np.asarray(one(kernel), np.float64).reshape(inputs, -1)
        values = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * np.sqrt(max(matrix.shape)))
        assert 0.6 < values.min() <= values.max() < 1.3  # what five Newton-Schulz iterations leave of a spread of 1 to 10
        assert 0.5 < np.sqrt((matrix**2).mean()) / (0.1 * 0.2) < 1.3


@pytest.mark.parametrize(
    ("pattern", "message"), [("nothing", "matches no parameter"), ("bias", r"optimizer.muon: model/flow_head/input/bias")]
)
def test_muon_for_what_is_no_matrix_is_an_error(params, pattern, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(params, optax.constant_schedule(1.0), OptimizerConfig(muon=(pattern,)))
