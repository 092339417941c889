"""Parity of the training objective: losses and the gradient of every parameter, for both releases' ways of training.

Letters: B rows, S positions, C channels of an image token, M draws of noise and time for each image token.
"""

import dataclasses
import functools

import jax
import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.conversion.names import Entry, model_entries
from nextstep_jax.conversion.parity.goldens import GoldenFile, Goldens
from nextstep_jax.conversion.parity.reference import (
    Reference,
    padded_batch,
    place,
    released_batch,
    tokens_of,
    transformer_pass,
)
from nextstep_jax.conversion.parity.report import EXACT, GRADIENT, ROUNDING, SINGLE_PASS, Report
from nextstep_jax.errors import InputError
from nextstep_jax.models.nextstep import NextStep
from nextstep_jax.objectives.multitask import count_normalizers, multitask_loss

AUGUST = ("train", "train_list")
FEBRUARY = ("train_feb", "train_feb_list")
IGNORED = -100  # a label that is no target


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """All training files."""
    for name in (*AUGUST, *FEBRUARY):
        summary = goldens.json(f"{name}_grad_summary.json")
        _case(goldens.arrays(name), summary, name in FEBRUARY, reference, report)


def _case(golden: GoldenFile, summary: dict, february: bool, reference: Reference, report: Report) -> None:
    name, made = golden.name, golden.settings
    config = dataclasses.replace(
        reference.config,
        train_out_projector=february,
        text_loss_weight=made.get("lm_loss_weight", reference.config.text_loss_weight),
        image_loss_weight=made.get("image_loss_weight", made.get("im_loss_weight", reference.config.image_loss_weight)),
    )
    ids, labels, latents = golden["input_ids"], golden["labels"], golden.take("latents")
    kept = golden["image_filtered_idx" if february else "latents_mask"] > 0
    batch = released_batch(config, ids, latents, None if february else golden["attention_mask"])
    lengths = [len(tokens) for tokens in tokens_of(latents, config.patch)]
    batch = dataclasses.replace(
        batch,
        text_weight=((labels != IGNORED) & ~batch.is_image).astype(np.float32),
        image_weight=place(batch.is_image, [np.repeat(kept, lengths)]),
    )
    repeats = made.get("fm_head_batch_mul", config.flow_head.batch_mul)
    if not february:
        draws = _repeated_block(np.ones(sum(lengths), bool), repeats)
    elif "latents" in golden:
        draws = _repeated_images(kept, lengths[0], repeats)
    else:
        draws = _repeated_block(np.repeat(kept, lengths), repeats)
    report.compare(f"{name}.t", jax.nn.sigmoid(golden["u"]), golden["t"], ROUNDING)
    if february:
        hidden = transformer_pass(reference, batch).hidden
        report.compare(f"{name}.final_hidden", hidden, golden["final_hidden"], SINGLE_PASS)

    is_image, batch = batch.is_image, padded_batch(batch)
    placed = np.zeros((*batch.shape, repeats), int)
    placed[: len(ids), : ids.shape[1]][is_image] = draws
    noise, t = (_in_places(golden[values], batch, placed) for values in ("noise", "t"))
    step = functools.partial(_step, NextStep(config), february, reference.params, batch, noise, t)
    results, gradients = step(batch.image_tokens)
    for stored, ours in results.items():
        bound = EXACT if stored in ("lm_targets", "image_tokens") else SINGLE_PASS
        report.compare(f"{name}.{stored}", ours, golden[stored], bound)
    input_noise = golden.take("noise_strength.input_noise")
    if input_noise:
        noised = _noised(latents, input_noise, made["noise_strength_case"])
        results, _ = step(padded_batch(released_batch(config, ids, noised)).image_tokens)
        for stored in ("loss", "lm_loss", "im_loss"):
            report.compare(f"{name}.noise_strength.{stored}", results[stored], golden[f"noise_strength.{stored}"], SINGLE_PASS)
    gradients = {entry.source: (entry, _store(entry, gradients)) for entry in model_entries(config)}
    _stored_gradients(golden, gradients, report)
    _summary(name, summary, gradients, report)


