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
# # Post-training by preferences and by rewards
# Diffusion-DPO on the flow head (paper section 6.3.3): a model draws several images of a prompt, a reward scores them, and
# training makes the better one of two more likely than the worse. Here in miniature: the candidates, a short run with its
# curves, and what the model draws before and after with the same noise. At the end: longer runs, measured, and their controls;
# and online training, where the model draws its images anew in every step.

# %%
import json
import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from plots import FAST, show

from nextstep_jax.configs import shapes_dpo
from nextstep_jax.data import shapes
from nextstep_jax.data.augment import choose_pair, draws
from nextstep_jax.data.sources import open_source
from nextstep_jax.evaluation.shapes import failure
from nextstep_jax.generation.load import builtin_checkpoint
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.models.image_tokenizer import patchify
from nextstep_jax.rewards.combine import RewardTerm
from nextstep_jax.rewards.loading import open_reward
from nextstep_jax.training.candidates import make_candidates, read_prompts
from nextstep_jax.training.loop import train
from nextstep_jax.training.run_logs import read_metrics

work = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Candidates
# Training prompts of one category, eight images each, without guidance: there the built-in model fails often enough for a short
# run to learn from. A prompt whose images are all right teaches nothing and is left out.

# %%
pipeline = Pipeline.from_checkpoint()
unguided = pipeline.settings(cfg=1.0)
prompts = read_prompts("shapes:attribute binding:12" if FAST else "shapes:attribute binding:160")
report = make_candidates(
    pipeline, prompts, [RewardTerm(open_reward("shapes"))], work / "candidates", per_prompt=8, settings=unguided
)
print(report)

# %%
dataset = open_source(work / "candidates")
images, titles, colors = [], [], []
for i in range(min(3, len(dataset))):
    sample = dataset[i]
    scores = sample.metadata["scores"]
    winner, loser = choose_pair(scores, draws("preference", 0, i))
    latents = np.stack([part.latents() for part in sample.images]).astype(np.float32)
    images += list(pipeline.decode_images(patchify(latents, pipeline.config.patch), 4, 4))
    for j, score in enumerate(scores):
        titles.append(f"{sample.texts[0].text if j == 0 else ''}\n{score:.1f}")
        colors.append("C2" if j == winner else "C3" if j == loser else "black")
show(images, titles, columns=8, colors=colors)

# %% [markdown]
# The winner of a pair (green) is one of the best quarter, the loser (red) one of the others that scores less; both are drawn
# anew in every epoch.
#
# ## The run
# The model that training starts from is the reference: compared with it, the model is to get better at the winner than at the
# loser. `winner_weight` keeps it from getting there by unlearning both. The recipe is stronger than that of `shapes_dpo`: a few
# steps are to show.

# %%
config = shapes_dpo.base()
config.data.root, config.data.batch_size = str(work), 2
config.init.checkpoint = config.image_tokenizer_checkpoint = str(builtin_checkpoint())
config.steps, config.log_every = (4, 1) if FAST else (60, 3)
config.loss.beta, config.loss.winner_weight, config.optimizer.learning_rate = 500.0, 25.0, 1e-4
config.optimizer.warmup_steps = config.steps // 6
train(config, work / "run")
metrics = read_metrics(work / "run")


# %%
def smooth(values):
    """Means of five reports in a row: every report is of other pairs."""
    kernel = np.ones(min(5, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.8))
for axis, names, title in zip(
    axes,
    (["margin"], ["correct"], ["winner_drift", "loser_drift"]),
    ("Margin", "Implicit accuracy", "Change of the error (MSE per number)"),
    strict=True,
):
    for name, color in zip(names, ("C2", "C3") if len(names) > 1 else ("C0",), strict=True):
        steps, values = metrics[f"preference/{name}"]
        axis.plot(steps, values, color=color, alpha=0.3)
        axis.plot(steps, smooth(values), color=color, label=name.replace("_drift", ""))
    axis.set(title=title, xlabel="step")
