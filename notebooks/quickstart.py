# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
# The built-in model draws 64x64 pictures from its own small language, edits them and describes them. You will see a grid
# of seeds, what guidance does, and a picture appearing token by token. Everything runs on a CPU in about a minute.

# %%
import matplotlib.pyplot as plt

from nextstep_jax.generation.pipeline import Pipeline

pipeline = Pipeline.from_checkpoint()


def show(pictures, titles):
    """Pictures side by side."""
    _, axes = plt.subplots(1, len(pictures), figsize=(1.6 * len(pictures), 1.9), squeeze=False)
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    plt.show()


# %% [markdown]
# ## Seeds

# %%
prompt = "three green stars"
images = pipeline.generate(prompt, n=6, seed=0)
show([image.pixels for image in images], [f"image {image.record['index']}" for image in images])

# %% [markdown]
# ## Guidance
# One program serves every strength: only a strength of 1, which needs no unconditional branch, compiles again.

# %%
strengths = (1.0, 2.0, 3.0, 5.0, 8.0)
guided = [pipeline.generate(prompt, seed=0, settings=pipeline.settings(cfg=cfg))[0] for cfg in strengths]
show([image.pixels for image in guided], [f"cfg {cfg:g}" for cfg in strengths])

# %% [markdown]
# ## Token by token

# %%
partial = []
pipeline.generate(prompt, seed=0, on_chunk=lambda done, total, preview: partial.append((done, preview()[0])))
show([picture for done, picture in partial if done % 4 == 0], [f"{done} of 16 tokens" for done, _ in partial if done % 4 == 0])

# %% [markdown]
# ## Other shapes of picture, edits, captions

# %%
wide = pipeline.generate(prompt, height=32, width=128)[0]
edited = pipeline.edit(images[0].pixels, "make the star blue", seed=0)[0]
show([wide.pixels, images[0].pixels, edited.pixels], ["32x128", "before", "make the star blue"])
print(pipeline.write(images=[images[0].pixels], max_tokens=32))
