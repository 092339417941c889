"""Parity of whole generations: prompts, guidance, tokens end to end and teacher-forced, latents, images.

Letters: R rows (guidance branches side by side), B images, n tokens, C channels of a token.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.conversion.parity.reference import (
    Reference,
    image_tokenizer,
    run,
    to_nchw,
    to_nhwc,
)
from nextstep_jax.conversion.parity.report import (
    END_TO_END,
    EXACT,
    LATENTS,
    LEVELS,
    SINGLE_PASS,
    GoldenFile,
    Goldens,
    Report,
)
from nextstep_jax.data.images import to_float, to_uint8
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.errors import InputError
from nextstep_jax.generation import decode
from nextstep_jax.generation.prompts import EncodedImage, Part, Row, area_prefix, make_row
from nextstep_jax.generation.settings import Settings
from nextstep_jax.models.forms import fuse_projections
from nextstep_jax.models.image_tokenizer import (
    ImageTokenizer,
    Posterior,
    patchify,
    sample_posterior,
    scale_latents,
    unpatchify,
    unscale_latents,
)
from nextstep_jax.models.layers import layer_norm
from nextstep_jax.models.nextstep import NextStep, gen_pos_embed


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """Every case of cases.json -> e2e."""
    fused = fuse_projections(reference.params)
    for case, values in reference.cases["e2e"].items():
        _case(goldens, goldens.arrays(case), values, reference, fused, report)


def _settings(values: dict) -> Settings:
    names = {
        "cfg_schedule": "schedule",
        "timesteps_shift": "shift",
        "num_sampling_steps": "steps",
        "use_norm": "normalize_tokens",
    }
    names |= {"cfg_img": "image_cfg", "cfg": "cfg"}
    known = {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
    return Settings(sampler="august2025", negative=values["negative_prompt"] or "", **known)


def _case(goldens: Goldens, golden: GoldenFile, values: dict, reference: Reference, params: dict, report: Report) -> None:
    name, settings = golden.name, _settings(values)
    config = dataclasses.replace(
        reference.config.with_transformer(fused_projections=True), use_gen_pos_embed=values["use_gen_pos_embed"]
    )
    tokenizer_config, tokenizer_params = image_tokenizer(goldens, values["vae"])
    tokens = golden["tokens"]
    images, count = tokens.shape[:2]
    h, w = (side // config.patch for side in golden["final_latents"].shape[2:])

    sources: list[EncodedImage] = []
    if "source_uint8" in golden:
        sources = _encode_sources(golden, tokenizer_config, tokenizer_params, config.patch, report)
    how = settings.token_settings(bool(sources))
    rows = _rows(values, settings, how.branches, sources, reference, h, w)
    prompt = _align(rows, golden["input_ids"].shape[1], config.pad_id)
    mask = np.arange(prompt.text_ids.shape[1]) >= prompt.text_ids.shape[1] - prompt.lengths[:, None]
    report.compare(f"{name}.input_ids", prompt.text_ids, golden["input_ids"], EXACT)
    report.compare(f"{name}.attention_mask", mask, golden["attention_mask"], EXACT)
    if "inputs_embeds" in golden:
        embeddings = run(NextStep(config), params, *prompt[:3], method="embed")
        report.compare(f"{name}.inputs_embeds", embeddings, golden["inputs_embeds"], SINGLE_PASS, where=mask)
    guidance = settings.guidance(count)
    report.compare(f"{name}.cfg_per_token", guidance, golden["cfg_per_token"], 1e-6, relative=True)

    noise = golden["noise"]
    noise = noise[:, :, np.arange(images) % noise.shape[2]]  # the releases tile noise over the batch
    state = decode.start(config, params, prompt, how.branches, count)
    conditions = _teacher_forced(config, params, how.branches, state, tokens)
    report.compare(f"{name}.c", conditions, golden["c"], SINGLE_PASS)
    projected = run(NextStep(config), params, golden["c"], method="project_out")
    if "c_proj" in golden:
        report.compare(f"{name}.c_proj", projected, golden["c_proj"], SINGLE_PASS)
    _flow_from_stored(config, params, how, projected, noise, guidance, golden, report)

    state = decode.advance(config, how, params, state, noise, guidance, count)
    report.compare(f"{name}.tokens", state.tokens, tokens, END_TO_END)
    latents = unscale_latents(unpatchify(state.tokens, h, w, config.patch), tokenizer_config)
    report.compare(f"{name}.final_latents", to_nchw(latents), golden["final_latents"], LATENTS)
    if "image" in golden:
        model = ImageTokenizer(tokenizer_config)
        stored = run(model, tokenizer_params, to_nhwc(golden["final_latents"]), method="decode")
        report.compare(f"{name}.image", to_nchw(stored), golden["image"], SINGLE_PASS)
        ours = run(model, tokenizer_params, latents, method="decode")
        report.compare(f"{name}.image_uint8", to_uint8(np.asarray(ours)), golden["image_uint8"], LEVELS)


def _encode_sources(golden: GoldenFile, config, params: dict, patch: int, report: Report) -> list[EncodedImage]:
    """The sources once per copy: for the conditional rows, then for the image-only rows."""
    name, pixels = golden.name, to_float(golden["source_uint8"])
    if "pixel_values" in golden:
        report.compare(f"{name}.pixel_values", to_nchw(pixels), golden["pixel_values"], 1e-6)
    copies = golden["latents_in"].shape[0] // pixels.shape[0]
    posterior = run(ImageTokenizer(config), params, np.tile(pixels, (copies, 1, 1, 1)), method="encode")
    report.compare(f"{name}.posterior_mean", to_nchw(posterior.mean), golden["posterior_mean"], SINGLE_PASS)
    report.compare(f"{name}.posterior_logvar", to_nchw(posterior.logvar), golden["posterior_logvar"], SINGLE_PASS)
    stored = Posterior(*(jnp.asarray(to_nhwc(golden[f"posterior_{part}"])) for part in ("mean", "logvar")))
    latents = scale_latents(sample_posterior(stored, to_nhwc(golden["posterior_noise"]), config), config)
    report.compare(f"{name}.latents_in", to_nchw(latents), golden["latents_in"], SINGLE_PASS)
    h, w = latents.shape[1] // patch, latents.shape[2] // patch
    return [EncodedImage(np.asarray(tokens), h, w) for tokens in patchify(latents, patch)]


def _rows(values, settings: Settings, branches: int, sources, reference: Reference, h: int, w: int) -> list[Row]:
    sets, config = reference.cases["sets"], reference.config
    special = SpecialIds.from_config(config, range(sets["digit0"], sets["digit0"] + 10), sets["star"])
    captions = [values["captions"]] if isinstance(values["captions"], str) else values["captions"]
    negative = _words(settings.negative)
    conditional, image_only = [], []
    for i, caption in enumerate(captions):
        if sources:
            image_only.append([sources[len(captions) + i], negative])
        conditional.append([sources[i], _words(caption.removeprefix("<image>"))] if sources else [_words(caption)])
    groups: list[list[list[Part]]] = [conditional, image_only, [[negative]] * len(captions)]
    used = {1: (0,), 2: (0, 2), 3: (0, 1, 2)}[branches]
    prefix, copies = area_prefix(special, h, w), values["num_images_per_caption"]
    return [make_row([*row, prefix], special, config.token_channels) for b in used for row in groups[b] for _ in range(copies)]


def _words(text: str) -> list[int]:
    """The goldens' stand-in for a tokenizer: "w12" is id 12."""
    words = text.split()
    if any(not re.fullmatch(r"w\d+", word) for word in words):
        raise InputError(f"cases.json: captions and prompts are words such as w12, found {text!r}")
    return [int(word[1:]) for word in words]