axes[1].axhline(0.5, color="gray", lw=0.8, ls=":")
axes[2].axhline(0, color="gray", lw=0.8, ls=":")
axes[2].legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# The margin starts at 0, where model and reference are the same, and accuracy at chance.
#
# ## Before and after
# Held-out prompts of the category, no guidance, the same noise for both models; green is right, red is wrong.

# %%
after = Pipeline.from_checkpoint(work / "run" / "export")
held_out = shapes.prompts("heldout", "attribute binding", 3 if FAST else 40, seed=1)
drawn = {
    name: [model.generate(p.text, seed=i, settings=unguided)[0].pixels for i, p in enumerate(held_out)]
    for name, model in (("before", pipeline), ("after", after))
}
wrong = {name: [failure(p, image) is not None for p, image in zip(held_out, made, strict=True)] for name, made in drawn.items()}
chosen = np.argsort([-(a != b) for a, b in zip(wrong["before"], wrong["after"], strict=True)], kind="stable")[:8]
show(
    [drawn[name][i] for name in drawn for i in chosen],
    [held_out[i].text for i in chosen] + ["wrong" if wrong["after"][i] else "right" for i in chosen],
    columns=len(chosen),
    rows=list(drawn),
    colors=["C3" if wrong[name][i] else "C2" for name in drawn for i in chosen],
)
print({name: f"{np.mean(np.logical_not(values)):.2f} right of {len(values)}" for name, values in wrong.items()})

# %% [markdown]
# Shown first are the prompts that differ, so the grids say how they differ and not how often.
#
# ## Measured
# Runs of `shapes_dpo` on candidates of the built-in model at guidance 3, and the controls, as
# [docs/post_training.md](../docs/post_training.md) has the commands. Differences from the model before, on held-out prompts by
# which nothing was chosen, with 95 % intervals of a paired bootstrap over prompts.

# %%
results = json.loads(pathlib.Path("post_training_results/comparison.json").read_text())["compared"]
groups = ("words", "counting", "attribute binding")
figure, axes = plt.subplots(1, len(groups), figsize=(9.5, 3.2), sharey=True)
for axis, group in zip(axes, groups, strict=True):
    rows = [run["scores"][group] for run in results.values()]
    middle = np.array([row["difference"] for row in rows])
    ends = np.array([[row["low"], row["high"]] for row in rows]).T
    axis.errorbar(middle, range(len(rows)), xerr=np.abs(ends - middle), fmt="o", ms=4, capsize=2)
    axis.axvline(0, color="gray", lw=0.8, ls=":")
    axis.set(title=group, yticks=range(len(rows)), yticklabels=list(results), xlabel="difference")
    axis.xaxis.set_major_locator(plt.MaxNLocator(4))
axes[0].invert_yaxis()
figure.tight_layout()
plt.show()

# %%
print(f"{'':<34}{'words':>16}{'counting':>16}{'binding':>16}  distance")
for name, run in results.items():
    cells = (run["scores"][group] for group in groups)
    texts = (f"{row['difference']:+.3f} ±{(row['high'] - row['low']) / 2:.3f}" for row in cells)
    print(f"{name:<34}{''.join(f'{text:>16}' for text in texts)}  {np.mean(list(run['distance_ratio'].values())):.2f}")

# %% [markdown]
# ## Online
# `shapes_nft`: in every step 16 images of each of 16 training prompts, without guidance, scored by the same reader, and one
# update (forward-process learning), in runs of different seeds. Beside them the control, whose reward is a coin that knows
# nothing of the image.

# %%
online = json.loads(pathlib.Path("post_training_results/online.json").read_text())
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for name, run in online["curves"].items():
    axes[0].plot(run["step"], run["reward"], "o-", ms=3, label=name)
    axes[1].plot(run["step"], run["drift"], "o-", ms=3, label=name)
axes[0].set(title="Mean reward of a step's images", xlabel="step")
axes[1].set(title="Distance from the first model (MSE)", xlabel="step")
axes[1].legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# The control's reward is the coin's. What counts is what all do on held-out prompts, judged by the reader.

# %%
for name, run in online["compared"].items():
    print(name)
    for group, row in run["scores"].items():
        interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"  {group:<18} {row['before']:.3f} -> {row['after']:.3f}   {interval}")
