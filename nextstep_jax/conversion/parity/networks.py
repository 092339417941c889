"""Parity of single passes: backbone, flow head, patchify, position table, image tokenizer."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from nextstep_jax.config import ImageTokenizerConfig
from nextstep_jax.conversion.names import image_tokenizer_entries
from nextstep_jax.conversion.parity.reference import (
    Reference,
    image_tokenizer,
    released_batch,
    run,
    to_nchw,
    to_nhwc,
)
from nextstep_jax.conversion.parity.report import EXACT, SINGLE_PASS, GoldenFile, Goldens, Report
from nextstep_jax.models.flow_head import TimeEmbedding, time_features
from nextstep_jax.models.image_tokenizer import ImageTokenizer, patchify, unpatchify
from nextstep_jax.models.layers import rope_table
from nextstep_jax.models.nextstep import NextStep, gen_pos_embed


def compare(goldens: Goldens, reference: Reference, report: Report) -> None:
    """All single-pass files."""
    for name in ("backbone", "backbone_list"):
        _backbone(goldens.arrays(name), reference, report)
    _head(goldens.arrays("head"), reference, report)
    _patchify(goldens.arrays("patchify"), reference, report)
    _tokenizers(goldens, report)
    _full_plan_tokenizer(goldens, report)


def _backbone(golden: GoldenFile, reference: Reference, report: Report) -> None:
    config, params = reference.config, reference.params
    model, t = NextStep(config), config.transformer
    mask = golden["attention_mask"]
    batch = released_batch(config, golden["input_ids"], golden.take("latents"), mask)
    real = mask == 1
    hidden = run(model, params, batch)
    logits = run(model, params, hidden, method="logits")
    embeddings = run(model, params, batch.text_ids, batch.image_tokens, batch.is_image, method="embed")
    report.compare(f"{golden.name}.inputs_embeds", embeddings, golden["inputs_embeds"], SINGLE_PASS, where=real)
    for i, output in enumerate(run(model, params, batch, method="layer_outputs")):
        report.compare(f"{golden.name}.layer_out.{i}", output, golden[f"layer_out.{i}"], SINGLE_PASS, where=real)
    report.compare(f"{golden.name}.final_hidden", hidden, golden["final_hidden"], SINGLE_PASS, where=real)
    if "logits" in golden:
        report.compare(f"{golden.name}.logits", logits, golden["logits"], SINGLE_PASS, where=real)
    if "eval_forward_logits" in golden:
        last = real[:, -1:]
        report.compare(
            f"{golden.name}.eval_forward_logits", logits[:, -1:], golden["eval_forward_logits"], SINGLE_PASS, where=last
        )
    tables = {"rope": np.arange(mask.shape[1])}
    if "rope_far_positions" in golden:
        tables["rope_far"] = golden["rope_far_positions"]
    for name, positions in tables.items():
        for part, ours in zip(("cos", "sin"), rope_table(jnp.asarray(positions), t.head_dim, t.rope_theta), strict=True):
            if f"{name}_{part}" in golden:
                twice = np.concatenate([ours, ours], axis=-1)  # the releases store both halves
                report.compare(f"{golden.name}.{name}_{part}", twice, golden[f"{name}_{part}"], SINGLE_PASS)


def _head(golden: GoldenFile, reference: Reference, report: Report) -> None:
    config, params = reference.config, reference.params
    x, t, c = golden["x"], golden["t"], golden["c"]
    velocity = np.asarray(run(NextStep(config), params, x, t, c, method="velocity"))
    report.compare("head.velocity", velocity, golden["velocity"], SINGLE_PASS)
    report.compare("head.time_sinusoid", time_features(jnp.asarray(t)), golden["time_sinusoid"], SINGLE_PASS)
    embedding = TimeEmbedding(config.flow_head.width, config.transformer.dtype)
    time_mlp = run(embedding, params["flow_head"]["time_embed"], t)
    report.compare("head.time_mlp", time_mlp, golden["time_mlp"], SINGLE_PASS)
    below = t < 1
    s = t[below, None]
    score = (s * velocity[below] - x[below]) / ((1 - s) ** 2 + s * (1 - s))
    report.compare("head.score_t_below_1", score, golden["score_t_below_1"], SINGLE_PASS, relative=True)


def _patchify(golden: GoldenFile, reference: Reference, report: Report) -> None:
    config = reference.config
    for name in ("", "square_"):
        latents, tokens = golden[f"{name}latents"], golden[f"{name}tokens"]
        h, w = (side // config.patch for side in latents.shape[2:])
        report.compare(f"patchify.{name}tokens", patchify(jnp.asarray(to_nhwc(latents)), config.patch), tokens, EXACT)
        back = unpatchify(jnp.asarray(tokens), h, w, config.patch)
        report.compare(f"patchify.{name}latents", to_nchw(back), latents, EXACT)
    table = gen_pos_embed(config.base_grid, config.transformer.width)
    for name in [name for name in golden if name.startswith("gen_pos_embed.row")]:
        first, _, last = name.removeprefix("gen_pos_embed.row").removeprefix("s").partition("_")
        rows = table[int(first) : int(last) + 1] if last else table[int(first)]
        report.compare(f"patchify.{name}", rows, golden[name], SINGLE_PASS)


def _raw(module: ImageTokenizer, pixels):
    return module.encoder(pixels)


def _encode(config: ImageTokenizerConfig, params: dict, pixels: np.ndarray):
    """(raw encoder output, mean, logvar) in the releases' layout."""
    model, pixels = ImageTokenizer(config), to_nhwc(pixels)
    raw, posterior = run(model, params, pixels, method=_raw), run(model, params, pixels, method="encode")
    return to_nchw(raw), to_nchw(posterior.mean), to_nchw(posterior.logvar)


