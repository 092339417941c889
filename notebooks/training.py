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
# # Training from nothing
# A small model learns to draw in a few minutes, with the loop and the config that made the built-in one. Below: the mixture of
# data and how it is packed, as plots; losses by kind of output and of data; what it draws as it learns; and the same run
# with one value of the config changed.

# %%
import functools
import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from plots import FAST, show

from nextstep_jax.configs import shapes_nextstep
from nextstep_jax.data import shapes
from nextstep_jax.data.build import build
from nextstep_jax.data.encode import encode
from nextstep_jax.data.inspection import contact_sheet
from nextstep_jax.data.sequence import KIND_IDS
from nextstep_jax.data.sources import open_source
from nextstep_jax.evaluation.latents import encode_latents
from nextstep_jax.generation.load import builtin_checkpoint
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.training.config import resolve
from nextstep_jax.training.loop import make_stage, train
from nextstep_jax.training.run_logs import read_metrics, read_samples

work = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Data
# Four kinds of sample are encoded once, with the built-in image tokenizer, so that training need not run it; text is read as it
# is. The sheet shows captions, edits (source in gray, target in blue) and stories as they are stored.

# %%
counts = {"pair": 3000, "caption": 600, "edit": 600, "interleaved": 150, "heldout": 64}
if FAST:
    counts = dict.fromkeys(counts, 24)
pipeline = Pipeline.from_checkpoint()
for name, count in counts.items():
    source = open_source(f"shapes:pair:heldout:{count}" if name == "heldout" else f"shapes:{name}:train:{count}")
    build(source, work / "pixels" / name)
    encode(
        work / "pixels" / name,
        lambda pixels: encode_latents(pipeline.tokenizer_config, pipeline.tokenizer_params, pixels),
        work / "data" / name,
        area=64,
        batch=32,
    )

# %%
sheets = [contact_sheet(open_source(str(work / "pixels" / kind)), 2 if FAST else 4) for kind in ("pair", "edit", "interleaved")]
figure, axes = plt.subplots(3, 1, figsize=(9, 8))
for axis, sheet, name in zip(axes, sheets, ("pairs", "edits", "stories"), strict=True):
    axis.imshow(sheet)
    axis.set(title=name, xticks=[], yticks=[])
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The config
# The one that trained the built-in model, with fewer steps.


