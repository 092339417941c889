"""The training objective against the losses and gradients of both releases, and its own promises."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from safetensors.numpy import load_file

from nextstep_jax.batch import Batch
from nextstep_jax.conversion import names
from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import TimestepDistribution
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.models.param_layouts import stack_layers
from nextstep_jax.objectives import multitask
from tests.conftest import GOLDENS
from tests.released import get_leaf, tiny_model

DRAWS = 4  # noise draws for each image token, in every release


# --- the releases' arrays as a Batch ----------------------------------------------------------------------------------


class Golden:
    """One training file: its batch, and its draws in the order of our places."""

    def __init__(self, name: str):
        self.arrays = arrays = load_file(GOLDENS / f"{name}.safetensors")
        self.summary = json.loads((GOLDENS / f"{name}_grad_summary.json").read_text())
        self.february = "image_filtered_idx" in arrays
        config, self.params = tiny_model()
        self.config = dataclasses.replace(config, train_out_projector=self.february)
        self.model = NextStep(self.config)
        self.ids, labels = arrays["input_ids"], arrays["labels"]
        self.is_image = self.ids == self.config.image_placeholder_id

        latents = self.per_image("latents")
        lengths = [x.shape[1] * x.shape[2] // 4 for x in latents]
        self.image_of = np.repeat(np.arange(len(latents)), lengths)  # of each token, in reading order
        self.kept = arrays["image_filtered_idx" if self.february else "latents_mask"].astype(bool)
        self.batch = Batch(
            text_ids=self.ids.astype(np.int32),
            image_tokens=self.place_tokens(latents),
            is_image=self.is_image,
            positions=np.broadcast_to(np.arange(self.ids.shape[1], dtype=np.int32), self.ids.shape),
            segment_ids=arrays.get("attention_mask", np.ones_like(self.ids)).astype(np.int32),
            text_weight=((labels != -100) & ~self.is_image).astype(np.float32),
            image_weight=self.place(self.kept[self.image_of].astype(np.float32)),
        )

    def per_image(self, name: str) -> list[np.ndarray]:
        """[c, h, w] of each image: one tensor, or a list of them."""
        if name in self.arrays:
            return list(self.arrays[name])
        numbered = sorted((k for k in self.arrays if k.startswith(f"{name}.")), key=lambda k: int(k.rsplit(".", 1)[1]))
        return [self.arrays[k][0] for k in numbered]

    def place(self, values: np.ndarray) -> np.ndarray:
        """[B, S, ...] holding one value for each image token, in reading order."""
        out = np.zeros((*self.ids.shape, *values.shape[1:]), np.float32)
        out[self.is_image] = values
        return out

    def place_tokens(self, latents: list[np.ndarray]) -> np.ndarray:
        """2x2 patches of [c, h, w] latents as tokens (channel, row, column), [B, S, C]."""
        tokens = [
            x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).transpose(1, 3, 0, 2, 4).reshape(-1, x.shape[0] * 4)
            for x in latents
        ]
        return self.place(np.concatenate(tokens))

    def rows(self) -> np.ndarray:
        """[tokens, M]: the row of the stored draws that belongs to each image token, in reading order; -1 without one."""
        drawn = self.kept[self.image_of] if self.february else np.ones(len(self.image_of), bool)
        number = np.cumsum(drawn) - 1
        if self.february and "latents" in self.arrays:  # image by image, the n tokens of one image 4 times in a row
            n = np.bincount(self.image_of)[0]
            rows = (DRAWS * (number // n)[:, None] + np.arange(DRAWS)) * n + (number % n)[:, None]
        else:  # all tokens in order, that whole block 4 times
            rows = np.arange(DRAWS) * drawn.sum() + number[:, None]
        return np.where(drawn[:, None], rows, -1)

    def draws(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """noise [B, n, M, C] and t [B, n, M]."""
        rows = np.zeros((*self.ids.shape, DRAWS), int)
        rows[self.is_image] = self.rows()
        batch, length = self.ids.shape
        limit = length if limit is None else limit
        placed = np.zeros((batch, limit, DRAWS), int)
        for b in range(batch):
            taken = rows[b, self.batch.image_weight[b] > 0]
            placed[b, : len(taken)] = taken[:limit]
        return self.arrays["noise"][placed], self.arrays["t"][placed]

    def loss(self, **options):
        limit = options.get("max_image_targets")
        loss = functools.partial(multitask.multitask_loss, self.model, **options)
        return jax.jit(loss)(self.params, self.batch, *self.draws(limit))


NAMES = ("train", "train_list", "train_feb", "train_feb_list")


@functools.cache
def golden(name: str) -> Golden:
    return Golden(name)


@functools.cache
def compiled(name: str):
    """The loss and its gradients, as a function of (params, batch, noise, t)."""
    loss = functools.partial(multitask.multitask_loss, golden(name).model)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def value_and_grad(name: str):
    g = golden(name)
    return compiled(name)(g.params, g.batch, *g.draws())


# --- against the releases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_losses_match_the_release(name):
    g, ((loss, metrics), _) = golden(name), value_and_grad(name)
    for ours, stored in ((loss, "loss"), (metrics.lm_loss, "lm_loss"), (metrics.im_loss, "im_loss")):
        np.testing.assert_allclose(ours, g.arrays[stored], atol=2e-5, rtol=0, err_msg=stored)
    assert metrics.text.dropped == metrics.image.dropped == 0
    assert metrics.image_targets == np.bincount(g.image_of)[g.kept].sum()
    if "lm_targets" in g.arrays:
        assert metrics.text_targets == g.arrays["lm_targets"]


@pytest.mark.parametrize("name", NAMES)
def test_stored_gradients_match_the_release(name):
    g, (_, grads) = golden(name), value_and_grad(name)
    entries = {e.source: e for e in names.model_entries(g.config)}
    checked = 0
    for key, expected in g.arrays.items():
        if not key.startswith("grad.") or key.endswith(".nonzero_rows"):
            continue
        source = key.removeprefix("grad.").removesuffix(".values")
        found = entries[source].store(np.asarray(get_leaf(grads, entries[source].path)))
        if key.endswith(".values"):
            rows = g.arrays[key.replace(".values", ".nonzero_rows")]
            np.testing.assert_array_equal(np.flatnonzero(np.any(found != 0, axis=1)), rows)
            found = found[rows]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=source)
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_matches_the_releases_summary(name):
    g, (_, grads) = golden(name), value_and_grad(name)
    entries = names.model_entries(g.config)
    assert {e.source for e in entries} == set(g.summary)
    for entry in entries:
        found, expected = entry.store(np.asarray(get_leaf(grads, entry.path), np.float64)), g.summary[entry.source]
        if expected is None:  # no path from this parameter to the loss
            np.testing.assert_array_equal(found, 0)
            continue
        norm, highest = np.linalg.norm(found), np.abs(found).max()
        np.testing.assert_allclose(norm, expected["l2"], rtol=1e-4, err_msg=entry.source)
        np.testing.assert_allclose(found.sum(), expected["sum"], rtol=0, atol=1e-4 * norm * found.size**0.5)
        np.testing.assert_allclose(found.ravel()[:8], expected["first8"], rtol=0, atol=1e-4 * highest, err_msg=entry.source)


@pytest.mark.parametrize("name", ["train_feb", "train_feb_list"])
def test_token_length_weight_matches_the_release(name):
    loss, _ = golden(name).loss(token_length_weight=True)
    np.testing.assert_allclose(loss, golden(name).arrays["loss_token_length_weight"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["train_feb", "train_feb_list"])
def test_input_noise_matches_the_release(name):
    """Strength 0.5, rising from 0 to that over the latent pixels of each image in reading order; targets stay clean."""
    g = golden(name)
    noised = []
    for latents, noise in zip(g.per_image("latents"), g.per_image("noise_strength.input_noise"), strict=True):
        ramp = np.linspace(0, 1, latents[0].size, dtype=np.float32).reshape(latents[0].shape)
        noised.append(latents + 0.5 * ramp * noise)
    loss, metrics = g.loss(input_tokens=g.place_tokens(noised))
    for ours, stored in ((loss, "loss"), (metrics.lm_loss, "lm_loss"), (metrics.im_loss, "im_loss")):
        np.testing.assert_allclose(ours, g.arrays[f"noise_strength.{stored}"], atol=2e-5, rtol=0, err_msg=stored)


# --- promises of our own ----------------------------------------------------------------------------------------------


def test_just_enough_places_change_nothing():
    g, ((loss, _), _) = golden("train_feb"), value_and_grad("train_feb")
    text, image = (int((w > 0).sum(axis=1).max()) for w in multitask.target_weights(g.batch))
    assert text < g.ids.shape[1] and image < g.ids.shape[1]
    tight, metrics = g.loss(max_text_targets=text, max_image_targets=image)
    np.testing.assert_allclose(tight, loss, rtol=1e-6)
    assert metrics.text.losses.shape == (4, text) and metrics.image.losses.shape == (4, image)


def test_overflow_is_counted_and_the_rest_averaged():
    g = golden("train_feb")
    _, full = value_and_grad("train_feb")[0]
    _, metrics = g.loss(max_text_targets=5, max_image_targets=3)
    for part, whole, mean in ((metrics.text, full.text, metrics.lm_loss), (metrics.image, full.image, metrics.im_loss)):
        places = part.weights.shape[1]
        kept, losses = whole.weights[:, :places], whole.losses[:, :places]
        assert part.dropped == (whole.weights > 0).sum() - (kept > 0).sum() > 0
        np.testing.assert_allclose(mean, (kept * losses).sum() / kept.sum(), rtol=1e-5)


def test_losses_of_parts_add_up_to_the_batchs():
    g, ((loss, metrics), _) = golden("train_feb"), value_and_grad("train_feb")
    normalizers = multitask.count_normalizers(g.batch)
    noise, t = g.draws()

    @jax.jit
    def part(params, batch, noise, t):
        loss, metrics = multitask.multitask_loss(g.model, params, batch, noise, t, normalizers=normalizers)
        return loss, metrics.lm_loss, metrics.im_loss

    halves = [part(g.params, *jax.tree.map(lambda x, s=s: x[s], (g.batch, noise, t))) for s in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(np.sum(halves, axis=0), [loss, metrics.lm_loss, metrics.im_loss], rtol=1e-5)


def test_scanned_form_gives_the_same_loss():
    g, ((loss, _), _) = golden("train_list"), value_and_grad("train_list")
    model = NextStep(g.config.with_transformer(scan_layers=True, remat="full"))
    scanned, _ = jax.jit(functools.partial(multitask.multitask_loss, model))(stack_layers(g.params), g.batch, *g.draws())
    np.testing.assert_allclose(scanned, loss, rtol=1e-6)


def test_targets_say_where_they_stand():
    g, ((_, metrics), _) = golden("train"), value_and_grad("train")
    for part, weights in ((metrics.text, g.batch.text_weight), (metrics.image, g.batch.image_weight)):
        found = np.zeros_like(weights)
        taken = np.asarray(part.weights) > 0
        found[np.nonzero(taken)[0], np.asarray(part.positions)[taken]] = 1
        expected = np.array(weights > 0)
        expected[1, np.argmax(g.batch.segment_ids[1])] = False  # the first token after left padding has nothing before it
        expected[:, 0] = False
        np.testing.assert_array_equal(found, expected)


def test_nothing_is_learned_across_segments():
    ids = jnp.array([[1, 1, 2, 2, 2, 0]])
    ones = jnp.ones((1, 6))
    batch = Batch(ids, jnp.zeros((1, 6, 4)), ids > 9, ids, ids, ones, 2 * ones)
    text, image = multitask.target_weights(batch)
    np.testing.assert_array_equal(text, [[1, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(image, 2 * text)


def test_a_batch_without_targets_costs_nothing():
    g = golden("train_list")
    empty = dataclasses.replace(g.batch, text_weight=0 * g.batch.text_weight, image_weight=0 * g.batch.image_weight)
    (value, metrics), grads = compiled("train_list")(g.params, empty, *g.draws())
    assert value == metrics.text_targets == metrics.image_targets == 0
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("limit", "indices", "mask", "dropped"),
    [
        (2, [[1, 3], [0, 1]], [[True, True], [False, False]], 1),
        (4, [[1, 3, 4, 0], [0, 1, 2, 3]], [[True, True, True, False], [False] * 4], 0),
        (None, [[1, 3, 4, 0, 2], [0, 1, 2, 3, 4]], [[True, True, True, False, False], [False] * 5], 0),
    ],
)
def test_gathered_positions(limit, indices, mask, dropped):
    weights = jnp.array([[0, 0.5, 0, 1, 2], [0, 0, 0, 0, 0]])
    found = multitask.gather_positions(weights, limit)
    for ours, expected in zip(found, (indices, mask, dropped), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_draws_have_the_layout_of_the_loss():
    draw = functools.partial(multitask.draw_noise, rows=2, slots=3, draws=4, channels=5)
    noise, t = jax.eval_shape(draw, jax.random.key(0))
    assert noise.shape == (2, 3, 4, 5) and t.shape == (2, 3, 4)


def test_every_draw_is_its_own():
    """Nothing is shared between rows, targets, the draws of one target or its channels; times are logit-normal."""
    noise, t = (np.asarray(x, np.float64) for x in multitask.draw_noise(jax.random.key(0), 4, 50, 5, 16))
    for values in (noise, t):
        assert len(np.unique(values)) > 0.99 * values.size
    for axis in range(4):
        moved = np.moveaxis(noise, axis, 0)
        pairs = [np.corrcoef(moved[i].ravel(), moved[i + 1].ravel())[0, 1] for i in range(len(moved) - 1)]
        assert abs(np.mean(pairs)) < 0.05
    standard = scipy.special.logit(t)
    for values in (noise, standard):
        assert scipy.stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    for same_place in (noise.mean(-1).ravel(), noise.ravel()[: standard.size]):
        assert abs(np.corrcoef(standard.ravel(), same_place)[0, 1]) < 0.1
    for axis in range(3):  # the draws of one target spread as far as those of different ones
        assert 0.8 < np.diff(standard, axis=axis).std() / np.sqrt(2) < 1.2
    other, _ = multitask.draw_noise(jax.random.key(1), 4, 50, 5, 16)
    assert abs(np.corrcoef(other.ravel(), noise.ravel())[0, 1]) < 0.05


def test_the_timestep_distribution_can_be_another():
    noise, t = multitask.draw_noise(jax.random.key(0), 2, 3, 4, 5, TimestepDistribution(mean=20.0))
    np.testing.assert_array_equal(noise, multitask.draw_noise(jax.random.key(0), 2, 3, 4, 5)[0])
    assert t.shape == (2, 3, 4) and t.min() >= 0.9


@pytest.mark.parametrize(("target", "weight"), [("data", lambda t: (1 - t) ** 2), ("noise", lambda t: t**2)])
def test_the_error_can_be_that_of_what_the_velocity_implies(target, weight):
    g = golden("train_list")
    noise, t = g.draws()
    t = np.broadcast_to(np.float32(0.3), t.shape)
    loss = jax.jit(functools.partial(multitask.multitask_loss, NextStep(g.config)), static_argnames="error_target")
    _, plain = loss(g.params, g.batch, noise, t)
    _, weighted = loss(g.params, g.batch, noise, t, error_target=target)
    np.testing.assert_allclose(weighted.im_loss, weight(0.3) * plain.im_loss, rtol=1e-5)
    np.testing.assert_allclose(weighted.lm_loss, plain.lm_loss, rtol=1e-6)


def test_input_noise_rises_along_each_image_and_leaves_the_rest():
    is_image = np.array([[0, 1, 1, 1, 0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0, 0, 1, 1, 1]], bool)
    segments = np.array([[1] * 7 + [2] * 3, [1] * 7 + [0] * 3])
    zeros = np.zeros(is_image.shape)
    tokens = np.ones((*is_image.shape, 5000), np.float32)
    batch = Batch(zeros, tokens, is_image, zeros, segments, zeros, zeros)
    noised = np.asarray(multitask.add_input_noise(jax.random.key(0), batch, 0.5))
    expected = [[0, 0, 0.25, 0.5, 0, 0, 0.5, 0, 0, 0], [0, 0.125, 0.25, 0.375, 0.5, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose((noised - tokens).std(-1), expected, atol=0.02)
    np.testing.assert_array_equal(noised[np.equal(expected, 0)], 1)


def test_half_precision_keeps_losses_and_counts_in_float32():
    g = golden("train_list")
    model = NextStep(g.config.with_transformer(dtype="bfloat16"))
    noise, t = g.draws()
    loss, metrics = jax.jit(functools.partial(multitask.multitask_loss, model))(g.params, g.batch, noise, t)
    for value in (loss, metrics.lm_loss, metrics.im_loss, metrics.text.losses, metrics.image.losses):
        assert value.dtype == jnp.float32
    # Each loss is the float64 mean of what the head says, of which a rounding to bfloat16 would leave two digits.
    taken = np.asarray(metrics.image.weights, np.float64)
    exact = (taken * np.asarray(metrics.image.losses, np.float64)).sum() / taken.sum()
    np.testing.assert_allclose(metrics.im_loss, exact, rtol=1e-6)
    taken = np.asarray(metrics.text.weights, np.float64)
    exact = (taken * np.asarray(metrics.text.losses, np.float64)).sum() / taken.sum()
    np.testing.assert_allclose(metrics.lm_loss, exact, rtol=1e-6)
    losses = np.asarray(metrics.image.losses)[np.asarray(metrics.image.weights) > 0]
    assert np.any(losses != losses.astype(jnp.bfloat16))


def test_normalizers_count_thousands_exactly():
    ones = np.ones((3, 1001), np.float32)
    batch = Batch(ones.astype(int), np.zeros((3, 1001, 4)), ones > 0, ones.astype(int), ones.astype(int), ones, ones / 3)
    found = multitask.count_normalizers(batch)
    assert (found.text, found.image_tokens) == (3000, 3003) and found.text.dtype == jnp.float32
    np.testing.assert_allclose(found.image, 1000, rtol=1e-6)


def test_draws_of_the_wrong_shape_are_refused():
    g = golden("train_list")
    noise, t = g.draws()
    loss = functools.partial(multitask.multitask_loss, g.model)
    with pytest.raises(InputError, match=r"noise must be \[2, 33, M, 64\]"):
        jax.eval_shape(loss, g.params, g.batch, noise[:, :5], t[:, :5])


def test_input_noise_needs_noised_inputs():
    g = golden("train_list")
    model = NextStep(dataclasses.replace(g.config, input_noise=0.5))
    with pytest.raises(InputError, match="input_noise"):
        multitask.multitask_loss(model, g.params, g.batch, *g.draws())
