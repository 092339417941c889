"""Images like photographs, made from nothing: smooth areas, edges and texture, each seed another."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def photograph(seed: int, height: int = 192, width: int = 256) -> Image.Image:
    """[height, width, 3] of random large shapes over a random gradient, with some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(coarse)
    for _ in range(14):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.08, 0.35, 2) * (width, height)
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=color)
    grain = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def near_duplicates(image: Image.Image) -> dict[str, Image.Image]:
    """What an image looks like after it went round the web."""
    width, height = image.size
    data = io.BytesIO()
    image.save(data, "JPEG", quality=50)
    cut = (round(0.05 * width), round(0.05 * height))
    return {
        "jpeg": Image.open(data).convert("RGB"),
        "small": image.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cut": image.crop((*cut, width - cut[0], height - cut[1])),
        "blurred": image.filter(ImageFilter.GaussianBlur(1.5)),
        "brighter": image.point(lambda value: min(255, round(1.15 * value + 8))),
    }