def _tokenizers(goldens: Goldens, report: Report) -> None:
    golden = goldens.arrays("vae")
    plain, params = image_tokenizer(goldens, "tiny_vae")
    normalized, normalized_params = image_tokenizer(goldens, "tiny_vae_norm")
    per_pixel = dataclasses.replace(normalized, normalize_patch=None)
    for size in sorted({name.split(".")[0] for name in golden}):
        pixels = golden[f"{size}.x"]
        raw, mean, logvar = _encode(plain, params, pixels)
        report.compare(f"vae.{size}.encoder_raw", raw, golden[f"{size}.encoder_raw"], SINGLE_PASS)
        report.compare(f"vae.{size}.mean", mean, golden[f"{size}.mean"], SINGLE_PASS)
        report.compare(f"vae.{size}.logvar", logvar, golden[f"{size}.logvar"], SINGLE_PASS)
        _, mean, logvar = _encode(normalized, normalized_params, pixels)
        report.compare(f"vae.{size}.norm.mean", mean, golden[f"{size}.norm.mean"], SINGLE_PASS)
        report.compare(f"vae.{size}.norm.logvar", logvar, golden[f"{size}.norm.logvar"], SINGLE_PASS)
        if f"{size}.norm_nopsz.mean" in golden:
            _, mean, _ = _encode(per_pixel, normalized_params, pixels)
            report.compare(f"vae.{size}.norm_nopsz.mean", mean, golden[f"{size}.norm_nopsz.mean"], SINGLE_PASS)
        decoded = run(ImageTokenizer(plain), params, to_nhwc(golden[f"{size}.z"]), method="decode")
        report.compare(f"vae.{size}.decode", to_nchw(decoded), golden[f"{size}.decode"], SINGLE_PASS)


# --- the tokenizer whose weights are a formula ------------------------------------------------------------------------


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
    golden, recipe = goldens.arrays("vae_1244"), goldens.json("vae_1244_recipe.json")
    config = ImageTokenizerConfig.from_released(recipe["config"], "vae_1244_recipe.json")
    tensors = {
        row["name"]: recipe_tensor(recipe["seed"], row["k"], row["shape"], row["base"], row["scale"])
        for row in recipe["tensors"]
    }
    for name in [name for name in golden if name.startswith("weight_head.")]:
        ours = tensors[name.removeprefix("weight_head.")].ravel()[: golden[name].size]
        report.compare(f"vae_1244.{name}", ours, golden[name], EXACT)
    leaves = {entry.path: jnp.asarray(entry.load(tensors[entry.source])) for entry in image_tokenizer_entries(config)}
    params: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    for name, ours in zip(("encoder_raw", "mean", "logvar"), _encode(config, params, golden["x"]), strict=True):
        report.compare(f"vae_1244.{name}", ours, golden[name], SINGLE_PASS)
    decoded = run(ImageTokenizer(config), params, to_nhwc(golden["z"]), method="decode")
    report.compare("vae_1244.decode", to_nchw(decoded), golden["decode"], SINGLE_PASS)
