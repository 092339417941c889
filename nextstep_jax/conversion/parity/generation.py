"""Parity of whole generations: prompts, guidance, tokens end to end and teacher-forced, latents, images.

Letters: R rows (guidance branches side by side), M branches, B images, P prompt length, n tokens, C channels of a token.
"""

import dataclasses
import functools
import re

import jax
import numpy as np

from nextstep_jax.batch import Batch
from nextstep_jax.config import ImageTokenizerConfig, NextStepConfig
from nextstep_jax.conversion.parity.goldens import GoldenFile, Goldens
from nextstep_jax.conversion.parity.integration import integrate_tokens, plan_steps
from nextstep_jax.conversion.parity.reference import (
    VECTORS,
    Reference,
    Tokenizer,
    decode,
    encode,
    padded,
    run_on_vectors,
    to_nchw,
    to_nhwc,
    transformer_pass,
)
from nextstep_jax.conversion.parity.report import END_TO_END, EXACT, LATENTS, LEVELS, ROUNDING, SINGLE_PASS, Report
from nextstep_jax.data.images import to_float, to_uint8
from nextstep_jax.data.sequence import ImageTokens, Segment, image_prefix
from nextstep_jax.data.vocabulary import SpecialIds
from nextstep_jax.errors import InputError
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.prompts import Part, Prompt, align_rows, frame_prompt
from nextstep_jax.generation.token_loop import TOKEN_NORM_EPS, decode_tokens, prefill
from nextstep_jax.models.image_tokenizer import (
    Posterior,
    patchify,
    sample_posterior,
    scale_latents,
    unpatchify,
    unscale_latents,
)
from nextstep_jax.models.layers import layer_norm
from nextstep_jax.models.nextstep import gen_pos_embed
from nextstep_jax.models.param_layouts import fuse_projections

_IMAGES = 4  # images are generated in multiples of this: fewer shapes to compile


