# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper's claims, on a laptop
# Four claims of the NextStep-1 paper, tried at the scale of the built-in model: 64x64 images of 16 tokens, models of about a
# million parameters, minutes of training. Such a trial can agree or disagree; it cannot prove. At the end a table says for each
# claim what the paper shows, what was found here, and whether the two agree, by rules that stand in the code.
#
# All numbers come from small files in `paper_results/`, with the seeds and settings they were made with. One command makes them
# again: `python -m benchmarks.paper_claims`.

# %%
import json
import math
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from plots import FAST, show

from nextstep_jax.evaluation.traces import trace
from nextstep_jax.generation.pipeline import Pipeline

results = {path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path("paper_results").glob("*.json"))}
tokenizers = sorted((r for name, r in results.items() if name.startswith("tokenizer_")), key=lambda r: r["made_with"]["gamma"])
models = [r for name, r in results.items() if name.startswith("generator_")]
for name, values in results.items():
    print(f"{name}: {', '.join(f'{key} {value}' for key, value in values['made_with'].items())}")

# %% [markdown]
# ## Guidance and the statistics of tokens (Figure 5)
# The image tokenizer gives every token zero mean and unit variance. The paper finds that sampled tokens keep these at guidance
# 1.5 and drift away from them along the sequence at guidance 3.0, unless each sampled token is normalized again before the
# transformer reads it. Below: mean and variance over the 64 numbers of each token as the sampler left it, averaged over the
# prompts; without (solid) and with (dashed) normalization of the tokens before it.

# %%
runs = results["statistics"]["runs"] if "statistics" in results else []
guidance = sorted({run["cfg"] for run in runs})
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for run in runs:
    number = guidance.index(run["cfg"])
    style = {"color": f"C{number}", "ls": "--" if run["normalize"] else "-", "marker": ".", "lw": 1.2}
    label = f"{run['cfg']:g}, {'normalized' if run['normalize'] else 'as sampled'}"
    for axis, name in zip(axes, ("mean", "variance"), strict=True):
        axis.plot(range(1, len(run["sampled"][name]) + 1), run["sampled"][name], label=label, **style)
for axis, name, value in zip(axes, ("mean", "variance"), (0, 1), strict=True):
    axis.axhline(value, color="black", lw=0.6)
    axis.set(xticks=(1, 4, 8, 12, 16), xlabel="token", ylabel=f"{name} over the token's numbers")
axes[1].legend(title="guidance, tokens before", loc="center left", bbox_to_anchor=(1.02, 0.5))
figure.tight_layout()
plt.show()

# %% [markdown]
# What this does to images, and to ShapeEval (the mean over its categories, on held-out prompts).

# %%
pipeline = Pipeline.from_checkpoint()
prompts = ["a red circle left of a blue square", "three purple diamonds", "a yellow star"][: 1 if FAST else 3]
strengths = (3.0, 10.0) if FAST else (1.5, 3.0, 5.0, 10.0)
drawn, titles = [], []
for normalize in (True, False):
    for prompt in prompts:
        for strength in strengths:
            settings = pipeline.settings(cfg=strength, normalize_tokens=normalize)
            traced = trace(pipeline, [prompt], seed=2, settings=settings)
            drawn += pipeline.decode_images(traced.tokens, traced.h, traced.w)
            titles.append(f"guidance {strength:g}")
rows = [f"{how}" for how in ("normalized", "as sampled") for _ in prompts]
show(drawn, titles, columns=len(strengths), rows=rows, side=1.2)

# %%
figure, axis = plt.subplots(figsize=(5, 2.6))
for normalize, label in ((True, "each token normalized"), (False, "tokens as sampled")):
    some = [run for run in runs if run["normalize"] is normalize]
    axis.plot([run["cfg"] for run in some], [run["shape_eval"] for run in some], "o-", label=label)
axis.set(xlabel="guidance", ylabel="ShapeEval", ylim=(0, 1), title="Right images, mean over categories")
axis.legend()
plt.show()

# %% [markdown]
# ## The distribution of latents (Figure 7)
# A flow head starts at a standard normal distribution; the nearer the latents are to one, the shorter its path. The built-in
# tokenizer's latents with the per-token normalization, and without it (then shifted and scaled as a whole, as other tokenizers
# do), over held-out images. `KS` is the largest distance between the distribution functions.

