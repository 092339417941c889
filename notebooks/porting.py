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
# # Porting weights, and knowing that they arrived
# A checkpoint in the released layout (a tiny one with random weights, made with the PyTorch release's own code) is converted,
# compared array by array with what PyTorch computed, exported again byte for byte, and put on a mesh of eight devices. With a
# real release only the folder's name changes.

# %%
import collections
import pathlib
import re
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
from plots import FAST
from safetensors.numpy import load_file

from nextstep_jax import checkpoints
from nextstep_jax.conversion import convert, export
from nextstep_jax.conversion.names import model_entries
from nextstep_jax.conversion.parity import PARTS, run_parity
from nextstep_jax.generation.load import read_configs
from nextstep_jax.models.nextstep import NextStep, empty_batch
from nextstep_jax.sharding.mesh import make_mesh
from nextstep_jax.sharding.params import sharding_table, shards, state_shardings

jax.config.update("jax_num_cpu_devices", 8)  # eight devices on one CPU; has to come before JAX is used

goldens = pathlib.Path("../tests/goldens")
work = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Convert
# One tensor in memory at a time; every tensor of the source is used once or named as dropped.

# %%
result = convert(goldens / "tiny_model", work / "checkpoint", vae=goldens / "tiny_vae_norm")
print(f"{result.parameters:,} parameters, {result.nbytes:,} bytes; dropped: {', '.join(result.dropped) or 'nothing'}")
for warning in result.warnings:
    print("warning:", warning.replace(str(goldens), "goldens"))

# %% [markdown]
# One table serves both directions. Torch keeps linear layers as [out, in] and heads folded into the width; here the axes are
# spelled out, so that einsums and shardings can name them.

# %%
config, _, _ = read_configs(work / "checkpoint")
for entry in model_entries(config)[:12]:
    print(f"{entry.source:<42} {str(entry.source_shape):<12} {entry.layout:<24} {entry.path} {entry.shape}")

# %% [markdown]
# ## Compare
# `nextstep-jax parity`, as a plot: each dot is one array that the PyTorch releases computed, its height the largest
# difference from ours in float32, the black line its bound. Dots on the floor are equal to the last bit.

# %%
parts = ("networks", "samplers") if FAST else tuple(PARTS)
report = run_parity(goldens, parts=parts)
print(f"{len(report.rows)} arrays compared, {len(report.misses)} missed")

# %%
floor = 1e-9
groups = collections.defaultdict(list)
for row in report.rows:
    groups[row.array.split(".")[0].removesuffix("_list").split("_cfg")[0]].append(row)
figure, axis = plt.subplots(figsize=(9, 4))
start = 0
ticks = []
for number, (name, rows) in enumerate(groups.items()):
    x = np.arange(start, start + len(rows))
    axis.semilogy(x, [max(row.max_abs, floor) for row in rows], ".", ms=3, color=f"C{number % 10}")
    axis.semilogy(x, [max(row.bound, floor) for row in rows], "_", ms=3, color="black")
    ticks.append((start + len(rows) / 2, name))
    start += len(rows) + 12
axis.set_xticks(*zip(*ticks, strict=True), rotation=60, ha="right", fontsize=7)
axis.set(ylabel="largest absolute difference", title="Ours against PyTorch: differences (dots) and bounds (black)")
figure.tight_layout()
plt.show()

# %% [markdown]
# What the numbers mean:
#
# | bound | of | why |
# |---|---|---|
# | 0 | layouts, sequences, labels, file formats | nothing is computed, so nothing may differ |
# | 1e-6 | times, schedules, guidance | a few float32 operations on numbers around 1 |
# | 2e-5 | one pass: blocks, logits, velocities, a sampler, losses | sums of many products, in another order |
# | 1e-4 | the tokens of a whole generation | the errors of one token are the input of the next |
# | 1e-4 of the largest entry | gradients | their scale differs by tensor, so the bound goes with it |
# | 1 level | 8-bit images | rounding may fall to either side |
#
# A wrong epsilon, rotation, mask or order of channels shows as 1e-3 or more: three orders of magnitude above the dots.

# %% [markdown]
# ## Export
# Back to the released layout: the same names, types and bytes.

