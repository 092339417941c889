"""Images in a notebook: several side by side, a bar with the images as they grow, and controls to draw with.

An image alone shows itself (`GeneratedImage._repr_png_`). Needs the extra `notebooks`.
"""

import html
import random
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML, DisplayHandle

from nextstep_jax.data.image_output import png_url
from nextstep_jax.errors import InputError
from nextstep_jax.generation.generated_image import GeneratedImage, Pixels
from nextstep_jax.generation.loaded_model import PartialImages
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.seeds import MAX_SEED

SIDE = 192  # CSS pixels of an image's width in a grid


def grid(
    images: Sequence[GeneratedImage | Pixels], captions: Sequence[str] | None = None, columns: int = 4, side: int = SIDE
) -> HTML:
    """Images in rows of `columns`, each `side` CSS pixels wide, with captions below.

    Args:
      images: of the pipeline, or [height, width, 3] uint8.
      captions: one an image; by default the prompts and seeds of those that have a record.

    Raises:
      InputError: no images, another number of captions, or a size below 1.
    """
    if not images or columns < 1 or side < 1:
        raise InputError(f"a grid needs images, columns and a side, found {len(images)}, {columns} and {side}")
    captions = [_caption(image) for image in images] if captions is None else captions
    if len(captions) != len(images):
        raise InputError(f"expected one caption of each of {len(images)} images, found {len(captions)}")
    cells = "".join(
        f'<figure style="margin:0"><img src="{png_url(_pixels(image))}" alt="{html.escape(caption)}" '
        f'style="width:{side}px;image-rendering:pixelated"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for image, caption in zip(images, captions, strict=True)
    )
    tracks = f"repeat({min(columns, len(images))},{side}px)"
    return HTML(f'<div style="display:grid;grid-template-columns:{tracks};gap:8px;align-items:start">{cells}</div>')


class Watch:
    """An `on_chunk` that shows a bar and the images as they grow: `pipeline.generate(prompt, on_chunk=Watch())`.

    Args:
      previews: how often at most the partial images are decoded.
    """

    def __init__(self, previews: int = 16, columns: int = 4, side: int = SIDE):
        if previews < 1:
            raise InputError(f"previews must be at least 1, found {previews}")
        self._previews, self._layout, self._shown = previews, {"columns": columns, "side": side}, 0
        self._handle: DisplayHandle | None = None
        self._images = ""

    def __call__(self, done: int, total: int, partial: PartialImages) -> None:
        if done * self._previews >= total * (self._shown + 1):
            self._shown = done * self._previews // total
            pixels = partial()
            self._images = grid(pixels, [""] * len(pixels), **self._layout).data
        bar = f'<progress value="{done}" max="{total}"></progress> {done} of {total} tokens'
        shown = HTML(f"<div>{bar}</div>{self._images}")
        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display(shown)
        else:
            self._handle.update(shown)


class Controls(widgets.VBox):
    """A prompt, sliders and a button; the images grow below them while they are drawn.

    Attributes:
      images: what was drawn last.
    """

    def __init__(self, pipeline: Pipeline, prompt: str = "a red circle left of a blue square"):
        settings, side = pipeline.settings(), pipeline.token_pixels
        self.images: list[GeneratedImage] = []
        self._pipeline = pipeline
        wide, described = widgets.Layout(width="32rem"), {"description_width": "7rem"}
        shared = {"style": described, "layout": wide}
        self.prompt = widgets.Text(prompt, description="Prompt", **shared)
        self.cfg = widgets.FloatSlider(settings.cfg, min=1, max=15, step=0.5, description="Guidance", **shared)
        self.steps = widgets.IntSlider(settings.steps, min=2, max=60, description="Steps", **shared)
        sizes = {"min": side, "max": 2 * settings.image_size, "step": side}
        self.width = widgets.IntSlider(settings.image_size, description="Width", **sizes, **shared)
        self.height = widgets.IntSlider(settings.image_size, description="Height", **sizes, **shared)
        self.n = widgets.IntSlider(4, min=1, max=8, description="Images", **shared)
        self.seed = widgets.BoundedIntText(0, min=0, max=MAX_SEED, description="Seed", style=described)
        self.dice = widgets.Button(description="Another seed")
        self.draw = widgets.Button(description="Draw", button_style="primary")
        self._bar = widgets.IntProgress(0, min=0, max=1, layout=wide)
        self._status, self._shown = widgets.Label(), widgets.HTML()
        self.draw.on_click(self._on_draw)
        self.dice.on_click(self._on_dice)
        rows = [self.prompt, self.cfg, self.steps, self.width, self.height, self.n, widgets.HBox([self.seed, self.dice])]
        super().__init__([*rows, widgets.HBox([self.draw, self._status]), self._bar, self._shown])

    def _on_dice(self, _: widgets.Button) -> None:
        self.seed.value = random.randrange(2**31)

    def _on_draw(self, _: widgets.Button) -> None:
        self.draw.disabled, self._status.value = True, "drawing"
        try:
            self.images = self._pipeline.generate(
                self.prompt.value,
                height=self.height.value,
                width=self.width.value,
                n=self.n.value,
                seed=self.seed.value,
                settings=self._pipeline.settings(cfg=self.cfg.value, steps=self.steps.value),
                on_chunk=self._on_chunk,
            )
        except InputError as error:
            self._status.value = str(error)
        else:
            self._status.value, self._shown.value = "", grid(self.images).data
        finally:
            self.draw.disabled = False

    def _on_chunk(self, done: int, total: int, partial: PartialImages) -> None:
        self._bar.max, self._bar.value = total, done
        pixels = partial()
        self._shown.value = grid(pixels, [""] * len(pixels)).data


def _pixels(image: GeneratedImage | Pixels) -> Pixels:
    return image.pixels if isinstance(image, GeneratedImage) else np.asarray(image)


def _caption(image: GeneratedImage | Pixels) -> str:
    if not isinstance(image, GeneratedImage):
        return ""
    return f"{image.record['prompt']} (seed {image.record['seed']}, image {image.record['index']})"