# %%
if "latents" in results:
    found = results["latents"]
    edges = np.asarray(found["edges"])
    centers, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.9), sharey=True)
    for axis, (name, title) in zip(
        axes, {"raw": "without normalization", "normalized": "normalized per token"}.items(), strict=True
    ):
        spread = found[name]
        axis.bar(
            centers, np.asarray(spread["counts"]) / spread["numbers"] / width, width, color="lightsteelblue", label="latents"
        )
        axis.plot(centers, np.exp(-(centers**2) / 2) / math.sqrt(2 * math.pi), color="firebrick", label="standard normal")
        axis.set(xlabel="latent", title=f"{title}: KS {spread['ks']:.3f}, excess kurtosis {spread['excess_kurtosis']:.2f}")
    axes[0].set_ylabel("density")
    axes[1].legend()
    figure.tight_layout()
    plt.show()

# %% [markdown]
# ## Noise in the tokenizer's training (Figure 6)
# Tokenizers trained with noise of a strength drawn from [0, gamma] on their latents, everything else alike. Reconstruction of
# held-out images when noise of a given strength is added to the latents: PSNR and SSIM of the pixels, and scene accuracy, the
# share of images in which ShapeEval's reader still finds the same colored shapes.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9))
labels = {"psnr": "PSNR (dB)", "ssim": "SSIM", "scene_accuracy": "scene accuracy"}
for axis, (name, label) in zip(axes, labels.items(), strict=True):
    for tokenizer in tokenizers:
        axis.plot(tokenizer["strengths"], tokenizer[name], "o-", ms=3, label=f"{tokenizer['made_with']['gamma']:g}")
    axis.set(xlabel="standard deviation of the noise", ylabel=label)
if tokenizers:
    axes[0].legend(title="gamma")
figure.tight_layout()
plt.show()

# %% [markdown]
# What generation makes of these tokenizers: one model for each, trained alike on images of a single object, scored on
# held-out prompts. Bars are shares of right images, lines their standard errors; there was one training of each, so
# differences of a few hundredths say nothing.


# %%
def score(model):
    """Share of right images and its standard error."""
    share = model["correct"] / model["images"]
    return share, math.sqrt(share * (1 - share) / model["images"])


def bars(axis, some, names, title):
    """ShapeEval of models beside each other, and the looser counts: the shape, the color is there."""
    x = np.arange(len(some))
    shares = {"all right": [score(m)[0] for m in some], "shape right": [m["right_shape"] for m in some]}
    shares["color right"] = [m["right_color"] for m in some]
    for number, (label, values) in enumerate(shares.items()):
        errors = [math.sqrt(v * (1 - v) / m["images"]) for v, m in zip(values, some, strict=True)]
        axis.bar(x + 0.27 * (number - 1), values, 0.25, yerr=errors, label=label, error_kw={"lw": 1})
    axis.set(xticks=x, xticklabels=names, ylim=(0, 1.25), ylabel="share of images", title=title)


by_gamma = sorted((m for m in models if m["made_with"]["head"][0] == "base"), key=lambda m: m["made_with"]["gamma"])
figure, axes = plt.subplots(1, 2, figsize=(9, 3), gridspec_kw={"width_ratios": [1.2, 1]})
bars(axes[0], by_gamma, [f"gamma {m['made_with']['gamma']:g}" for m in by_gamma], "Images on different tokenizers' latents")
for model in by_gamma:
    axes[1].plot(model["steps_of_losses"], model["losses"]["image_loss"], lw=1, label=f"{model['made_with']['gamma']:g}")
axes[1].set(xlabel="step", ylabel="velocity error (MSE per number)", title="Training")
if by_gamma:
    axes[0].legend(loc="upper center", ncols=3)
    axes[1].legend(title="gamma")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The size of the flow head (Tables 6 and 7)
# Three heads in the paper's proportions of layers and width (6 x 1024, 12 x 1536, 24 x 2048), the transformer and everything
# else alike.

# %%
order = ("small", "base", "large")
heads = sorted((m for m in models if m["made_with"]["gamma"] == 0.3), key=lambda m: order.index(m["made_with"]["head"][0]))
names = ["{} {}x{}\n{:,.0f}K".format(*m["made_with"]["head"], m["head_parameters"] / 1e3) for m in heads]
figure, axes = plt.subplots(1, 2, figsize=(9, 3), gridspec_kw={"width_ratios": [1.2, 1]})
bars(axes[0], heads, names, "Images by size of the flow head")
for model in heads:
    axes[1].plot(model["steps_of_losses"], model["losses"]["image_loss"], lw=1, label=model["made_with"]["head"][0])
axes[1].set(xlabel="step", ylabel="velocity error (MSE per number)", title="Training")
if heads:
    axes[0].legend(loc="upper center", ncols=3)
    axes[1].legend(title="head")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Claims
# A claim whose measurement is not in `paper_results/` is "not run".


