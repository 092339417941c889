"""Images for the classifier of watermarks: backgrounds without one, and pairs of the same image without and with.

Backgrounds are parts of photographs, drawings, noise with a photograph's spectrum and pages. A third of them get what looks
like a watermark and is none: text and signs that hide what is behind them, subtitles, logos, lines, light and shadow.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nextstep_jax.data.curation import overlays

SIDE, MARGIN, PART = 256, 32, 144


class Pairs(NamedTuple):
    """Images [B, H, W, 3], first those without a watermark, then the same with one; and by how much it changes each pixel,
    [B, H, W], in levels."""

    pixels: np.ndarray
    changes: np.ndarray


class Pool:
    """Backgrounds and marks that pairs are drawn from; some are replaced by new ones before each draw."""

    def __init__(self, photos: Sequence[Image.Image], fonts: Sequence[str], size: int):
        self.photos, self.fonts = photos, fonts
        self.backgrounds = np.zeros((size, SIDE + MARGIN, SIDE + MARGIN, 3), np.uint8)
        self.marks = np.zeros((size, SIDE, SIDE), np.uint8)
        self._next = 0
        self.renew(np.random.default_rng(0), size)

    def renew(self, rng: np.random.Generator, count: int) -> None:
        for _ in range(count):
            place = self._next % len(self.marks)
            pixels = background(rng, self.photos, self.fonts)
            self.backgrounds[place] = decoy(pixels, rng, self.fonts) if rng.random() < 0.35 else pixels
            self.marks[place] = mark(rng, self.fonts)
            self._next += 1

    def pairs(self, rng: np.random.Generator, count: int, size: int = SIDE) -> Pairs:
        """Images of SIDE pixels a side, or parts of them that hold some of the mark."""
        plain, marked, changes = [], [], []
        for place, other in rng.integers(len(self.marks), size=(count, 2)):
            mark, (left, top) = self.marks[other], rng.integers(MARGIN + 1, size=2)
            y, x = np.divmod(rng.choice(np.flatnonzero(mark >= mark.max() / 2)), SIDE)
            y, x = (int(np.clip(n - rng.integers(size), 0, SIDE - size)) for n in (y, x))
            pixels = varied(self.backgrounds[place, top + y : top + y + size, left + x : left + x + size], rng)
            mixed = blended(pixels, mark[y : y + size, x : x + size] / 255, rng)
            changes.append(np.abs(mixed - pixels).mean(-1))
            quality = int(rng.integers(40, 96)) if rng.random() < 0.6 else None
            plain.append(encoded(pixels, quality))
            marked.append(encoded(mixed, quality))
        none = np.zeros((count, size, size), np.float32)
        return Pairs(np.stack(plain + marked), np.concatenate([none, np.stack(changes).astype(np.float32)]))


def mark(rng: np.random.Generator, fonts: Sequence[str]) -> np.ndarray:
    """[SIDE, SIDE], drawn at up to three times the size and made smaller, as the images that marks are on are."""
    side = round(SIDE * max(1.0, rng.uniform(0.5, 3)))
    large = Image.fromarray(to_bytes(255 * overlays.mark(side, side, rng, fonts)))
    return np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0))


def blended(pixels: np.ndarray, mark: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As `overlays.watermark` does, from a little fainter to a little stronger."""
    color = np.full(3, rng.uniform(190, 255) if rng.random() < 0.7 else rng.uniform(0, 70))
    if rng.random() < 0.2:
        color = rng.uniform(0, 255, 3)
    opaque = (mark * rng.uniform(0.2, 0.75))[..., None]
    return pixels * (1 - opaque) + color * opaque


