"""Reading an image of the built-in dataset back into a scene by classical image analysis; nothing here is learned.

In order: the background color; for each pixel the palette color on whose line from the background it lies, and how far along
(its coverage); words by correlation with the bitmap letters; connected regions of one color; each region's shape by its
overlap with the drawn shapes of equal area, their centers of mass aligned.

It tolerates what a small image tokenizer does to an image (blur, noise, shifted colors) but does not guess: a region that
looks like none of the shapes is read as an object of shape "unknown".
"""

import dataclasses
import functools
import math

import numpy as np

from nextstep_jax.data.shapes import BACKGROUNDS, COLORS, SHAPES, WORDS, Object, Scene, Word
from nextstep_jax.data.shapes.scene import CANVASES, GLYPHS, LETTER_PITCH, RADII, SQUARE, shape_mask, word_mask
from nextstep_jax.errors import InputError

UNKNOWN = "unknown"
MAX_COLOR_ERROR = 75.0  # RGB distance of a region's or background's median from its palette color
MIN_CONTRAST = 42.0  # RGB distance from the background above which a pixel is foreground
MIN_AREA = 40.0  # pixels; smaller regions are specks
MIN_OVERLAP = 0.8  # intersection over union with the best shape
MIN_WORD_CORRELATION = 0.72

_NAMES = tuple(COLORS)
_PALETTE = np.array(list(COLORS.values()), np.float32)
_GROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)


def parse_scene(pixels: np.ndarray) -> Scene:
    """What is in an image: uint8 [height, width, 3], of a size that scenes have.

    Objects come largest first; centers are measured, not on the lattice. Background, color or shape may be "unknown".
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 3 or pixels.shape[1::-1] not in (SQUARE, *CANVASES) or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        known = ", ".join(f"[{height}, {width}, 3]" for width, height in (SQUARE, *CANVASES))
        raise InputError(f"an image must be uint8 of the shape {known}, found {pixels.dtype} {list(pixels.shape)}")
    image = pixels.astype(np.float32)
    background, ground = _background(image)
    layers = _Layers.of(image, ground)
    word, layers = _read_word(layers)
    objects = [_read_object(region, layers, image) for region in _regions(layers)]
    return Scene(tuple(objects), background, word, pixels.shape[1::-1])


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Each pixel as a mixture of background and one palette color.

    Attributes:
      coverage: [height, width, colors] in [0, 1], how far each pixel lies from the background towards each color.
      fits: [height, width, colors] bool, whether the pixel could be such a mixture.
      label: [height, width], the color whose mixtures come nearest.
      foreground: [height, width] bool, whether the pixel differs from the background.
    """

    coverage: np.ndarray
    fits: np.ndarray
    label: np.ndarray
    foreground: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, ground: np.ndarray) -> "_Layers":
        offset, rays = image - ground, _PALETTE - ground
        along = offset @ rays.T / (rays * rays).sum(1)
        bounded = np.clip(along, 0, 1.15)
        distance = (offset * offset).sum(-1)
        # |offset - bounded * ray|^2 without the [height, width, colors, 3] array.
        residual = distance[..., None] - 2 * bounded * (offset @ rays.T) + bounded * bounded * (rays * rays).sum(1)
        return cls(np.clip(along, 0, 1), residual < MAX_COLOR_ERROR**2, residual.argmin(-1), distance > MIN_CONTRAST**2)

    def of_color(self, color: int) -> np.ndarray:
        """[height, width] coverage by one color, 0 where it cannot be."""
        return np.where(self.fits[..., color], self.coverage[..., color], 0)


def _background(image: np.ndarray) -> tuple[str, np.ndarray]:
    """The background's name and its measured color: of all pixels, the ground that most are nearest to."""
    flat = image.reshape(-1, 3)
    every = np.concatenate([_GROUNDS, _PALETTE])
    nearest = ((flat * flat).sum(1, keepdims=True) - 2 * flat @ every.T + (every * every).sum(1)).argmin(1)
    index = np.bincount(nearest, minlength=len(every))[: len(_GROUNDS)].argmax()
    mine = flat[nearest == index]
    ground = np.median(mine, 0) if len(mine) else _GROUNDS[index]
    # Estimate again from nearby pixels only, without anti-aliased edges.
    close = flat[((flat - ground) ** 2).sum(1) < MIN_CONTRAST**2]
    ground = close.mean(0) if len(close) else ground
    name = tuple(BACKGROUNDS)[index]
    known = len(mine) > len(flat) / 4 and np.linalg.norm(ground - _GROUNDS[index]) < MAX_COLOR_ERROR / 2
    return (name if known else UNKNOWN), ground.astype(np.float32)


# --- words ------------------------------------------------------------------------------------------------------------