# %%
export(work / "checkpoint", work / "released")
released, ours = load_file(goldens / "tiny_model" / "model.safetensors"), load_file(work / "released" / "model.safetensors")
same = [
    name for name in released if released[name].tobytes() == ours[name].tobytes() and released[name].dtype == ours[name].dtype
]
print(f"{len(released)} tensors released, {len(ours)} exported, {len(same)} of them byte-identical")

# %% [markdown]
# ## On eight devices
# A mesh of 4 x 2: `fsdp` splits the model width, `tensor` splits heads, MLP, and vocabulary. The table says for every parameter
# what each of its dimensions is split over ("-": not at all) and how much of it a device holds. A dimension that an axis does
# not divide stays whole. Small vectors (norms, biases) are copied to every device and left out here.

# %%
mesh = make_mesh({"fsdp": 4, "tensor": 2})
abstract = checkpoints.abstract_params(work / "checkpoint")
table = sharding_table(abstract, mesh).splitlines()
chosen = re.compile(
    r"parameter|total|model/(embedding|lm_head|decoder/layers_0|image_|flow_head/(blocks_0|input)).*(kernel|embedding)"
)
print("\n".join(line for line in table if chosen.match(line)))

# %% [markdown]
# `load_params` reads each device's slices straight to it. Below, where the devices' parts of four parameters lie.

# %%
params = checkpoints.load_params(work / "checkpoint", shardings=state_shardings(abstract, mesh))
layer = params["model"]["decoder"]["layers_0"]
examples = {
    "embedding (vocabulary, width)": params["model"]["embedding"]["embedding"],
    "mlp gate (width, MLP)": layer["mlp"]["gate"]["kernel"],
    "mlp down (MLP, width)": layer["mlp"]["down"]["kernel"],
    "query (width, heads, head dim)": layer["attention"]["q"]["kernel"],
}
figure, axes = plt.subplots(1, len(examples), figsize=(9, 2.6))
for axis, (name, array) in zip(axes, examples.items(), strict=True):
    owner = np.zeros(array.shape[:2])
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        owner[index[:2]] = device.id
        rows, columns = (range(*piece.indices(size)) for piece, size in zip(index[:2], array.shape[:2], strict=True))
        axis.text(np.mean(columns), np.mean(rows), str(device.id), ha="center", va="center")
    axis.imshow(owner, aspect="auto", cmap="Set2", interpolation="nearest")
    axis.set(title=name, xticks=[], yticks=[], xlabel=f"{array.shape[1]}", ylabel=f"{array.shape[0]}")
figure.suptitle("Device that holds each part", y=1.0)
figure.tight_layout()
plt.show()

# %% [markdown]
# What a device holds on different meshes, and that the split model computes what the whole one does.

# %%
meshes = {
    "1 device": None,
    "fsdp 8": {"fsdp": 8},
    "fsdp 4 x tensor 2": {"fsdp": 4, "tensor": 2},
    "data 2 x fsdp 4": {"data": 2, "fsdp": 4},
}
leaves = jax.tree.leaves(abstract)
held = {}
for name, sizes in meshes.items():
    split = [1] * len(leaves)
    if sizes:
        on = make_mesh(sizes)
        split = [shards(place.spec, on) for place in jax.tree.leaves(state_shardings(abstract, on))]
    held[name] = sum(leaf.size * leaf.dtype.itemsize / count for leaf, count in zip(leaves, split, strict=True)) / 1e6
figure, axis = plt.subplots(figsize=(7, 1.9))
bars = axis.barh(list(held), list(held.values()), color="steelblue")
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.invert_yaxis()
axis.margins(x=0.12)
axis.set(xlabel="megabytes of parameters on each device", title="Model and image tokenizer, float32")
plt.show()

batch = empty_batch(config, rows=8, length=16)
model = NextStep(config)
forward = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
with jax.set_mesh(mesh):
    split = np.asarray(forward(params["model"], batch))
whole = np.asarray(forward(checkpoints.load_params(work / "checkpoint", subtree="model"), batch))
print(f"largest difference of hidden states, eight devices against one: {np.abs(split - whole).max():.1e}")
