"""Parity of single passes: backbone, flow head, patchify, position table, image tokenizer; and of checkpoint formats."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.conversion.names import POSITION_TABLE, image_tokenizer_entries
from nextstep_jax.conversion.parity.goldens import GoldenFile, Goldens
from nextstep_jax.conversion.parity.reference import (
    NORMALIZED,
    PLAIN,
    Reference,
    Tokenizer,
    decode,
    encode,
    released_batch,
    run_on_vectors,
    to_nchw,
    to_nhwc,
    transformer_pass,
)
from nextstep_jax.conversion.parity.report import EXACT, SINGLE_PASS, Report
from nextstep_jax.conversion.torch_files import open_file
from nextstep_jax.errors import InputError
from nextstep_jax.models.flow_head import time_features
from nextstep_jax.models.image_tokenizer import patchify, unpatchify
from nextstep_jax.models.layers import rope_table
from nextstep_jax.models.nextstep import gen_pos_embed


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """All single-pass files, and what the checkpoints hold beside parameters."""
    for name in ("backbone", "backbone_list"):
        _backbone(goldens.arrays(name), reference, report)
    _head(goldens.arrays("head"), reference, report)
    _patchify(goldens.arrays("patchify"), reference, report)
    _position_table(goldens, reference, report)
    _tokenizers(goldens.arrays("vae"), reference, report)
    _full_plan_tokenizer(goldens, report)
    for name in (PLAIN, NORMALIZED):
        _formats(goldens, name, report)


def _backbone(golden: GoldenFile, reference: Reference, report: Report) -> None:
    name, t = golden.name, reference.config.transformer
    mask = golden["attention_mask"]
    real = mask == 1
    batch = released_batch(reference.config, golden["input_ids"], golden.take("latents"), mask)
    ours = transformer_pass(reference, batch)
    report.compare(f"{name}.inputs_embeds", ours.embeddings, golden["inputs_embeds"], SINGLE_PASS)
    for i, output in enumerate(ours.layers):
        report.compare(f"{name}.layer_out.{i}", output, golden[f"layer_out.{i}"], SINGLE_PASS, where=real)
    report.compare(f"{name}.final_hidden", ours.hidden, golden["final_hidden"], SINGLE_PASS, where=real)
    if "logits" in golden:
        report.compare(f"{name}.logits", ours.logits, golden["logits"], SINGLE_PASS, where=real)
    if "eval_forward_logits" in golden:
        last = ours.logits[:, -1:]
        report.compare(f"{name}.eval_forward_logits", last, golden["eval_forward_logits"], SINGLE_PASS, where=real[:, -1:])
    tables = {"rope": np.arange(mask.shape[1])}
    if "rope_far_positions" in golden:
        tables["rope_far"] = golden["rope_far_positions"]
    for table, positions in tables.items():
        for part, half in zip(("cos", "sin"), _rope(positions, t.head_dim, t.rope_theta), strict=True):
            if f"{table}_{part}" in golden:
                both = np.concatenate([half, half], axis=-1)  # as the releases store it
                report.compare(f"{name}.{table}_{part}", both, golden[f"{table}_{part}"], SINGLE_PASS)


_rope = functools.partial(jax.jit, static_argnums=(1, 2))(rope_table)


def _head(golden: GoldenFile, reference: Reference, report: Report) -> None:
    x, t = golden["x"], golden["t"]
    velocity = run_on_vectors(reference, "velocity", x, t, golden["c"])
    report.compare("head.velocity", velocity, golden["velocity"], SINGLE_PASS)
    report.compare("head.time_sinusoid", jax.jit(time_features)(t), golden["time_sinusoid"], SINGLE_PASS)
    report.compare("head.time_mlp", run_on_vectors(reference, "embed_times", t), golden["time_mlp"], SINGLE_PASS)
    # The score follows from the stored velocity: its small denominator would magnify the rounding of ours.
    below = t < 1
    s = t[below, None]
    score = (s * golden["velocity"][below] - x[below]) / ((1 - s) ** 2 + s * (1 - s))
    report.compare("head.score_t_below_1", score, golden["score_t_below_1"], SINGLE_PASS)


def _patchify(golden: GoldenFile, reference: Reference, report: Report) -> None:
    patch = reference.config.patch
    for name in ("", "square_"):
        latents, tokens = golden[f"{name}latents"], golden[f"{name}tokens"]
        h, w = (side // patch for side in latents.shape[2:])
        cut = jax.jit(patchify, static_argnums=1)(to_nhwc(latents), patch)
        joined = jax.jit(unpatchify, static_argnums=(1, 2, 3))(tokens, h, w, patch)
        report.compare(f"patchify.{name}tokens", cut, tokens, EXACT)
        report.compare(f"patchify.{name}latents", to_nchw(joined), latents, EXACT)
    table = gen_pos_embed(reference.config.base_grid, reference.config.transformer.width)
    prefix = f"{POSITION_TABLE}.row"
    for name in [name for name in golden if name.startswith(prefix)]:
        first, _, last = name.removeprefix(prefix).removeprefix("s").partition("_")
        rows = table[int(first) : int(last) + 1] if last else table[int(first)]
        report.compare(f"patchify.{name}", rows, golden[name], SINGLE_PASS)


def _position_table(goldens: Goldens, reference: Reference, report: Report) -> None:
    """The buffer that a checkpoint may carry, and that is computed instead."""
    stored = [tensor for tensor in open_file(goldens.path("tiny_model/model.safetensors")) if tensor.name == POSITION_TABLE]
    for tensor in stored:
        ours = gen_pos_embed(reference.config.base_grid, reference.config.transformer.width)
        report.compare(f"tiny_model.{POSITION_TABLE}", ours[None], tensor.read(), SINGLE_PASS)


# --- image tokenizers -------------------------------------------------------------------------------------------------


def _tokenizers(golden: GoldenFile, reference: Reference, report: Report) -> None:
    plain, normalized = reference.tokenizers[PLAIN], reference.tokenizers[NORMALIZED]
    for size in sorted({name.split(".")[0] for name in golden}):
        pixels = to_nhwc(golden[f"{size}.x"])
        for tokenizer, prefix in ((plain, size), (normalized, f"{size}.norm")):
            ours = encode(tokenizer, pixels)
            if f"{prefix}.encoder_raw" in golden:
                report.compare(f"vae.{prefix}.encoder_raw", to_nchw(ours.raw), golden[f"{prefix}.encoder_raw"], SINGLE_PASS)
            _posterior(golden, prefix, ours.posteriors[tokenizer.config], report)
        if f"{size}.norm_nopsz.mean" in golden:
            pixelwise = encode(normalized, pixels).posteriors[dataclasses.replace(normalized.config, normalize_patch=None)]
            name = f"{size}.norm_nopsz.mean"
            report.compare(f"vae.{name}", to_nchw(pixelwise.mean), golden[name], SINGLE_PASS)
        decoded = to_nchw(decode(plain, to_nhwc(golden[f"{size}.z"])))
        report.compare(f"vae.{size}.decode", decoded, golden[f"{size}.decode"], SINGLE_PASS)


def _posterior(golden: GoldenFile, prefix: str, posterior, report: Report) -> None:
    for part in ("mean", "logvar"):
        name, ours = ".".join(filter(None, (prefix, part))), to_nchw(getattr(posterior, part))
        report.compare(f"{golden.name}.{name}", ours, golden[name], SINGLE_PASS)


def recipe_tensor(seed: int, k: int, shape: list[int], base: float, scale: float) -> np.ndarray:
    """Tensor k of a recipe: base + scale * (2 u - 1), u the top 24 bits of a splitmix64 stream."""
    with np.errstate(over="ignore"):
        step = np.uint64(0x9E3779B97F4A7C15)
        count = int(np.prod(shape))
        z = np.uint64(seed) * step + np.uint64(k << 32) + np.arange(count, dtype=np.uint64) + step
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    product = np.float32(scale) * (np.float32(2) * u - np.float32(1))
    return (np.float32(base) + product).reshape(shape)


def _full_plan_tokenizer(goldens: Goldens, report: Report) -> None:
    """The tokenizer whose weights are a formula."""
    golden, recipe = goldens.arrays("vae_1244"), goldens.json("vae_1244_recipe.json")
    config = ImageTokenizerConfig.from_released(recipe["config"], "vae_1244_recipe.json")
    entries, rows = image_tokenizer_entries(config), {row["name"]: row for row in recipe["tensors"]}
    wanted = {entry.source: list(entry.source_shape) for entry in entries}
    if wanted != {name: row["shape"] for name, row in rows.items()}:
        raise InputError("vae_1244_recipe.json: the tensors' names and shapes are not those of the config")
    tensors = {
        name: recipe_tensor(recipe["seed"], row["k"], row["shape"], row["base"], row["scale"]) for name, row in rows.items()
    }
    for name in [name for name in golden if name.startswith("weight_head.")]:
        ours = tensors[name.removeprefix("weight_head.")].ravel()[: golden[name].size]
        report.compare(f"vae_1244.{name}", ours, golden[name], EXACT)
    params: dict = {}
    for entry in entries:
        *parents, last = entry.path.split("/")
        node = functools.reduce(lambda node, name: node.setdefault(name, {}), parents, params)
        node[last] = jnp.asarray(entry.load(tensors[entry.source]))
    tokenizer = Tokenizer(config, params, (config,))
    encoded = encode(tokenizer, to_nhwc(golden["x"]))
    report.compare("vae_1244.encoder_raw", to_nchw(encoded.raw), golden["encoder_raw"], SINGLE_PASS)
    _posterior(golden, "", encoded.posteriors[config], report)
    decoded = to_nchw(decode(tokenizer, to_nhwc(golden["z"])))
    report.compare("vae_1244.decode", decoded, golden["decode"], SINGLE_PASS)


def _formats(goldens: Goldens, name: str, report: Report) -> None:
    """The torch checkpoint and the safetensors file of an image tokenizer, which hold the same tensors."""
    ours, stored = (
        {tensor.name: tensor for tensor in open_file(goldens.path(f"{name}/checkpoint.{ending}"))}
        for ending in ("pt", "safetensors")
    )
    if set(ours) != set(stored):
        raise InputError(f"{goldens.folder / name}: its checkpoints differ in {', '.join(sorted(set(ours) ^ set(stored)))}")
    for tensor in sorted(ours):
        report.compare(f"{name}.checkpoint.pt.{tensor}", ours[tensor].read(), stored[tensor].read(), EXACT)
