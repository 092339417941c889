"""The training objective: cross-entropy on text and velocity error on image tokens (paper section 4.2).

    loss = lambda_text * CE + lambda_image * MSE,  MSE = |v(x_t, t | hidden) - (x - noise)|^2 / C,  x_t = t x + (1 - t) noise

Each head runs only on the positions that it is trained on, gathered row by row into a fixed number of slots. A row with
more targets than slots loses the last ones, and the loss says how many.

Letters: B batch, S sequence, D model width, C channels of one image token, V vocabulary; n slots of a head in each row,
M draws of noise and time for each image token.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from nextstep_jax.batch import Batch
from nextstep_jax.errors import InputError
from nextstep_jax.flow.paths import RELEASED_TIMESTEPS, TimestepDistribution, error_weight, interpolate, velocity_target
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.objectives.cross_entropy import cross_entropy
from nextstep_jax.sharding.rules import constrain

Array = jax.Array


class Normalizers(NamedTuple):
    """What the means divide by: summed weights of the targets that find a slot, and the number of image tokens.

    Computed from a whole batch, they let the losses of its parts add up to the batch's (gradient accumulation).
    """

    text: Array
    image: Array
    image_tokens: Array


class Targets(NamedTuple):
    """One head's targets and losses, for metrics such as the loss by kind of data.

    Attributes:
      positions: [B, n] int32, where in the row each target stands.
      weights: [B, n] float32; 0 where a slot is empty.
      losses: [B, n] float32, undefined where the weight is 0.
      dropped: [] int32, targets that found no slot.
    """

    positions: Array
    weights: Array
    losses: Array
    dropped: Array


class Metrics(NamedTuple):
    """What `multitask_loss` reports beside the loss.

    Attributes:
      lm_loss, im_loss: [] float32, the two means before their weights.
      text_targets, image_targets: [] int32, how many targets count.
      text, image: the single targets.
    """

    lm_loss: Array
    im_loss: Array
    text_targets: Array
    image_targets: Array
    text: Targets
    image: Targets


def multitask_loss(
    model: NextStep,
    params: dict,
    batch: Batch,
    noise: Float[Array, "B n M C"],
    t: Float[Array, "B n M"],
    *,
    max_text_targets: int | None = None,
    max_image_targets: int | None = None,
    normalizers: Normalizers | None = None,
    token_length_weight: bool = False,
    error_target: str = "velocity",
    input_tokens: Float[Array, "B S C"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch, and what it is made of.

    Args:
      noise, t: [B, n, M, C] and [B, n, M] draws for the slots of the image targets, see `draw_noise`.
      max_text_targets, max_image_targets: the most targets of each head in a row; None: as many as positions.
      normalizers: of the batch that this one is a part of; None: its own.
      token_length_weight: weigh the two means by the number of text targets and of image tokens as well (an option of the
        February 2026 release), instead of by their lambdas alone.
      error_target: whose squared error the flow head's loss is, one of flow.paths.ERROR_TARGETS: a weight over times.
      input_tokens: [B, S, C] the image tokens as the transformer sees them, where these are noised; targets stay clean.

    Returns:
      [] float32 loss and Metrics.

    Raises:
      InputError: draws of the wrong shape, or a config with input noise and no `input_tokens`.
    """
    config = model.config
    if config.input_noise and input_tokens is None:
        raise InputError(f"input_noise is {config.input_noise}, but the loss was given no noised input tokens")
    if normalizers is None:
        normalizers = count_normalizers(batch, max_text_targets, max_image_targets)

    def call(method: str, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    seen = batch if input_tokens is None else dataclasses.replace(batch, image_tokens=input_tokens)
    with jax.named_scope("transformer"):
        hidden = call("__call__", seen)
    with jax.named_scope("language_head"):
        text = _text_losses(call, hidden, batch, max_text_targets)
    with jax.named_scope("flow_head"):
        image = _image_losses(call, hidden, batch, max_image_targets, noise, t, config.train_out_projector, error_target)

    lm_loss = _over(jnp.sum(text.weights * text.losses), normalizers.text)
    im_loss = _over(jnp.sum(image.weights * image.losses), normalizers.image)
    text_scale: Array | float = config.text_loss_weight
    image_scale: Array | float = config.image_loss_weight
    if token_length_weight:
        tokens = normalizers.text + normalizers.image_tokens
        text_scale = _over(text_scale * normalizers.text, tokens)
        image_scale = _over(image_scale * normalizers.image_tokens, tokens)
    loss = text_scale * lm_loss + image_scale * im_loss
    return loss, Metrics(lm_loss, im_loss, jnp.sum(text.weights > 0), jnp.sum(image.weights > 0), text, image)


def target_losses(
    model: NextStep,
    params: dict,
    batch: Batch,
    noise: Float[Array, "B n M C"],
    t: Float[Array, "B n M"],
    *,
    max_text_targets: int | None,
    max_image_targets: int | None,
) -> tuple[Targets | None, Targets]:
    """What `multitask_loss` averages: the cross-entropy of each text target, and the velocity error of each image target.

    Args:
      max_text_targets: 0 leaves the language head out, and there is no first result.
    """

    def call(method: str, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    hidden, project_out = call("__call__", batch), model.config.train_out_projector
    text = None if max_text_targets == 0 else _text_losses(call, hidden, batch, max_text_targets)
    return text, _image_losses(call, hidden, batch, max_image_targets, noise, t, project_out, "velocity")


def draw_noise(
    key: Array, rows: int, slots: int, draws: int, channels: int, timesteps: TimestepDistribution = RELEASED_TIMESTEPS
) -> tuple[Float[Array, "B n M C"], Float[Array, "B n M"]]:
    """Noise [B, n, M, C] and times [B, n, M] for `multitask_loss`.

    Args:
      rows, slots, draws, channels: B, n, M, C.
      timesteps: their distribution.
    """
    noise_key, time_key = jax.random.split(key)
    shape = (rows, slots, draws)
    noise = constrain(jax.random.normal(noise_key, (*shape, channels)), "batch", "sequence", None, None)
    return noise, constrain(timesteps.sample(time_key, shape), "batch", "sequence", None)


def add_input_noise(key: Array, batch: Batch, strength: float) -> Float[Array, "B S C"]:
    """Image tokens [B, S, C] as the transformer sees them with noise on its input: normal noise of deviation
    strength * k / (n - 1) on token k of an image of n, in raster order (the February 2026 release ramps over latent pixels).
    """
    inside = batch.is_image & (batch.segment_ids > 0)
    place = jnp.arange(inside.shape[1])
    before = jnp.pad(inside[:, :-1], ((0, 0), (1, 0)))
    first = jax.lax.cummax(jnp.where(inside & ~before, place, 0), axis=1)
    after = jnp.pad(inside[:, 1:], ((0, 0), (0, 1)))
    last = jax.lax.cummin(jnp.where(inside & ~after, place, inside.shape[1]), axis=1, reverse=True)
    ramp = jnp.where(inside, (place - first) / jnp.maximum(last - first, 1), 0)
    noise = constrain(jax.random.normal(key, batch.image_tokens.shape), "batch", "sequence", None)
    return batch.image_tokens + strength * ramp[..., None] * noise


def count_normalizers(batch: Batch, max_text_targets: int | None = None, max_image_targets: int | None = None) -> Normalizers:
    """What the means of a batch divide by, for heads with these limits."""
    text, image = target_weights(batch)
    image_tokens = jnp.sum(batch.is_image & (batch.segment_ids > 0))
    return Normalizers(_kept(text, max_text_targets), _kept(image, max_image_targets), image_tokens.astype(jnp.float32))


def target_weights(batch: Batch) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Text and image weights [B, S] of what each hidden state predicts: 0 at the end of a segment, where nothing follows."""
    inside = (_next(batch.segment_ids) == batch.segment_ids).at[:, -1].set(False)
    return _next(batch.text_weight) * inside, _next(batch.image_weight) * inside


def gather_positions(
    weights: Float[Array, "B S"], limit: int | None
) -> tuple[Int[Array, "B n"], Bool[Array, "B n"], Int[Array, ""]]:
    """The slots of a head: the first `limit` positions of each row with a weight.

    Args:
      weights: [B, S] >= 0.
      limit: n; None for S.

    Returns:
      indices [B, n] into the row, all different: the weighted positions in order, then others to fill the slots;
      mask [B, n], which slots are taken; and how many weighted positions found no slot, [] int32.
    """
    limit = weights.shape[1] if limit is None else min(limit, weights.shape[1])
    wanted = weights > 0
    indices = jnp.argsort(~wanted, axis=1, stable=True)[:, :limit]
    count = jnp.sum(wanted, axis=1)
    return indices, jnp.arange(limit) < count[:, None], jnp.sum(jnp.maximum(count - limit, 0))


# --- the two heads ----------------------------------------------------------------------------------------------------


def _text_losses(call: Callable, hidden: Array, batch: Batch, limit: int | None) -> Targets:
    weights, _ = target_weights(batch)
    indices, mask, dropped = gather_positions(weights, limit)
    targets = _take(_next(batch.text_ids), indices)
    states = _take(hidden, indices)
    losses = cross_entropy(states.reshape(-1, states.shape[-1]), call("language_kernel"), targets.reshape(-1))
    return Targets(indices + 1, _take(weights, indices) * mask, losses.reshape(targets.shape), dropped)


def _image_losses(
    call: Callable, hidden: Array, batch: Batch, limit: int | None, noise: Array, t: Array, project_out: bool, target: str
) -> Targets:
    _, weights = target_weights(batch)
    indices, mask, dropped = gather_positions(weights, limit)
    x = _take(_next(batch.image_tokens), indices)[:, :, None]
    if noise.shape[:2] != indices.shape or noise.shape[3:] != x.shape[3:] or t.shape != noise.shape[:3]:
        expected = f"[{indices.shape[0]}, {indices.shape[1]}, M, {x.shape[3]}]"
        raise InputError(f"noise must be {expected} and t without its last axis, found {noise.shape} and {t.shape}")
    condition = _take(hidden, indices)
    if project_out:
        condition = call("project_out", condition)
    points = interpolate(x, noise, t).reshape(-1, noise.shape[3])
    velocity = call("velocity", points, t.reshape(-1), condition.reshape(-1, condition.shape[-1])).reshape(noise.shape)
    errors = jnp.mean(jnp.square(velocity - velocity_target(x, noise)), axis=3)
    losses = jnp.mean(errors * error_weight(target, t), axis=2)
    return Targets(indices + 1, _take(weights, indices) * mask, losses, dropped)


def _next(x: Array) -> Array:
    """[B, S, ...] moved by one, so that position s holds s + 1."""
    return jnp.roll(x, -1, axis=1)


def _take(x: Array, indices: Array) -> Array:
    """Entries [B, n, ...] of x [B, S, ...] at indices [B, n]."""
    indices = indices.reshape(*indices.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, indices, axis=1, mode="promise_in_bounds")


def _kept(weights: Array, limit: int | None) -> Array:
    indices, mask, _ = gather_positions(weights, limit)
    return jnp.sum(_take(weights, indices) * mask)


def _over(total: Array, weight: Array) -> Array:
    """total / weight, and 0 where there is nothing to average."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