def _align(rows: list[Row], length: int, pad: int) -> decode.Prompt:
    """Rows right-aligned to the length of the reference, pads spelled as there."""
    ids = np.full((len(rows), length), pad, np.int32)
    tokens = np.zeros((len(rows), length, rows[0].tokens.shape[1]), np.float32)
    is_image = np.zeros((len(rows), length), bool)
    for r, row in enumerate(rows):
        first = length - len(row.ids)
        if first < 0:
            raise InputError(f"a prompt row has {len(row.ids)} ids, the reference's {length}")
        ids[r, first:], is_image[r, first:] = row.ids, row.is_image
        tokens[r, first + np.flatnonzero(row.is_image)] = row.tokens
    return decode.Prompt(ids, tokens, is_image, np.asarray([len(row.ids) for row in rows], np.int32))


@functools.partial(jax.jit, static_argnames=("config", "branches"))
def _teacher_forced(config, params: dict, branches: int, state: decode.DecodeState, tokens) -> jax.Array:
    """Hidden states [R, n, D] that the flow head is asked from, with the stored tokens as the past."""

    def step(carry, inputs):
        embedding, positions, cache = carry
        token, extra = inputs
        hidden, cache = decode.transformer_step(config, params, embedding, positions, cache, state.valid)
        following = NextStep(config).apply({"params": params}, token, method="embed_image")
        return (jnp.tile(following, (branches, 1)), positions + 1, cache), hidden + extra

    count = tokens.shape[1]
    table = gen_pos_embed(config.base_grid, config.transformer.width)[:count] * config.use_gen_pos_embed
    start = (state.embedding, state.positions, state.cache)
    _, hidden = jax.lax.scan(step, start, (jnp.moveaxis(tokens, 1, 0), jnp.asarray(table)))
    return jnp.moveaxis(hidden, 0, 1)


@functools.partial(jax.jit, static_argnames=("config", "how"))
def _flow_from(config, how: decode.TokenSettings, params: dict, projected, noise, guidance) -> jax.Array:
    """Tokens [B, n, C], each from the condition [R, n, D] alone, so that one token's rounding does not reach the next."""
    times = decode.embed_times(config, how, params)

    def one(inputs):
        condition, draws, strengths = inputs
        return decode.flow_step(config, how, params, condition, times, draws, strengths[0], strengths[1])

    return jnp.moveaxis(jax.lax.map(one, (jnp.moveaxis(projected, 1, 0), noise, guidance)), 0, 1)


def _flow_from_stored(config, params, how, projected, noise, guidance, golden: GoldenFile, report: Report) -> None:
    sampled = _flow_from(config, dataclasses.replace(how, normalize_tokens=False), params, projected, noise, guidance)
    if "tokens_before_norm" in golden:
        report.compare(f"{golden.name}.tokens_before_norm", sampled, golden["tokens_before_norm"], END_TO_END)
    if how.normalize_tokens:
        sampled = layer_norm(sampled, decode.TOKEN_NORM_EPS)
    report.compare(f"{golden.name}.tokens (from stored c)", sampled, golden["tokens"], END_TO_END)