def _read_word(layers: _Layers) -> tuple[Word | None, _Layers]:
    """The best word above the threshold, and the layers without it."""
    best_score, best = MIN_WORD_CORRELATION, None
    for color in _present(layers):
        coverage = np.pad(layers.of_color(color), _MARGIN)
        for words, templates in _word_templates(coverage.shape):
            scores = templates.scores(coverage)
            i, row, column = np.unravel_index(scores.argmax(), scores.shape)
            if scores[i, row, column] > best_score:
                best_score, best = scores[i, row, column], (words[i], color, row, column, coverage)
    if best is None:
        return None, layers
    text, color, row, column, coverage = best
    height, width = LETTER_PITCH + 2, LETTER_PITCH * len(text) + 2
    window = (slice(row, row + height), slice(column, column + width))
    # Several colors may explain soft letters; the pixels of the strokes decide.
    strokes = np.pad(layers.label, _MARGIN)[window][(word_mask(text) == 1) & np.pad(layers.foreground, _MARGIN)[window]]
    color = int(np.bincount(strokes, minlength=len(_NAMES)).argmax())
    coverage = np.pad(layers.of_color(color), _MARGIN)
    center = (float(column - _MARGIN + width // 2), float(row - _MARGIN + height // 2))
    # Each letter's cell, with a pixel to spare on each side.
    cells = [coverage[window][:, i * LETTER_PITCH :][:, :height] for i in range(len(text))]
    read = text if all(map(_is_letter, cells, text)) else UNKNOWN
    outside = np.ones_like(coverage, bool)
    outside[window] = False
    foreground = layers.foreground & outside[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return Word(read, _NAMES[color], center), dataclasses.replace(layers, foreground=foreground)


_MARGIN = 4  # pixels around the image, so that a window may stick out


def _present(layers: _Layers) -> np.ndarray:
    """The colors of at least 60 pixels, about two letters."""
    solid = layers.foreground & (np.take_along_axis(layers.coverage, layers.label[..., None], -1)[..., 0] > 0.5)
    return np.flatnonzero(np.bincount(layers.label[solid], minlength=len(_NAMES)) >= 60)


@dataclasses.dataclass(frozen=True)
class _Templates:
    """Templates of one size [h, w], ready to be correlated with coverages of one shape: their spectra there."""

    size: tuple[int, int]
    spectra: np.ndarray

    @classmethod
    def of(cls, masks: list[np.ndarray], shape: tuple[int, int]) -> "_Templates":
        """Softened a little (crisp strokes would punish every soft edge twice), with mean 0 and norm 1."""
        soft = np.pad(np.stack(masks), ((0, 0), (1, 1), (1, 1)))
        for axis in (1, 2):
            soft = 0.5 * soft + 0.25 * (np.roll(soft, 1, axis) + np.roll(soft, -1, axis))
        soft = soft[:, 1:-1, 1:-1] - soft[:, 1:-1, 1:-1].mean((1, 2), keepdims=True)
        soft /= np.linalg.norm(soft, axis=(1, 2), keepdims=True)
        return cls(soft.shape[1:], np.conj(np.fft.rfft2(soft, shape)).astype(np.complex64))

    def scores(self, coverage: np.ndarray) -> np.ndarray:
        """Normalized correlation of each template with each window of a coverage: [n, rows, columns]."""
        (h, w), (height, width) = self.size, coverage.shape
        products = np.fft.irfft2(np.fft.rfft2(coverage)[None] * self.spectra, coverage.shape)
        total = np.zeros((2, height + 1, width + 1))
        total[:, 1:, 1:] = np.stack([coverage, coverage * coverage]).cumsum(1, dtype=np.float64).cumsum(2)
        sums, squares = total[:, h:, w:] - total[:, :-h, w:] - total[:, h:, :-w] + total[:, :-h, :-w]
        # An almost empty window holds no word; the floor keeps its noise from being amplified.
        return products[:, : height - h + 1, : width - w + 1] / np.sqrt(np.maximum(squares - sums * sums / (h * w), 4.0))


@functools.cache
def _word_templates(shape: tuple[int, int]) -> tuple[tuple[tuple[str, ...], _Templates], ...]:
    """For each length that coverages of a shape have room for: the words and their templates."""
    lengths = sorted({len(word) for word in WORDS if LETTER_PITCH * len(word) + 2 <= shape[1]})
    groups = [tuple(word for word in WORDS if len(word) == length) for length in lengths]
    return tuple((words, _Templates.of([word_mask(word) for word in words], shape)) for words in groups)


@functools.cache
def _letter_templates() -> _Templates:
    return _Templates.of([word_mask(letter)[1:-1, 1:-1] for letter in GLYPHS], (LETTER_PITCH + 2, LETTER_PITCH + 2))


def _is_letter(cell: np.ndarray, letter: str) -> bool:
    """Whether no other glyph fits the cell [18, 18] clearly better, each where it fits best."""
    scores = _letter_templates().scores(cell).max((1, 2))
    return scores[list(GLYPHS).index(letter)] > scores.max() - 0.03


# --- objects ----------------------------------------------------------------------------------------------------------


def _regions(layers: _Layers) -> list[tuple[int, np.ndarray]]:
    """(color, mask [height, width]) of each connected region of one color, largest first, specks left out.

    A region with two substantial colors is two objects that touch.
    """
    coverage = np.take_along_axis(layers.coverage, layers.label[..., None], -1)[..., 0]
    regions = []
    for mask in _components(layers.foreground & (coverage > 0.6)):
        counts = np.bincount(layers.label[mask], minlength=len(_NAMES))
        # Discolored edges are thin; an object has an interior.
        shares = {int(color): mask & (layers.label == color) for color in np.flatnonzero(counts >= MIN_AREA)}
        shares = {color: share for color, share in shares.items() if _inside(share).sum() >= MIN_AREA / 2}
        if len(shares) < 2:
            regions.append((int(counts.argmax()), mask))
        else:
            regions += [(color, piece) for color, share in shares.items() for piece in _components(share)]
    regions = [region for region in regions if region[1].sum() >= MIN_AREA]
    return sorted(regions, key=lambda region: -region[1].sum())


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected components of a mask, each grown from its first pixel."""
    left, components = mask.copy(), []
    while left.any():
        grown = np.zeros_like(left)
        grown[np.unravel_index(left.argmax(), left.shape)] = True
        size = 0
        while (count := int(grown.sum())) > size:
            size = count
            for _ in range(4):
                grown = _dilate(grown) & left
        components.append(grown)
        left &= ~grown
    return components


def _dilate(mask: np.ndarray) -> np.ndarray:
    wider = mask.copy()
    wider[1:] |= mask[:-1]
    wider[:-1] |= mask[1:]
    wider[:, 1:] |= mask[:, :-1]
    wider[:, :-1] |= mask[:, 1:]
    return wider


def _inside(mask: np.ndarray) -> np.ndarray:
    return mask & ~_dilate(~mask)


def _read_object(region: tuple[int, np.ndarray], layers: _Layers, image: np.ndarray) -> Object:
    color, mask = region
    measured = np.median(image[_inside(mask) if _inside(mask).any() else mask], 0)
    name = _NAMES[color] if np.linalg.norm(measured - _PALETTE[color]) < MAX_COLOR_ERROR else UNKNOWN
    # Edges count by their coverage, made steeper to undo blur.
    near = np.where(mask, layers.coverage[..., color], np.where(_dilate(_dilate(mask)), layers.of_color(color), 0))
    soft = np.clip(2 * near - 0.5, 0, 1)
    area = soft.sum()
    y, x = (float((soft.sum(1 - axis) * (np.arange(soft.shape[axis]) + 0.5)).sum() / area) for axis in (0, 1))
    best = max(_fit(shape, soft, area, x, y) for shape in SHAPES)
    overlap, shape, radius, center = best
    size = "small" if radius < (RADII["small"] + RADII["large"]) / 2 else "large"
    known = overlap >= MIN_OVERLAP and 0.75 * RADII["small"] < radius < 1.3 * RADII["large"]
    return Object(shape if known else UNKNOWN, name, size, center)


def _fit(shape: str, soft: np.ndarray, area: float, x: float, y: float) -> tuple[float, str, float, tuple[float, float]]:
    """Intersection over union of a region with a shape of its area and center of mass; and that shape's radius and center."""
    unit_area, mass_x, mass_y = _moments(shape)
    radius = math.sqrt(area / unit_area)
    center = (x - mass_x * radius, y - mass_y * radius)
    # In steps, so that few masks have to be drawn.
    drawn = min(max(round(radius * 4) / 4, 3.0), 24.0)
    left, top = math.floor(center[0]), math.floor(center[1])
    mask = shape_mask(shape, drawn, round((center[0] - left) * 4) / 4, round((center[1] - top) * 4) / 4)
    half = len(mask) // 2
    pad = 32
    window = np.pad(soft, pad)[top - half + pad : top + half + pad, left - half + pad : left + half + pad]
    both = np.minimum(window, mask).sum()
    return float(both / (area + mask.sum() - both)), shape, radius, center


@functools.cache
def _moments(shape: str) -> tuple[float, float, float]:
    """Area, and the center of mass, of a shape of radius 1."""
    radius = 20.0
    mask = shape_mask(shape, radius)
    steps = (np.arange(len(mask)) + 0.5 - len(mask) // 2) / radius
    area = mask.sum()
    return float(area / radius**2), float((mask.sum(0) * steps).sum() / area), float((mask.sum(1) * steps).sum() / area)
