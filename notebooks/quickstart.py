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
# # Quickstart
# The built-in model draws images of 64x64 pixels and five other sizes in a small language of shapes, changes images on
# request, describes them, and writes stories with images in them. Below: prompts and what it draws, seeds against guidance, an
# image appearing token by token, edits, captions, a story, and images that are not square. A green title means that ShapeEval,
# which reads pixels by classical image analysis, finds in the image what was asked for; a red one that it does not.

# %%
import re

from plots import FAST, show

from nextstep_jax.data import shapes
from nextstep_jax.evaluation.shapes import default_prompts, failure
from nextstep_jax.generation.interleaved import generate_interleaved
from nextstep_jax.generation.pipeline import GeneratedImage, Pipeline
from nextstep_jax.notebook import Controls, Watch, grid

pipeline = Pipeline.from_checkpoint()  # or the folder of a converted checkpoint


def verdicts(prompts, answers):
    """Green where the answer is what its prompt asks for, red where not."""
    return [
        "darkgreen" if failure(prompt, answer) is None else "firebrick" for prompt, answer in zip(prompts, answers, strict=True)
    ]


# %% [markdown]
# ## Prompts

# %%
texts = [
    "a red circle",
    "a small blue star on a black background",
    "a green triangle above a yellow cross",
    "three purple diamonds",
    "a red circle left of a blue square",
    "an orange cross and a cyan circle",
    "a yellow star",
    "two green squares",
    "a pink square on a black background",
    "a cyan diamond below a red star",
    "four orange circles",
    'the word "cat" in blue',
][: 4 if FAST else 12]
images = pipeline.generate(texts, seed=0)
asked = [shapes.understand(text) for text in texts]
pixels = [image.pixels for image in images]
show(pixels, texts, columns=6, side=1.5, colors=verdicts(asked, pixels))

# %% [markdown]
# ## Seeds and guidance
# Along a row the seed changes, down a column the guidance strength. Strength 1 follows the prompt as the model learned it;
# above it, what distinguishes the prompt from no prompt is exaggerated. One compiled program serves every strength above 1.

# %%
prompt = "a green star and a red circle"
strengths, seeds = ((1.0, 3.0) if FAST else (1.0, 1.5, 3.0, 5.0, 8.0)), (3 if FAST else 6)
pixels = [
    image.pixels
    for strength in strengths
    for image in pipeline.generate(prompt, n=seeds, seed=0, settings=pipeline.settings(cfg=strength))
]
colors = verdicts([shapes.understand(prompt)] * len(pixels), pixels)
names = [f"image {i % seeds}" for i in range(len(pixels))]
show(pixels, names, columns=seeds, rows=[f"guidance {strength:g}" for strength in strengths], colors=colors)

# %% [markdown]
# ## Token by token
# `on_chunk` is called while the image grows; here it keeps every preview. Each token is a square of 16x16 pixels, in reading
# order; what is not there yet is decoded from zeros.

# %%
previews = []
pipeline.generate(
    "a red circle left of a blue square", seed=1, on_chunk=lambda n, total, decode: previews.append((n, decode()[0]))
)
chosen = [previews[i] for i in (range(3, 16, 4) if FAST else range(16))]
show([image for _, image in chosen], [f"{n} of 16 tokens" if n > 1 else "1 token" for n, _ in chosen])

# %% [markdown]
# `Watch` shows the same while it happens: a bar, and the images so far. Below, what it leaves in the end.

# %%
images = pipeline.generate("an orange cross and a cyan circle", n=2 if FAST else 4, seed=3, on_chunk=Watch())

# %% [markdown]
# An image shows itself, and `grid` lays several out with their prompts and seeds.

# %%
images[0]

# %%
grid(images)

# %% [markdown]
# `Controls` are for playing: a prompt, sliders and a button. They need a running kernel.

# %%
Controls(pipeline)

# %% [markdown]
# ## Edits
# An image and an instruction in, an image out. In between the model thinks in words, which are kept in the image's record:
# what lies in each of nine places, the change, and what lies there afterwards. Below the images, the words of the first.

# %%
edits = default_prompts(8)[-16:-8][: 2 if FAST else 8]
before = [shapes.render(edit.scene) for edit in edits]
edited = [pipeline.edit(image, edit.text, seed=0)[0] for image, edit in zip(before, edits, strict=True)]
after = [image.pixels for image in edited]
titles = [""] * len(edits) + [edit.text for edit in edits]
show(
    before + after,
    titles,
    columns=len(edits),
    rows=["before", "after"],
    side=1.05,
    colors=["black"] * len(edits) + verdicts(edits, after),
)
for part in edited[0].record["thinking"].split(". "):
    places = [f"{place:26}" for place in re.findall(r"\d \w+ \w+ (?:\d )?\w+", part)]
    rows = ["".join(places[i : i + 3]) for i in (0, 3, 6)] if len(places) == 9 else [part]
    print(*rows, "", sep="\n")

# %% [markdown]
# ## Captions

# %%
captions = default_prompts(6)[-6:][: 2 if FAST else 6]
before = [shapes.render(prompt.scene) for prompt in captions]
written = [pipeline.generate_text(images=[image], max_tokens=64) for image in before]
show(before, written, columns=6, side=1.5, colors=verdicts(captions, written))

# %% [markdown]
# ## Text and images in one sequence
# The model goes on with a story: it writes, says when an image comes, draws it, and writes on with that image in view. Before
# an image that changes another it thinks, as before an edit, which stays out of the text; it ends by saying what there is.

# %%
beginning = "first, draw a large red circle on a white background."
story = generate_interleaved(pipeline, beginning, max_images=2 if FAST else 5, seed=0)
drawn, told, said = [], [], beginning
for part in story:
    if isinstance(part, GeneratedImage):
        drawn.append(part.pixels)
        told.append(said)
        said = ""
    else:
        said = f"{said} {part}".strip()
show(drawn, told, columns=5, side=1.8)
print(said)

# %% [markdown]
# ## Any aspect ratio
# Sides are multiples of 16 pixels. The built-in model was trained on these six sizes; the prompt announces the grid of tokens,
# and from that the model knows where the next row begins.

# %%
sizes = [(64, 64), (48, 80), (80, 48), (64, 96), (96, 64), (64, 128)][: 2 if FAST else 6]
text = "a red circle and a blue square"
pixels = [pipeline.generate(text, height=h, width=w, seed=2)[0].pixels for h, w in sizes]
colors = verdicts([shapes.understand(text)] * len(pixels), pixels)
show(pixels, [f"{w}x{h}" for h, w in sizes], side=1.6, colors=colors)
