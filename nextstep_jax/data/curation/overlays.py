"""Watermarks drawn over images: text or a logo, once, in a corner or all over, or lines from corner to corner.

What is drawn lets the image shine through, as the marks of stock agencies do; text that hides what is behind it (a sign, a
subtitle, a page) is no watermark here. The classifier in `watermarks` was trained on these, in other fonts.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Pixels = UInt8[np.ndarray, "height width 3"]
Mask = Float[np.ndarray, "height width"]

_SYLLABLES = (
    "ka",
    "lo",
    "mi",
    "ren",
    "sto",
    "pix",
    "el",
    "ver",
    "an",
    "to",
    "gra",
    "fo",
    "lux",
    "bel",
    "dor",
    "san",
    "um",
    "tri",
)
_WORDS = (
    "SAMPLE",
    "PREVIEW",
    "COPYRIGHT",
    "PROOF",
    "DRAFT",
    "DO NOT COPY",
    "Demo",
    "watermark",
    "stock photo",
    "All rights reserved",
)


def watermark(pixels: Pixels, rng: np.random.Generator, fonts: Sequence[str] = ()) -> tuple[Pixels, Mask]:
    """An image with a watermark, and where it is (how opaque at each pixel, 0 to 1).

    Args:
      fonts: files of TrueType fonts to choose from; by default Pillow's own.
    """
    height, width = pixels.shape[:2]
    mask = mark(height, width, rng, fonts)
    light = rng.random() < 0.75
    color = np.full(3, rng.uniform(200, 255) if light else rng.uniform(0, 60))
    if rng.random() < 0.15:
        color = rng.uniform(0, 255, 3)
    opaque = mask * rng.uniform(0.25, 0.65)
    mixed = pixels * (1 - opaque[..., None]) + color * opaque[..., None]
    return np.rint(mixed).astype(np.uint8), opaque.astype(np.float32)


def mark(height: int, width: int, rng: np.random.Generator, fonts: Sequence[str] = ()) -> Mask:
    """The shape of a watermark, 1 where it is and 0 elsewhere."""
    makers: Mapping[str, Callable[[], Image.Image]] = {
        "line": lambda: _placed(_text(rng, round(side * rng.uniform(0.08, 0.22)), fonts), size, rng, turned=60),
        "corner": lambda: _in_corner(_text(rng, round(side * rng.uniform(0.05, 0.1)), fonts), size, rng),
        "logo": lambda: _in_corner(logo(rng, round(side * rng.uniform(0.12, 0.3)), fonts), size, rng),
        "tiles": lambda: _tiled(_text(rng, round(side * rng.uniform(0.05, 0.12)), fonts), size, rng),
        "logos": lambda: _tiled(logo(rng, round(side * rng.uniform(0.1, 0.25)), fonts), size, rng),
        "cross": lambda: _cross(size, rng, _text(rng, round(side * rng.uniform(0.08, 0.14)), fonts)),
    }
    size, side = (width, height), min(height, width)
    kind = rng.choice(list(makers), p=(0.3, 0.2, 0.1, 0.25, 0.05, 0.1))
    return np.asarray(makers[str(kind)](), np.float32) / 255


def phrase(rng: np.random.Generator) -> str:
    """A name, an address, a copyright line, or one of the usual words."""
    name = "".join(rng.choice(_SYLLABLES, rng.integers(2, 4))).capitalize()
    forms = (
        name,
        f"© {name}",
        f"www.{name.lower()}.com",
        f"{name} Images",
        f"© {rng.integers(1998, 2027)} {name}",
        str(rng.choice(_WORDS)),
    )
    text = str(rng.choice(forms))
    return text.upper() if rng.random() < 0.2 else text


def _font(rng: np.random.Generator, size: int, fonts: Sequence[str]):
    size = max(8, size)
    return ImageFont.truetype(str(rng.choice(fonts)), size) if len(fonts) else ImageFont.load_default(size)


def _text(rng: np.random.Generator, size: int, fonts: Sequence[str]) -> Image.Image:
    """A phrase, filled or as an outline."""
    text, font = phrase(rng), _font(rng, size, fonts)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font, stroke_width=1)
    image = Image.new("L", (max(1, math.ceil(right - left) + 2), max(1, math.ceil(bottom - top) + 2)))
    draw, place = ImageDraw.Draw(image), (1 - left, 1 - top)
    if size >= 28 and rng.random() < 0.2:  # an outline
        draw.text(place, text, 255, font=font, stroke_width=1, stroke_fill=255)
        draw.text(place, text, 0, font=font)
    else:
        draw.text(place, text, 255, font=font)
    return image


def logo(rng: np.random.Generator, side: int, fonts: Sequence[str] = ()) -> Image.Image:
    """A ring, a disc, a shield or a frame, with something in it."""
    side = max(12, side)
    image = Image.new("L", (side, side))
    draw, line = ImageDraw.Draw(image), max(1, round(side * rng.uniform(0.04, 0.12)))
    outline = str(rng.choice(("ring", "frame", "shield", "disc")))
    if outline == "ring":
        draw.ellipse((0, 0, side - 1, side - 1), outline=255, width=line)
    elif outline == "frame":
        draw.rectangle((0, 0, side - 1, side - 1), outline=255, width=line)
    elif outline == "shield":
        draw.polygon(
            [(0, 0), (side - 1, 0), (side - 1, 0.6 * side), (side / 2, side - 1), (0, 0.6 * side)], outline=255, width=line
        )
    else:
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    ink, inner = (0 if outline == "disc" else 255), side * 0.28
    if rng.random() < 0.5:
        letter = "ABDEGHKMNRSTX"[rng.integers(13)]
        draw.text((side / 2, side / 2), letter, ink, font=_font(rng, round(side * 0.5), fonts), anchor="mm")
    else:
        count = int(rng.integers(3, 7))
        turns = 2 * np.pi * np.arange(count) / count + rng.uniform(0, 2 * np.pi)
        draw.polygon([(side / 2 + inner * np.cos(turn), side / 2 + inner * np.sin(turn)) for turn in turns], fill=ink)
    return image


def _placed(stamp: Image.Image, size: tuple[int, int], rng: np.random.Generator, turned: float) -> Image.Image:
    """Somewhere on the image, turned by up to so many degrees in half of the cases, whole if that is possible."""
    angle = rng.uniform(-turned, turned) if rng.random() < 0.5 else 0.0
    stamp = stamp.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    stamp.thumbnail(size, Image.Resampling.BICUBIC)
    image = Image.new("L", size)
    image.paste(stamp, (int(rng.integers(size[0] - stamp.width + 1)), int(rng.integers(size[1] - stamp.height + 1))))
    return image


def _in_corner(stamp: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    stamp.thumbnail((round(0.7 * size[0]), round(0.7 * size[1])), Image.Resampling.BICUBIC)
    gap = round(min(size) * rng.uniform(0.01, 0.06))
    x = gap if rng.random() < 0.4 else size[0] - stamp.width - gap
    y = gap if rng.random() < 0.3 else size[1] - stamp.height - gap
    image = Image.new("L", size)
    image.paste(stamp, (x, y))
    return image


def _tiled(stamp: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Repeated in rows, every other one shifted by half, the whole turned."""
    diagonal = math.ceil(math.hypot(*size))
    across, down = stamp.width + round(stamp.height * rng.uniform(1, 4)), round(stamp.height * rng.uniform(1.8, 5))
    sheet = Image.new("L", (diagonal, diagonal))
    for row, y in enumerate(range(0, diagonal, max(1, down))):
        for x in range(-(row % 2) * across // 2, diagonal, across):
            sheet.paste(stamp, (x, y))
    sheet = sheet.rotate(float(rng.choice((0, 30, -30, 45, -45)) + rng.uniform(-5, 5)), Image.Resampling.BICUBIC)
    left, top = (diagonal - size[0]) // 2, (diagonal - size[1]) // 2
    return sheet.crop((left, top, left + size[0], top + size[1]))


def _cross(size: tuple[int, int], rng: np.random.Generator, stamp: Image.Image) -> Image.Image:
    """Lines from corner to corner, and text in the middle."""
    image = Image.new("L", size)
    draw, line = ImageDraw.Draw(image), max(1, round(min(size) * rng.uniform(0.004, 0.012)))
    draw.line((0, 0, *size), 255, line)
    draw.line((0, size[1], size[0], 0), 255, line)
    stamp.thumbnail((round(0.8 * size[0]), round(0.8 * size[1])), Image.Resampling.BICUBIC)
    image.paste(stamp, ((size[0] - stamp.width) // 2, (size[1] - stamp.height) // 2))
    return image
