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
# # Anatomy of one image
# One prompt is followed by hand through the built-in model, with nothing but `apply`: ids, embeddings, hidden states, the flow
# head's path from noise to an image token, tokens, latents, pixels. At the end: which words each image token attends to, and
# where the time goes.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from plots import FAST, seconds

from nextstep_jax.data.sequence import image_prefix
from nextstep_jax.evaluation.traces import token_trajectories, trace, word_attention
from nextstep_jax.flow.guidance import guide
from nextstep_jax.flow.samplers import timesteps
from nextstep_jax.generation import token_loop
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.generation.prompts import align_rows, frame_prompt, row_batch
from nextstep_jax.generation.tokenizer import decode_images
from nextstep_jax.models.image_tokenizer import ImageTokenizer, unpatchify, unscale_latents
from nextstep_jax.models.layers import layer_norm
from nextstep_jax.models.nextstep import NextStep, init_params

pipeline = Pipeline.from_checkpoint()
config, params, special = pipeline.config, pipeline.params, pipeline.special
settings = pipeline.settings()
prompt, seed, h, w = "a red circle left of a blue square", 1, 4, 4


def tree_size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


model = NextStep(config)
fresh = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))  # `init`: the shapes of all parameters
assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
sizes = {name: tree_size(tree) for name, tree in params.items()} | {"image tokenizer": tree_size(pipeline.tokenizer_params)}
figure, axis = plt.subplots(figsize=(7, 2.2))
bars = axis.barh(list(sizes), [size / 1e3 for size in sizes.values()], color="steelblue")
axis.bar_label(bars, fmt="%.0f", padding=3)
axis.set(xlabel="parameters (thousands)", title="What the built-in model is made of")
axis.invert_yaxis()
axis.margins(x=0.12)
plt.show()

# %% [markdown]
# ## Ids
# The prompt, then the markers that open an image of 4x4 tokens: `<|image_area|>4*4<|begin_of_image|>`.

# %%
row = frame_prompt([prompt, image_prefix(special, h, w)], special, config, pipeline.vocabulary)
names = [pipeline.text([i]) or "mark" for i in row.text_ids]
names[-1], names[-5] = "begin of image", "image area"
print("  ".join(f"{name}:{i}" for name, i in zip(names, row.text_ids, strict=True)))

# %% [markdown]
# ## Embeddings and hidden states
# Each id becomes a vector; each block adds to it. Left: how large the vectors are after each block. Right: the cosine
# similarity of the final hidden states of each two positions.

# %%
apply = jax.jit(
    lambda params, *inputs, method=None: model.apply({"params": params}, *inputs, method=method), static_argnames="method"
)
batch = row_batch(row)
embeddings = apply(params, batch.text_ids, batch.image_tokens, batch.is_image, method="embed")
layers = [embeddings, *apply(params, batch, method="layer_outputs")]
hidden = apply(params, batch)
lengths = np.stack([np.linalg.norm(np.asarray(x)[0], axis=-1) for x in layers])
unit = np.asarray(hidden)[0] / np.linalg.norm(np.asarray(hidden)[0], axis=-1, keepdims=True)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), gridspec_kw={"width_ratios": [1.1, 1]})
image = left.imshow(lengths, aspect="auto", cmap="viridis")
left.set(
    yticks=range(len(layers)),
    yticklabels=["embedding"] + [f"block {i}" for i in range(1, len(layers))],
    title="Length of the vectors",
)
figure.colorbar(image, ax=left, label="Euclidean norm")
image = right.imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1)
right.set(yticks=range(len(names)), yticklabels=names, title="Cosine similarity of hidden states")
figure.colorbar(image, ax=right, label="cosine")
for axis in (left, right):
    axis.set_xticks(range(len(names)), names, rotation=90)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## One token by hand
# The hidden state at `<|begin_of_image|>` is the flow head's condition; the same without a prompt is the condition it is guided
# away from. The head says how fast a point moves at a time; twenty Euler steps carry noise at t = 0 to a token at t = 1.