# %%
def small_run(**changes):
    """The built-in model's config for a short run; changes are written as paths into it with two underscores for a dot."""
    config = shapes_nextstep.base()
    config.image_tokenizer_checkpoint = str(builtin_checkpoint())
    config.data.root = str(work / "data")
    config.steps = 8 if FAST else 400
    config.optimizer.warmup_steps = config.steps // 8
    config.ema_decay = 0.98
    config.model.transformer.layers = 1 if FAST else 4
    config.log_every, config.samples.every = max(1, config.steps // 40), config.steps // 4
    config.evals = {}
    config.validation.every, config.validation.batches, config.checkpoint.every = config.steps // 4, 2, 0
    if FAST:
        config.data.batch_size = 2
        config.model.transformer.width, config.model.transformer.mlp_width = 64, 128
        config.model.flow_head.layers, config.model.flow_head.width = 1, 64
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


config = small_run()
shown = (
    "steps",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "ema_decay",
    "data.batch_size",
    "data.seq_len",
    "model.text_loss_weight",
)
for name in shown:
    print(f"config.{name:<28} {functools.reduce(getattr, name.split('.'), config)}")

# %% [markdown]
# ## Mixture and packing
# One batch as the model gets it. Samples of all kinds are packed into rows of equal length, by best fit; samples in one row do
# not see each other (white lines). Top: what kind of data a position belongs to. Middle: text or image token. Bottom: what is a
# target: of the language head, of the flow head, or of none, as the sources of edits and images to be captioned.

# %%
stage = make_stage(resolve(config))
data = stage.training_data()
(batch, kinds), names, _ = next(data)
data.close()
borders = [np.flatnonzero(np.diff(row)) + 0.5 for row in batch.segment_ids]
used = batch.segment_ids > 0
content = np.where(used, 1 + batch.is_image, 0)
target = np.where(batch.image_weight > 0, 3, np.where(batch.text_weight > 0, 2, used.astype(int)))
panels = {
    "kind of data": (kinds, ["padding", *list(KIND_IDS)[:4]], ["#eeeeee", "C0", "C2", "C4", "C5"]),
    "content": (content, ["padding", "text", "image token"], ["#eeeeee", "C0", "C1"]),
    "target of": (target, ["padding", "no head", "language head", "flow head"], ["#eeeeee", "#aaaaaa", "C0", "C1"]),
}
figure, axes = plt.subplots(3, 1, figsize=(9.5, 6.5), sharex=True)
for axis, (title, (values, labels, colors)) in zip(axes, panels.items(), strict=True):
    shown = axis.imshow(
        values, aspect="auto", cmap=ListedColormap(colors), vmin=-0.5, vmax=len(labels) - 0.5, interpolation="nearest"
    )
    for row, places in enumerate(borders):
        axis.vlines(places, row - 0.5, row + 0.5, color="white", lw=1.2)
    bar = figure.colorbar(shown, ax=axis, ticks=range(len(labels)), pad=0.01)
    bar.ax.set_yticklabels(labels)
    axis.set(title=title, ylabel="row", yticks=range(len(values)))
axes[-1].set_xlabel("position in the row")
figure.tight_layout()
plt.show()
print(f"{len(names)} samples in {len(kinds)} rows, {1 - used.mean():.1%} of the positions are padding")

# %% [markdown]
# ## The run

# %%
train(config, work / "run")
metrics = read_metrics(work / "run")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 2.9))
left.plot(*metrics["text_loss"], color="C0")
left.set(title="Language head", ylabel="cross-entropy (nats per id)", xlabel="step")
middle.plot(*metrics["image_loss"], color="C1", label="training")
middle.plot(*metrics["validation/image_loss"], "o--", color="C3", label="held-out pairs")
middle.set(title="Flow head", ylabel="velocity error (MSE per number)", xlabel="step")
middle.legend()
for kind in KIND_IDS:
    if f"image_loss/{kind}" in metrics:
        right.plot(*metrics[f"image_loss/{kind}"], label=kind, lw=1)
right.set(title="Flow head by kind of data", ylabel="velocity error (MSE per number)", xlabel="step")
right.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# What it draws as it learns: the config's prompts, at guidance 3, one row for each time. Colors and backgrounds come first,
# shapes later than this run lasts: the built-in model saw far more images.


# %%
def show_grids(grids):
    """Rows of sample images, one row a label."""
    images = [image for grid in grids.values() for image in np.split(grid, grid.shape[1] // shapes.CANVAS, axis=1)]
    show(images, list(config.samples.prompts), columns=8, rows=list(grids), side=1.05)


show_grids({f"step {step}": image for step, image in read_samples(work / "run").items()})

# %% [markdown]
# ## One value changed
# A tenth of the learning rate, everything else the same, down to the order of the data.

# %%
slow = small_run(optimizer__learning_rate=config.optimizer.learning_rate / 10)
train(slow, work / "slow")
slower = read_metrics(work / "slow")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.7))
names = ("learning_rate", "text_loss", "image_loss")
labels = ("learning rate", "cross-entropy (nats per id)", "velocity error (MSE per number)")
for axis, name, label in zip(axes, names, labels, strict=True):
    axis.plot(*metrics[name], label=f"{config.optimizer.learning_rate:g}")
    axis.plot(*slower[name], label=f"{slow.optimizer.learning_rate:g}")
    axis.set(xlabel="step", ylabel=label)
axes[1].legend(title="learning rate")
figure.tight_layout()
plt.show()
last = [list(read_samples(work / name).values())[-1] for name in ("run", "slow")]
show_grids({f"rate {c.optimizer.learning_rate:g}": grid for c, grid in zip((config, slow), last, strict=True)})