def encoded(values: np.ndarray, quality: int | None) -> np.ndarray:
    pixels = to_bytes(values)
    if quality is None:
        return pixels
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def varied(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored, brighter or darker, with less or other colors."""
    values = pixels.astype(np.float32)
    if rng.random() < 0.5:
        values = values[:, ::-1]
    if rng.random() < 0.12:
        values = np.repeat(values.mean(-1, keepdims=True), 3, -1)
    elif rng.random() < 0.3:
        values = values[..., rng.permutation(3)]
    return np.clip((values - 128) * rng.uniform(0.5, 1.25) + 128 + rng.uniform(-40, 40), 0, 255)


# --- backgrounds ------------------------------------------------------------------------------------------------------


def background(rng: np.random.Generator, photos: Sequence[Image.Image], fonts: Sequence[str]) -> np.ndarray:
    """[SIDE + MARGIN, SIDE + MARGIN, 3]"""
    makers: Mapping[str, Callable[[], np.ndarray]] = {
        "photo": lambda: cut(rng, photos),
        "drawn": lambda: drawn(rng),
        "noise": lambda: noise(rng),
        "page": lambda: page(rng, fonts),
    }
    return makers[str(rng.choice(list(makers), p=(0.74, 0.14, 0.06, 0.06)))]()


def cut(rng: np.random.Generator, photos: Sequence[Image.Image]) -> np.ndarray:
    """A square of a photograph."""
    photo = photos[rng.integers(len(photos))]
    side = round(min(photo.size) * rng.uniform(0.3, 1))
    left, top = (int(rng.integers(n - side + 1)) for n in photo.size)
    size = (SIDE + MARGIN, SIDE + MARGIN)
    place = (left, top, left + side, top + side)
    return np.asarray(photo.resize(size, Image.Resampling.BICUBIC, place, reducing_gap=2.0))


def drawn(rng: np.random.Generator) -> np.ndarray:
    side = SIDE + MARGIN
    colors = rng.integers(0, 256, (*rng.integers(2, 7, 2), 3), np.uint8)
    image = Image.fromarray(colors).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 20)):
        x, y = rng.uniform(-20, side, 2)
        w, h = rng.uniform(4, 110, 2)
        fill = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = rng.choice(("ellipse", "rectangle", "line", "polygon"))
        if shape == "line":
            draw.line((x, y, x + w, y + h), fill, int(rng.integers(1, 6)))
        elif shape == "polygon":
            draw.polygon([(x, y), (x + w, y), (x + w / 2, y + h)], fill)
        else:
            getattr(draw, str(shape))((x, y, x + w, y + h), fill=fill)
    return to_bytes(np.asarray(image) + rng.normal(0, rng.uniform(0, 10), (side, side, 3)))


def noise(rng: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls with frequency as that of photographs does."""
    side = SIDE + MARGIN
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    spectrum = np.fft.rfft2(rng.normal(size=(3, side, side))) / radius ** rng.uniform(0.8, 1.6)
    values = np.fft.irfft2(spectrum, (side, side)).transpose(1, 2, 0)
    mixed = values @ (rng.dirichlet(np.ones(3) * 2, 3).T)
    return to_bytes(rng.uniform(60, 200) + rng.uniform(20, 60) * mixed / mixed.std())


def page(rng: np.random.Generator, fonts: Sequence[str]) -> np.ndarray:
    paper, ink = rng.uniform(200, 255, 3), rng.uniform(0, 90, 3)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    side, size = SIDE + MARGIN, int(rng.integers(8, 30))
    image = Image.fromarray(np.broadcast_to(paper, (side, side, 3)).astype(np.uint8))
    draw, y, face = ImageDraw.Draw(image), int(rng.integers(0, 20)), font(rng, size, fonts)
    while y < side:
        draw.text((10, y), " ".join(words(rng) for _ in range(3)), tuple(int(c) for c in ink), font=face)
        y += round(size * rng.uniform(1.1, 2))
    return np.asarray(image.rotate(rng.normal(0, 2), fillcolor=tuple(int(c) for c in paper)))


def decoy(pixels: np.ndarray, rng: np.random.Generator, fonts: Sequence[str]) -> np.ndarray:
    """The image with something that is no watermark."""
    kind = rng.choice(("words", "sign", "subtitle", "shade", "lines", "logo"))
    image, side = Image.fromarray(pixels), len(pixels)
    draw = ImageDraw.Draw(image)
    color, other = (tuple(int(c) for c in rng.integers(0, 256, 3)) for _ in range(2))
    if kind in ("words", "sign"):
        for _ in range(rng.integers(1, 5)):
            x, y = (int(n) for n in rng.integers(0, side - 30, 2))
            text, face = words(rng), font(rng, int(rng.integers(9, 46)), fonts)
            if kind == "sign":
                left, top, right, bottom = draw.textbbox((x, y), text, font=face)
                draw.rectangle((left - 5, top - 5, right + 5, bottom + 5), fill=other)
            draw.text((x, y), text, color, font=face, stroke_width=int(rng.integers(0, 2)), stroke_fill=other)
    elif kind == "subtitle":
        place = (side / 2, side * rng.uniform(0.75, 0.93))
        text, face = f"{words(rng)} {words(rng)}", font(rng, int(rng.integers(10, 20)), fonts)
        draw.text(place, text, "white", font=face, anchor="mm", stroke_width=1, stroke_fill="black")
    elif kind == "shade":
        layer = Image.new("L", image.size)
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(-60, side, 2)
            w, h = rng.uniform(40, 200, 2)
            ImageDraw.Draw(layer).ellipse((x, y, x + w, y + h), fill=255)
        layer = layer.filter(ImageFilter.GaussianBlur(rng.uniform(2, 30)))
        opaque = np.asarray(layer, np.float32)[..., None] / 255 * rng.uniform(0.1, 0.6)
        return to_bytes(pixels * (1 - opaque) + rng.choice((0, 255)) * opaque)
    elif kind == "lines":
        for _ in range(rng.integers(1, 12)):
            draw.line(tuple(rng.uniform(0, side, 4)), color, int(rng.integers(1, 4)))
    else:
        size = int(rng.integers(16, 70))
        x, y = (int(n) for n in rng.integers(0, side - size, 2))
        image.paste(Image.new("RGB", (size, size), color), (x, y), overlays.logo(rng, size, fonts))
    return np.asarray(image)


def words(rng: np.random.Generator) -> str:
    """One to three made-up words: a mark's own, in paint, would be one to any eye."""
    letters = ("bcdfghjklmnprstvw", "aeiou")
    made = ["".join(rng.choice(list(letters[n % 2])) for n in range(rng.integers(2, 9))) for _ in range(rng.integers(1, 4))]
    text = " ".join(made)
    return text.upper() if rng.random() < 0.4 else text.capitalize()


def font(rng: np.random.Generator, size: int, fonts: Sequence[str]) -> Any:
    return ImageFont.truetype(str(rng.choice(fonts)), size)


def to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