# %%
nothing = frame_prompt([settings.negative_prompt, image_prefix(special, h, w)], special, config, pipeline.vocabulary)
conditions = jnp.concatenate([apply(params, apply(params, row_batch(r))[:, -1], method="project_out") for r in (row, nothing)])
sampler_config = settings.sampler_config(has_image=False)
key = jax.random.fold_in(jax.random.key(seed), 0)
noise = token_loop.draw_noise(key[None], h * w, sampler_config.num_noise_draws, config.token_channels)  # [tokens, arrays, 1, C]

x, times = noise[0, 0], timesteps(settings.sampler, settings.steps)
for t, dt in zip(times, np.diff([*times, 1.0]), strict=True):
    velocity = apply(params, jnp.tile(x, (2, 1)), jnp.full(2, t), conditions, method="velocity")
    x = x + dt * guide(velocity, settings.cfg, 1.0, branches=2)
token = layer_norm(x, token_loop.TOKEN_NORM_EPS) if settings.normalize_tokens else x

image = pipeline.generate(prompt, seed=seed)[0]
difference = np.abs(np.asarray(token[0]) - image.tokens[0]).max()
print(f"largest difference from the first token that Pipeline.generate drew: {difference:.1e}")

# %% [markdown]
# ## The path of one token
# The sixth token, from eight noises, in the two directions in which the ends differ most from the beginnings (principal
# directions of all points of the finest draw). Dots are where the draws start, crosses where they end. `ode` and `heun` carry a
# noise to the same end if they take enough steps; `1.1` and `sde` add noise on the path, so their ends differ.

# %%
traced = trace(pipeline, [prompt], seed=seed)
k, draws = 5, 8
counts = (2, 20) if FAST else (2, 5, 20, 100)
samplers = ("ode", "1.1") if FAST else ("ode", "heun", "1.1", "sde")
_, reference = token_trajectories(
    pipeline, traced.conditions[k], settings.replace(sampler="ode", steps=counts[-1]), draws=draws
)
center = reference.reshape(-1, reference.shape[-1]).mean(0)
_, strengths, directions = np.linalg.svd(reference.reshape(-1, reference.shape[-1]) - center, full_matrices=False)
shares = strengths[:2] ** 2 / np.sum(strengths**2)

figure, axes = plt.subplots(
    len(samplers), len(counts), figsize=(2.2 * len(counts) + 0.4, 2 * len(samplers)), sharex=True, sharey=True, squeeze=False
)
ends = {}
for line, sampler in zip(axes, samplers, strict=True):
    for axis, count in zip(line, counts, strict=True):
        _, states = token_trajectories(
            pipeline, traced.conditions[k], settings.replace(sampler=sampler, steps=count), draws=draws
        )
        ends[sampler, count] = states[-1]
        points = (states - center) @ directions[:2].T
        for draw in range(draws):
            axis.plot(*points[:, draw].T, lw=0.8, color=f"C{draw}")
            axis.plot(*points[0, draw], "o", ms=3, color=f"C{draw}")
            axis.plot(*points[-1, draw], "x", ms=5, color=f"C{draw}")
        axis.set_title(f"{sampler}, {count} steps")
for axis in axes[:, 0]:
    axis.set_ylabel(f"direction 2 ({shares[1]:.0%})")
for axis in axes[-1]:
    axis.set_xlabel(f"direction 1 ({shares[0]:.0%})")
figure.tight_layout()
plt.show()

# %% [markdown]
# How far each end is from that of the finest `ode` draw from the same noise, and how much of the noise is left in it: the
# spread of the eight ends.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
for sampler in samplers:
    distance = [np.sqrt(np.mean((ends[sampler, count] - reference[-1]) ** 2)) for count in counts]
    spread = [np.sqrt(np.mean(np.var(ends[sampler, count], axis=0))) for count in counts]
    left.plot(counts, distance, "o-", label=sampler)
    right.plot(counts, spread, "o-", label=sampler)
left.set(
    xscale="log", xlabel="steps", ylabel="RMS distance per number", title=f"Distance from the end of ode, {counts[-1]} steps"
)
right.set(xscale="log", xlabel="steps", ylabel="standard deviation", title="Spread of eight ends")
right.legend(title="sampler")
for axis in (left, right):
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Tokens, latents, pixels
# Sixteen tokens of 64 numbers are the latents of an 8x8 grid with 16 channels: each token holds a 2x2 square of it.

