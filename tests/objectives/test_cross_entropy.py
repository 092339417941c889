"""Cross-entropy by slices of the vocabulary against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextstep_jax.objectives.cross_entropy import SLICE, _slices, cross_entropy


def _problem(positions=7, width=5, vocab=37, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(positions, width)), dtype)
    kernel = jnp.asarray(rng.normal(size=(width, vocab)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab, positions))
    return hidden, kernel, targets, jnp.asarray(rng.random(positions), jnp.float32)


def _plain(hidden, kernel, targets):
    log_probabilities = jax.nn.log_softmax(hidden @ kernel.astype(hidden.dtype))
    return -jnp.take_along_axis(log_probabilities, targets[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("slice_size", [1, 5, 36, 37])
def test_value_and_gradients_equal_the_plain_ones(slice_size):
    hidden, kernel, targets, weights = _problem()

    def total(loss):
        return jax.value_and_grad(lambda h, k: jnp.sum(weights * loss(h, k)), argnums=(0, 1))(hidden, kernel)

    found = total(lambda h, k: cross_entropy(h, k, targets, slice_size))
    expected = total(lambda h, k: _plain(h, k, targets))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_slices_are_whole_registers_wide_where_the_vocabulary_is():
    """A gathered slice of another width is laid out anew on TPUs. A kernel split over the vocabulary stays where it is."""
    shapes = jax.eval_shape(lambda: _slices(jnp.zeros((3, 152_064)), SLICE))
    assert shapes[0].shape == (22, 3, 54 * 128) and 54 * 128 % 256 == 0
    assert jax.eval_shape(lambda: _slices(jnp.zeros((3, 1920)), 200))[0].shape == (15, 3, 128)  # not ten of 192
    assert jax.eval_shape(lambda: _slices(jnp.zeros((3, 200)), 64))[0].shape == (4, 3, 50)
    hidden, kernel, targets, _ = _problem(vocab=768)
    assert _slices(kernel, 300)[0].shape[0] == 3
    np.testing.assert_allclose(cross_entropy(hidden, kernel, targets, 300), _plain(hidden, kernel, targets), atol=2e-6)


def test_huge_logits_stay_finite():
    hidden, kernel, targets, _ = _problem()
    found = cross_entropy(1e3 * hidden, kernel, targets, 8)
    np.testing.assert_allclose(found, _plain(1e3 * hidden, kernel, targets), rtol=1e-5)


def test_half_precision_keeps_float32_sums_and_the_kernels_dtype():
    hidden, kernel, targets, weights = _problem(width=64, vocab=200, dtype=jnp.bfloat16)

    def total(loss, h):
        return jax.value_and_grad(lambda h, k: jnp.sum(weights * loss(h, k)), argnums=(0, 1))(h, kernel)

    value, (to_hidden, to_kernel) = total(lambda h, k: cross_entropy(h, k, targets, 64), hidden)
    exact, (exact_hidden, exact_kernel) = total(lambda h, k: _plain(h, k, targets), hidden.astype(jnp.float32))
    assert value.dtype == jnp.float32 and to_hidden.dtype == jnp.bfloat16 and to_kernel.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=5e-3)
    np.testing.assert_allclose(to_hidden.astype(jnp.float32), exact_hidden, atol=0.02 * float(jnp.abs(exact_hidden).max()))
    np.testing.assert_allclose(to_kernel, exact_kernel, atol=0.02 * float(jnp.abs(exact_kernel).max()))


def test_half_precision_sums_are_those_of_float64():
    """Products of bfloat16 numbers are exact in float32: only sums differ from float64, over 512 slices."""
    hidden, kernel, targets, weights = _problem(positions=5, width=96, vocab=4096, dtype=jnp.bfloat16)
    hidden = hidden / 8
    h, k = (np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (hidden, kernel))
    logits = h @ k
    normalizer = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    expected = normalizer - logits[np.arange(5), targets]
    found, gradients = jax.vjp(lambda h, k: cross_entropy(h, k, targets, 8), hidden, kernel)
    np.testing.assert_allclose(found, expected, rtol=3e-6)
    to_logits = (np.exp(logits - normalizer[:, None]) - np.eye(4096)[np.asarray(targets)]) * np.asarray(weights)[:, None]
    to_hidden, to_kernel = gradients(weights)
    rounded = np.asarray(jnp.asarray(to_logits, jnp.float32).astype(jnp.bfloat16), np.float64)
    for ours, exact, digits in ((to_hidden, rounded @ k.T, 2**-8), (to_kernel, h.T @ rounded, 2**-12)):
        ours = np.asarray(ours.astype(jnp.float32), np.float64)
        assert np.abs(ours - exact).max() < 1.5 * digits * np.abs(exact).max()


def _equations(jaxpr):
    """Every equation, those inside loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)
                elif hasattr(inner, "jaxpr"):
                    yield from _equations(inner.jaxpr)


def test_half_precision_products_are_summed_in_float32():
    """A compiler may do so unasked; here it is asked."""
    hidden, kernel, targets, _ = _problem(dtype=jnp.bfloat16)
    gradient = jax.grad(lambda h, k: cross_entropy(h, k, targets, 8).sum(), argnums=(0, 1))
    products = [e for e in _equations(jax.make_jaxpr(gradient)(hidden, kernel).jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 4  # logits twice, and the two gradients
    assert all(equation.outvars[0].aval.dtype == jnp.float32 for equation in products)


def test_logits_of_all_ids_never_exist():
    """Neither forward nor backward makes an array of P * V entries: the largest is a slice's logits or the kernel."""
    positions, width, vocab, slice_size = 512, 8, 4096, 256
    hidden, kernel, targets, _ = _problem(positions, width, vocab)
    gradient = jax.grad(lambda h, k: cross_entropy(h, k, targets, slice_size).sum(), argnums=(0, 1))
    equations = _equations(jax.make_jaxpr(gradient)(hidden, kernel).jaxpr)
    sizes = [variable.aval.size for equation in equations for variable in equation.outvars]
    assert max(sizes) == positions * slice_size  # so the walk does see inside the loops