@dataclasses.dataclass(frozen=True)
class _Case:
    """A stored generation.

    Attributes:
      values: how it was made, from cases.json.
      settings: the same as this library's settings.
      config: of the model, as this case uses it.
      branches: M.
      images, count: B and n.
    """

    golden: GoldenFile
    values: dict
    settings: GenerationConfig
    config: NextStepConfig
    special: SpecialIds
    tokenizer: Tokenizer
    branches: int
    images: int
    count: int

    @property
    def grid(self) -> tuple[int, int]:
        """h and w of an image, in tokens."""
        h, w = (side // self.config.patch for side in self.golden["final_latents"].shape[2:])
        return h, w

    def row(self, array: str) -> str:
        """What the report calls an array."""
        return f"{self.golden.name}.{array}"


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """Every case of cases.json -> e2e."""
    fused = jax.jit(fuse_projections)(reference.params)
    for name, values in reference.cases["e2e"].items():
        case = _read(goldens.arrays(name), values, reference)
        golden, guidance = case.golden, case.settings.guidance(case.count)
        report.compare(case.row("cfg_per_token"), guidance, golden["cfg_per_token"], ROUNDING, relative=True)
        rows = _rows(case, _encode_sources(case, report) if "source_uint8" in golden else [])
        _teacher_forced(case, rows, reference, report)
        _from_stored_conditions(case, guidance, reference, report)
        _end_to_end(case, rows, guidance, fused, report)


def _read(golden: GoldenFile, values: dict, reference: Reference) -> _Case:
    config = dataclasses.replace(reference.config, use_gen_pos_embed=values["use_gen_pos_embed"])
    sets, settings = reference.cases["sets"], _settings(values)
    special = SpecialIds.from_config(config, range(sets["digit0"], sets["digit0"] + 10), sets["star"])
    special = dataclasses.replace(special, image_area=sets["area"])
    if values["vae"] not in reference.tokenizers:
        raise InputError(f"cases.json: {golden.name} was made with {values['vae']!r}, which is not one of the image tokenizers")
    branches = settings.sampler_config("source_uint8" in golden).branches
    images, count = golden["tokens"].shape[:2]
    return _Case(golden, values, settings, config, special, reference.tokenizers[values["vae"]], branches, images, count)


def _settings(values: dict) -> GenerationConfig:
    names = {
        "cfg": "cfg",
        "cfg_img": "image_cfg",
        "cfg_schedule": "schedule",
        "timesteps_shift": "shift",
        "num_sampling_steps": "steps",
        "use_norm": "normalize_tokens",
    }
    known = {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
    return GenerationConfig(sampler="august2025", negative_prompt=values["negative_prompt"] or "", **known)


# --- prompts ----------------------------------------------------------------------------------------------------------


def _encode_sources(case: _Case, report: Report) -> list[ImageTokens]:
    """The sources once per copy: for the conditional rows, then for the image-only rows."""
    golden, tokenizer, patch = case.golden, case.tokenizer, case.config.patch
    pixels = to_float(golden["source_uint8"])
    if "pixel_values" in golden:
        report.compare(case.row("pixel_values"), to_nchw(pixels), golden["pixel_values"], ROUNDING)
    copies = golden["latents_in"].shape[0] // pixels.shape[0]
    posterior = encode(tokenizer, pixels).posteriors[tokenizer.config]
    for part in ("mean", "logvar"):
        ours = to_nchw(np.tile(getattr(posterior, part), (copies, 1, 1, 1)))
        report.compare(case.row(f"posterior_{part}"), ours, golden[f"posterior_{part}"], SINGLE_PASS)
    stored = (to_nhwc(golden[f"posterior_{name}"]) for name in ("mean", "logvar", "noise"))
    latents, tokens = _sample_latents(tokenizer.config, patch, *stored)
    report.compare(case.row("latents_in"), to_nchw(latents), golden["latents_in"], SINGLE_PASS)
    h, w = (side // patch for side in latents.shape[1:3])
    return [ImageTokens(one, h, w) for one in np.asarray(tokens)]


@functools.partial(jax.jit, static_argnames=("config", "patch"))
def _sample_latents(config: ImageTokenizerConfig, patch: int, mean, logvar, noise) -> tuple[jax.Array, jax.Array]:
    """Latents [B, h, w, c] that the transformer sees, and the tokens [B, n, C] they make."""
    latents = scale_latents(sample_posterior(Posterior(mean, logvar), noise, config), config)
    return latents, patchify(latents, patch)


def _rows(case: _Case, sources: list[ImageTokens]) -> list[Segment]:
    """The rows as fed to the prefill, branch after branch."""
    captions, negative = case.values["captions"], _words(case.settings.negative_prompt)
    captions = [captions] if isinstance(captions, str) else captions
    conditional: list[list[Part]]
    image_only: list[list[Part]]
    conditional, image_only = [[_words(caption.removeprefix("<image>"))] for caption in captions], []
    if sources:
        conditional = [[source, *parts] for source, parts in zip(sources, conditional, strict=False)]
        image_only = [[source, negative] for source in sources[len(captions) :]]
    groups: list[list[list[Part]]] = [conditional, image_only, [[negative]] * len(captions)]
    used = {1: (0,), 2: (0, 2), 3: (0, 1, 2)}[case.branches]
    prefix, copies = image_prefix(case.special, *case.grid), case.values["num_images_per_caption"]
    written = [frame_prompt([*parts, prefix], case.special, case.config) for b in used for parts in groups[b]]
    rows = [row for row in written for _ in range(copies)]
    if len(rows) != case.branches * case.images:
        raise InputError(f"{case.row('tokens')}: {case.images} images, but cases.json describes {len(rows) // case.branches}")
    return rows


def _words(text: str) -> list[int]:
    """The goldens' stand-in for a tokenizer: "w12" is id 12."""
    words = text.split()
    if any(not re.fullmatch(r"w\d+", word) for word in words):
        raise InputError(f"cases.json: captions and prompts are words such as w12, found {text!r}")
    return [int(word[1:]) for word in words]


# --- tokens -----------------------------------------------------------------------------------------------------------


def _teacher_forced(case: _Case, rows: list[Segment], reference: Reference, report: Report) -> None:
    """Prompts as fed to the prefill, and the condition of every token with the stored tokens before it as the past."""
    golden, config = case.golden, reference.config
    prompt = align_rows(rows, bucket=1)
    length = prompt.text_ids.shape[1]
    past = np.asarray(golden["tokens"])[:, : case.count - 1]
    placeholders = np.full(case.count - 1, case.special.image_placeholder)
    longer = [
        dataclasses.replace(
            row,
            text_ids=np.concatenate([row.text_ids, placeholders]),
            image_tokens=np.concatenate([row.image_tokens, past[r % case.images]]),
            is_image=np.concatenate([row.is_image, np.ones(case.count - 1, bool)]),
        )
        for r, row in enumerate(rows)
    ]
    batch = _batch(align_rows(longer, bucket=1), config.pad_id)
    report.compare(case.row("input_ids"), batch.text_ids[:, :length], golden["input_ids"], EXACT)
    report.compare(case.row("attention_mask"), batch.segment_ids[:, :length], golden["attention_mask"], EXACT)
    ours = transformer_pass(reference, batch)
    if "inputs_embeds" in golden:
        report.compare(case.row("inputs_embeds"), ours.embeddings[:, :length], golden["inputs_embeds"], SINGLE_PASS)
    conditions = ours.hidden[:, length - 1 :]
    if case.config.use_gen_pos_embed:
        conditions = conditions + gen_pos_embed(config.base_grid, config.transformer.width)[: case.count]
    report.compare(case.row("c"), conditions, golden["c"], SINGLE_PASS)


def _batch(prompt: Prompt, pad: int) -> Batch:
    """Right-aligned rows as one segment each."""
    padding = prompt.text_ids.shape[1] - prompt.lengths[:, None]
    places = np.arange(prompt.text_ids.shape[1], dtype=np.int32)
    real = places >= padding
    zeros = np.zeros(real.shape, np.float32)
    ids, positions = np.where(real, prompt.text_ids, np.int32(pad)), np.maximum(places - padding, 0)
    return Batch(ids, prompt.image_tokens, prompt.is_image, positions, real.astype(np.int32), zeros, zeros)


def _from_stored_conditions(case: _Case, guidance: np.ndarray, reference: Reference, report: Report) -> None:
    """Each token from its stored condition alone, so that one token's rounding does not reach the next."""
    golden, settings = case.golden, case.settings
    projected = run_on_vectors(reference, "project_out", golden["c"].reshape(-1, golden["c"].shape[-1]))
    projected = projected.reshape(golden["c"].shape)
    if "c_proj" in golden:
        report.compare(case.row("c_proj"), projected, golden["c_proj"], SINGLE_PASS)
    planned, where = plan_steps(settings.sampler, settings.steps, settings.shift), case.row("noise")
    tokens = integrate_tokens(
        reference.config, reference.params, planned, golden["noise"], projected, case.branches, guidance, where
    )
    if "tokens_before_norm" in golden:
        report.compare(case.row("tokens_before_norm"), tokens, golden["tokens_before_norm"], END_TO_END)
    if settings.normalize_tokens:
        rows = tokens.reshape(-1, tokens.shape[-1])
        tokens = np.asarray(_normalize(padded(rows, VECTORS), TOKEN_NORM_EPS))[: len(rows)].reshape(tokens.shape)
    report.compare(case.row("tokens (from stored c)"), tokens, golden["tokens"], END_TO_END)


_normalize = functools.partial(jax.jit, static_argnums=1)(layer_norm)


def _end_to_end(case: _Case, rows: list[Segment], guidance: np.ndarray, params: dict, report: Report) -> None:
    """The loop as users run it, from prompt to pixels."""
    golden, tokenizer = case.golden, case.tokenizer
    config = case.config.with_transformer(fused_projections=True)
    images = np.arange(case.images + -case.images % _IMAGES) % case.images
    prompt = align_rows([rows[branch * case.images + image] for branch in range(case.branches) for image in images])
    noise = golden["noise"][:, :, images % golden["noise"].shape[2]]  # the releases tile noise over the batch
    sampler_config = case.settings.sampler_config("source_uint8" in golden)
    # The prefill is the same with the position table and without: one program for both.
    state = prefill(dataclasses.replace(config, use_gen_pos_embed=False), params, prompt, case.branches, case.count)
    tokens = np.asarray(decode_tokens(config, sampler_config, params, state, noise, guidance, case.count).tokens)
    report.compare(case.row("tokens"), tokens[: case.images], golden["tokens"], END_TO_END)
    latents = np.asarray(_latents(tokenizer.config, tokens, *case.grid, config.patch))[: case.images]
    report.compare(case.row("final_latents"), to_nchw(latents), golden["final_latents"], LATENTS)
    if "image" in golden:
        pixels = decode(tokenizer, to_nhwc(golden["final_latents"]))
        report.compare(case.row("image"), to_nchw(pixels), golden["image"], SINGLE_PASS)
    if "image_uint8" in golden:
        report.compare(case.row("image_uint8"), to_uint8(decode(tokenizer, latents)), golden["image_uint8"], LEVELS)


@functools.partial(jax.jit, static_argnames=("config", "h", "w", "patch"))
def _latents(config: ImageTokenizerConfig, tokens, h: int, w: int, patch: int) -> jax.Array:
    return unscale_latents(unpatchify(tokens, h, w, patch), config)