# %%
latents = unpatchify(image.tokens[None], h, w, config.patch)
pixels = ImageTokenizer(pipeline.tokenizer_config).apply(
    {"params": pipeline.tokenizer_params}, unscale_latents(latents, pipeline.tokenizer_config), method="decode"
)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.7), gridspec_kw={"width_ratios": [1.8, 1.4, 1]})
shown = axes[0].imshow(image.tokens, aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
axes[0].set(yticks=range(0, 16, 3), xlabel="number in the token", ylabel="token", title="Tokens [16, 64]")
figure.colorbar(shown, ax=axes[0], label="value")
axes[1].imshow(np.asarray(latents)[0].reshape(8, 8, 4, 4).transpose(2, 0, 3, 1).reshape(32, 32), cmap="RdBu_r", vmin=-3, vmax=3)
for edge in (7.5, 15.5, 23.5):
    axes[1].axhline(edge, color="black", lw=0.6)
    axes[1].axvline(edge, color="black", lw=0.6)
axes[1].set(xticks=[], yticks=[], title="Latents: 16 channels of 8x8")
axes[2].imshow(np.clip(np.asarray(pixels)[0] / 2 + 0.5, 0, 1))
axes[2].set(xticks=[], yticks=[], title="Pixels [64, 64, 3]")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What each image token attends to
# For every word, the attention that the sixteen positions that predict the image's tokens pay to it: mean over all heads of
# a block, laid out as the image is; colors follow the square root of the weight, so that faint ones show. The rest of a
# position's attention goes to the image's markers and to earlier tokens.

# %%
words, weights = word_attention(pipeline, prompt, image.tokens, h, w)
by_layer = weights.mean(1)  # [L, n, W]
chosen = range(len(by_layer))[-1:] if FAST else range(len(by_layer))
top = by_layer[list(chosen)].max()
figure, axes = plt.subplots(len(chosen), len(words) + 1, figsize=(9.5, 1.2 * len(chosen) + 0.5), squeeze=False)
for line, layer in zip(axes, chosen, strict=True):
    line[0].imshow(image.pixels)
    line[0].set_ylabel(f"block {layer + 1}")
    for axis, word, column in zip(line[1:], words, by_layer[layer].T, strict=True):
        shown = axis.imshow(column.reshape(h, w), norm=PowerNorm(0.5, vmin=0, vmax=top), cmap="magma")
        axis.set_title(word)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
figure.colorbar(shown, ax=axes, label="attention weight", fraction=0.02, pad=0.01)
plt.show()

# %% [markdown]
# ## Where the time goes
# Median times of one image's parts, each compiled on its own, on the machine that executed this notebook. The transformer
# runs once a token, the flow head `steps` times; guidance runs both with two rows.

# %%
state = token_loop.prefill(config, params, align_rows([row, nothing]), sampler_config.branches, h * w)
one_step = jax.jit(
    lambda params, state: token_loop.transformer_step(
        config, params, state.embedding, state.positions, state.cache, state.valid
    )
)
condition = jnp.asarray(traced.conditions[k])
parts = {"transformer step": seconds(one_step, params, state)}
for steps in (5, 20) if FAST else (5, 20, 50):
    fewer = settings.replace(steps=steps).sampler_config(has_image=False)
    flow = jax.jit(
        lambda params, c, n, fewer=fewer: token_loop.flow_step(
            config, fewer, params, c, token_loop.embed_times(config, fewer, params), n, 3.0, 1.0
        )
    )
    parts[f"flow head, {steps} steps"] = seconds(flow, params, condition, noise[0])
pixels_of = jax.jit(lambda p, tokens: decode_images(pipeline.tokenizer_config, config.patch, h, w, p, tokens))
parts["decoder, a sixteenth of an image"] = seconds(pixels_of, pipeline.tokenizer_params, image.tokens[None]) / (h * w)
figure, axis = plt.subplots(figsize=(7.5, 2.2))
bars = axis.barh(list(parts), [1e3 * value for value in parts.values()], color="steelblue")
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.invert_yaxis()
axis.margins(x=0.12)
axis.set(xlabel="milliseconds per image token", title="Time of one token's parts")
plt.show()