# %%
def away(run):
    """How far each quarter of the tokens is, on average, from a variance of 1: [4]."""
    return [abs(np.mean(quarter) - 1) for quarter in np.array_split(run["sampled"]["variance"], 4)]


def in_words(run):
    return "variance off by {:.2f}, {:.2f}, {:.2f}, {:.2f} in the quarters of the tokens".format(*away(run))


CLAIMS = {  # what the paper says, and what it shows
    "flat": ("At guidance 1.5 the tokens' mean and variance stay flat", "flat (Fig. 5)"),
    "drift": ("At guidance 3.0 they drift without normalization", "drift (Fig. 5)"),
    "grows": ("The drift grows with guidance", "flat at 1.5, drift at 3.0 (Fig. 5)"),
    "late": ("Late tokens drift most", "most in late tokens (Fig. 5)"),
    "usable": ("Normalizing each token keeps strong guidance usable", "flat, no artefacts (Fig. 5)"),
    "normal": ("Normalization brings latents near a normal distribution", "near (Fig. 7)"),
    "clean": ("More noise in training, worse reconstruction of clean latents", "worse (Fig. 6)"),
    "noisy": ("More noise in training, better reconstruction of noisy latents", "better (Fig. 6)"),
    "generation": ("More noise in training, better generation", "better (Fig. 6)"),
    "heads": ("The size of the flow head hardly matters", "GenEval 0.55 / 0.55 / 0.56 (Table 7)"),
}
FLAT = 0.1  # a variance that is off by less than this is called flat
found = {}  # what was found here, and whether it agrees

plain = {run["cfg"]: run for run in runs if not run["normalize"]}
kept = {run["cfg"]: run for run in runs if run["normalize"]}
if runs:
    strongest = max(plain)
    found["flat"] = in_words(plain[1.5]), max(away(plain[1.5])) < FLAT
    found["drift"] = in_words(plain[3.0]), max(away(plain[3.0])) >= FLAT
    growth = [max(away(run)) for run in plain.values()]
    said = "; ".join(f"guidance {strength:g}: up to {value:.2f}" for strength, value in zip(plain, growth, strict=True))
    found["grows"] = said, growth[-1] > 2 * growth[0]
    found["late"] = f"guidance {strongest:g}: {in_words(plain[strongest])}", np.argmax(away(plain[strongest])) == 3
    scores = kept[strongest]["shape_eval"], plain[strongest]["shape_eval"]
    found["usable"] = (
        f"guidance {strongest:g}: off by up to {max(away(kept[strongest])):.2f}, ShapeEval {scores[0]:.2f}; "
        f"without {max(away(plain[strongest])):.2f}, {scores[1]:.2f}",
        max(away(kept[strongest])) < FLAT and scores[0] >= scores[1],
    )
if "latents" in results:
    distances = [results["latents"][name]["ks"] for name in ("normalized", "raw")]
    found["normal"] = "KS {:.3f}, without {:.3f}".format(*distances), distances[0] < distances[1]
if len(tokenizers) > 1:
    first, last = tokenizers[0], tokenizers[-1]
    ends = f"gamma {first['made_with']['gamma']:g} and {last['made_with']['gamma']:g}"
    for key, strength in (("clean", 0.0), ("noisy", 0.5)):
        one, other = (t["psnr"][t["strengths"].index(strength)] for t in (first, last))
        found[key] = f"{ends}, noise {strength:g}: {one:.1f} and {other:.1f} dB", (other < one) == (key == "clean")
if len(by_gamma) > 1:
    shares = [score(model) for model in by_gamma]
    best, error = max(shares[1:])
    said = "; ".join(
        f"gamma {m['made_with']['gamma']:g}: {share:.2f} ± {e:.2f}" for m, (share, e) in zip(by_gamma, shares, strict=True)
    )
    found["generation"] = said, best - shares[0][0] > 2 * math.hypot(error, shares[0][1])
if len(heads) == 3:
    shares = [score(model) for model in heads]
    apart = max(shares)[0] - min(shares)[0]
    found["heads"] = (
        " / ".join(f"{s:.2f} ± {e:.2f}" for s, e in shares),
        apart <= 2 * math.hypot(max(shares)[1], min(shares)[1]),
    )

lines = ["| claim | paper | here | |", "|---|---|---|---|"]
for key, texts in CLAIMS.items():
    ours, agrees = found.get(key, ("-", None))
    verdict = {True: "agrees", False: "does not agree", None: "not run"}[None if agrees is None else bool(agrees)]
    lines.append("| " + " | ".join((*texts, ours, verdict)) + " |")
Markdown("\n".join(lines))