@functools.partial(jax.jit, static_argnames=("model", "february"))
def _step(model: NextStep, february: bool, params: dict, batch: Batch, noise, t, input_tokens):
    """Everything a training file stores, under its names, and the gradients."""
    loss = functools.partial(multitask_loss, model, batch=batch, noise=noise, t=t, input_tokens=input_tokens)
    (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    results = {"loss": value, "lm_loss": metrics.lm_loss, "im_loss": metrics.im_loss}
    if february:
        results |= {"lm_targets": metrics.text_targets, "image_tokens": count_normalizers(batch).image_tokens}
        results["loss_token_length_weight"], _ = loss(params, token_length_weight=True)
    return results, gradients


# --- the releases' draws in our places --------------------------------------------------------------------------------


def _repeated_block(drawn: np.ndarray, repeats: int) -> np.ndarray:
    """Rows [tokens, M] of the stored draws: the drawn tokens in order, that whole block M times. -1: not drawn."""
    rows = (np.cumsum(drawn) - 1)[:, None] + drawn.sum() * np.arange(repeats)
    return np.where(drawn[:, None], rows, -1)


def _repeated_images(kept: np.ndarray, length: int, repeats: int) -> np.ndarray:
    """Rows [tokens, M] of the stored draws: image by image, the tokens of one image M times. -1: not drawn."""
    image = (np.cumsum(kept) - 1)[:, None, None]
    rows = (repeats * image + np.arange(repeats)) * length + np.arange(length)[:, None]
    return np.where(kept[:, None, None], rows, -1).reshape(-1, repeats)


def _in_places(values: np.ndarray, batch: Batch, draws: np.ndarray) -> np.ndarray:
    """[B, S, M, ...] for `multitask_loss`, whose places take a row's image targets in order, from draws [B, S, M]."""
    count = draws[batch.is_image].max(initial=-1) + 1
    if count != len(values):
        raise InputError(f"{len(values)} draws of noise and time are stored, the images take {count}")
    places = np.zeros((*draws.shape, *values.shape[1:]), np.float32)
    for b, targets in enumerate(batch.image_weight > 0):
        places[b, : targets.sum()] = values[draws[b, targets]]
    return places


def _noised(latents: list[np.ndarray], noise: list[np.ndarray], strength: float) -> list[np.ndarray]:
    """The February release's input noise: from none at an image's first latent pixel to `strength` at its last."""
    noised = []
    for clean, draw in zip(latents, noise, strict=True):
        ramp = np.linspace(0, 1, clean[0, 0].size, dtype=np.float32).reshape(clean[0, 0].shape)
        noised.append(clean + np.float32(strength) * ramp * draw)
    return noised


# --- gradients --------------------------------------------------------------------------------------------------------


def _store(entry: Entry, gradients: dict) -> np.ndarray:
    """A parameter's gradient in the released layout."""
    return entry.store(np.asarray(functools.reduce(lambda node, key: node[key], entry.path.split("/"), gradients)))


def _stored_gradients(golden: GoldenFile, gradients: dict[str, tuple[Entry, np.ndarray]], report: Report) -> None:
    """The gradients stored whole, or by their rows that are not 0."""
    for name in [name for name in golden if name.startswith("grad.")]:
        source = name.removeprefix("grad.").removesuffix(".nonzero_rows").removesuffix(".values")
        if source not in gradients:
            raise InputError(f"{golden.name}.{name}: the model has no parameter {source}")
        _, ours = gradients[source]
        if name.endswith(".nonzero_rows"):
            report.compare(f"{golden.name}.{name}", np.flatnonzero(ours.any(axis=1)), golden[name], EXACT)
            continue
        if name.endswith(".values"):
            ours = ours[golden[f"grad.{source}.nonzero_rows"]]
        report.compare(f"{golden.name}.{name}", ours, golden[name], GRADIENT, relative=True)


def _summary(name: str, summary: dict, gradients: dict[str, tuple[Entry, np.ndarray]], report: Report) -> None:
    """Norm, sum and first entries of every gradient, in one row for each parameter.

    All three are compared in units in which GRADIENT bounds them: the norm in itself, an entry in the tensor's largest, and
    the sum in what it could be at that norm (norm * sqrt(size)), because entries of either sign nearly cancel in it.
    """
    if set(summary) != set(gradients):
        differing = sorted(set(summary) ^ set(gradients))
        raise InputError(f"{name}_grad_summary.json: not the model's parameters, they differ in {', '.join(differing)}")
    for source, (entry, ours) in gradients.items():
        row, stored = f"{name}_grad_summary.{source}", summary[source]
        if stored is None:  # no path from this parameter to the loss
            report.compare(row, np.abs(ours).max(), 0.0, EXACT)
            continue
        if tuple(stored["shape"]) != entry.source_shape:
            raise InputError(f"{row}: shape {stored['shape']}, expected {list(entry.source_shape)}")
        ours = ours.astype(np.float64)
        norms = [stored[key] for key in ("l2", "l2_f64") if key in stored]
        norm, first = stored["l2"], np.asarray(stored["first8"])
        largest = min(np.abs(ours).max(), norm)
        units = np.array([norm] * len(norms) + [norm * ours.size**0.5] + [largest] * first.size)
        units[units == 0] = 1
        found = np.array([np.linalg.norm(ours)] * len(norms) + [ours.sum(), *ours.ravel()[: first.size]])
        expected = np.array([*norms, stored["sum"], *first])
        report.compare(row, found / units, expected / units, GRADIENT)
