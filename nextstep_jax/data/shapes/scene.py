"""What an image of the built-in dataset is made of, and how it is drawn.

A scene is one to four flat shapes and perhaps a short word on a plain background, 64 x 64 pixels unless it says otherwise.
Positions are in pixels from the top left corner, x to the right and y down; pixel i covers [i, i + 1), so the middle of a
square is (32, 32).

Sizes follow from what an image tokenizer with 8 x 8-pixel latent cells keeps: a small object is 20 pixels across and a
letter's strokes are 3 pixels wide. The dataset puts centers on corners of the cells of 16 x 16 pixels that one image token
stands for (layout.py), so that a shape is four tokens, a quarter each, which leaves a small model less to memorize;
`render` draws any center.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float, UInt8

from nextstep_jax.errors import InputError

CANVAS = 64
SQUARE = (CANVAS, CANVAS)  # (width, height) in pixels, as of every canvas
CANVASES = ((80, 48), (48, 80), (96, 64), (64, 96), (128, 64))  # the others that training images have
GAP = 3  # pixels, at least, between the boxes around two things

COLORS = {
    "red": (225, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (45, 165, 75),
    "cyan": (70, 205, 225),
    "blue": (40, 85, 220),
    "purple": (130, 50, 180),
    "pink": (240, 110, 180),
}
BACKGROUNDS = {
    "white": (248, 248, 248),
    "gray": (158, 158, 158),
    "black": (22, 22, 26),
    "cream": (244, 222, 178),
    "navy": (30, 45, 105),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
RADII = {"small": 10, "large": 14}
SIZES = tuple(RADII)

GLYPH_PIXEL = 3  # pixels of the image per dot of a glyph
LETTER_PITCH = 16
WORDS = ("hi", "go", "no", "up", "yes", "cat", "dog", "sun", "sea", "joy", "tea", "art", "love", "cool", "fish", "bird")
# One letter is 4 x 5 dots, a row a word.
GLYPHS = {
    "a": "0110 1001 1111 1001 1001",
    "b": "1110 1001 1110 1001 1110",
    "c": "0111 1000 1000 1000 0111",
    "d": "1110 1001 1001 1001 1110",
    "e": "1111 1000 1110 1000 1111",
    "f": "1111 1000 1110 1000 1000",
    "g": "0111 1000 1011 1001 0111",
    "h": "1001 1001 1111 1001 1001",
    "i": "1111 0110 0110 0110 1111",
    "j": "0011 0001 0001 1001 0110",
    "l": "1000 1000 1000 1000 1111",
    "n": "1001 1101 1111 1011 1001",
    "o": "0110 1001 1001 1001 0110",
    "p": "1110 1001 1110 1000 1000",
    "r": "1110 1001 1110 1010 1001",
    "s": "0111 1000 0110 0001 1110",
    "t": "1111 0110 0110 0110 0110",
    "u": "1001 1001 1001 1001 0110",
    "v": "1001 1001 1001 1010 0100",
    "y": "1001 1001 0110 0110 0110",
}

RELATIONS = ("left of", "right of", "above", "below")
REGIONS = ("left", "right", "top", "bottom", "middle")


@dataclasses.dataclass(frozen=True)
class Object:
    """A flat shape: names from SHAPES, COLORS and SIZES, and its center (x, y) in pixels."""

    shape: str
    color: str
    size: str
    center: tuple[float, float]

    @property
    def half_extent(self) -> tuple[float, float]:
        return (RADII[self.size], RADII[self.size])


@dataclasses.dataclass(frozen=True)
class Word:
    """A word in capital bitmap letters: lower-case text from WORDS, its color and its center (x, y) in pixels."""

    text: str
    color: str
    center: tuple[float, float]

    @property
    def half_extent(self) -> tuple[float, float]:
        return (LETTER_PITCH * len(self.text) / 2, LETTER_PITCH / 2)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything in an image: a caption that leaves an object out does not describe it."""

    objects: tuple[Object, ...] = ()
    background: str = "white"
    word: Word | None = None
    # Left out of the representation: scores name their prompts by a digest of it, and most are of squares.
    canvas: tuple[int, int] = dataclasses.field(default=SQUARE, repr=False)

    @property
    def items(self) -> tuple[Object | Word, ...]:
        return self.objects if self.word is None else (*self.objects, self.word)


def relation(a: Object | Word, b: Object | Word) -> str | None:
    """Where `a` lies relative to `b`, or None if no single word says it.

    The centers must be at least three quarters of the two half extents apart along the axis of the relation, and
    further apart along it than across it.
    """
    dx, dy = a.center[0] - b.center[0], a.center[1] - b.center[1]
    axis = 0 if abs(dx) > abs(dy) else 1
    if abs(dx) == abs(dy) or abs((dx, dy)[axis]) < 0.75 * (a.half_extent[axis] + b.half_extent[axis]):
        return None
    if axis == 0:
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def clearly_related(a: Object | Word, b: Object | Word) -> bool:
    """Whether the relation of `a` and `b` is obvious: at least twice as far along its axis as across it."""
    dx, dy = abs(a.center[0] - b.center[0]), abs(a.center[1] - b.center[1])
    return relation(a, b) is not None and max(dx, dy) >= 2 * min(dx, dy)


def overlap(a: Object | Word, b: Object | Word) -> bool:
    """Whether the boxes around `a` and `b` come closer than GAP pixels."""
    return all(abs(p - q) < g + h + GAP for p, q, g, h in zip(a.center, b.center, a.half_extent, b.half_extent, strict=True))


def in_region(center: tuple[float, float], region: str, slack: float = 0, canvas: tuple[int, int] = SQUARE) -> bool:
    """Whether a center lies in the named part of the image; `slack` pixels looser for readings than for drawing.

    The middle is the square of 8 pixels; the sides begin 12 pixels from its center, each ending at the diagonals. On another
    canvas the parts are stretched as the canvas is.
    """
    x, y = (CANVAS * (c / side - 0.5) for c, side in zip(center, canvas, strict=True))
    if region == "middle":
        return max(abs(x), abs(y)) <= 4 + slack
    along, across = {"left": (-x, y), "right": (x, y), "top": (-y, x), "bottom": (y, x)}[region]
    return along >= 12 - slack and along >= abs(across) - slack


def render(scene: Scene) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a scene: uint8 [height, width, 3], anti-aliased. InputError for a name that is not in the palette."""
    width, height = scene.canvas
    image = np.empty((height, width, 3), np.float32)
    image[:] = _named(BACKGROUNDS, scene.background, "background")
    for thing in scene.items:
        color = np.asarray(_named(COLORS, thing.color, "color"), np.float32)
        x, y = thing.center
        left, top = math.floor(x), math.floor(y)
        if isinstance(thing, Word):
            mask = word_mask(thing.text, x - left, y - top)
        else:
            mask = shape_mask(thing.shape, float(_named(RADII, thing.size, "size")), x - left, y - top)
        half_h, half_w = mask.shape[0] // 2, mask.shape[1] // 2
        row, column = top - half_h, left - half_w
        rows, columns = slice(max(row, 0), row + mask.shape[0]), slice(max(column, 0), column + mask.shape[1])
        patch = image[rows, columns]
        alpha = mask[max(-row, 0) :, max(-column, 0) :][: patch.shape[0], : patch.shape[1], None]
        patch += alpha * (color - patch)
    return (image + 0.5).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def shape_mask(shape: str, radius: float, dx: float = 0.0, dy: float = 0.0) -> Float[np.ndarray, "side side"]:
    """How much of each pixel a shape covers: float32 [2n, 2n] in [0, 1], the center at (n + dx, n + dy)."""
    if shape not in SHAPES:
        raise InputError(f"no such shape: {shape!r}; there are {', '.join(SHAPES)}")
    n, fine = math.ceil(1.05 * radius) + 1, 8
    steps = (np.arange(2 * n * fine, dtype=np.float32) + 0.5) / fine - n
    x, y = np.meshgrid((steps - dx) / radius, (steps - dy) / radius)
    inside = _inside(shape, x, y).reshape(2 * n, fine, 2 * n, fine)
    return _frozen(inside.mean((1, 3), dtype=np.float32))


@functools.lru_cache(maxsize=1024)
def word_mask(text: str, dx: float = 0.0, dy: float = 0.0) -> Float[np.ndarray, "height width"]:
    """How much of each pixel the letters cover: float32 [18, 16 n + 2], the middle of the n letters' cells at the center.

    A letter stands in the top left of its cell of 16 x 16 pixels, two pixels in.
    """
    if not text or any(letter not in GLYPHS for letter in text):
        raise InputError(f"no glyphs for {text!r}; there are {''.join(GLYPHS)}")
    mask = np.zeros((LETTER_PITCH + 2, LETTER_PITCH * len(text) + 2), np.float32)
    for i, letter in enumerate(text):
        dots = np.array([[float(dot) for dot in row] for row in GLYPHS[letter].split()], np.float32)
        strokes = np.kron(dots, np.ones((GLYPH_PIXEL, GLYPH_PIXEL), np.float32))
        left = 3 + i * LETTER_PITCH
        mask[1 : 1 + strokes.shape[0], left : left + strokes.shape[1]] = strokes
    mask += dx * (np.roll(mask, 1, 1) - mask)
    mask += dy * (np.roll(mask, 1, 0) - mask)
    return _frozen(mask)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points, in units of the radius, belong to a shape. Nothing reaches further than 1.05 along an axis."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.9
    if shape == "triangle":
        return (y <= 0.82) & (abs(x) <= (y + 1) / 1.78)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.4) & (np.maximum(abs(x), abs(y)) <= 1)
    if shape == "diamond":
        return abs(x) / 0.88 + abs(y) / 1.05 <= 1
    # A star of five points: fold the plane onto half a point, from a tip (1.05, 0) to a notch 36 degrees away.
    y = y - 0.06
    fold = math.pi / 5
    angle = abs((np.arctan2(x, -y) + fold) % (2 * fold) - fold)
    length = np.hypot(x, y)
    tip, notch = 1.09, (0.5 * math.cos(fold), 0.5 * math.sin(fold))
    px, py = length * np.cos(angle), length * np.sin(angle)
    return (px - tip) * notch[1] + py * (tip - notch[0]) <= 0


def _named(table, name, what):
    try:
        return table[name]
    except KeyError:
        raise InputError(f"no such {what}: {name!r}; there are {', '.join(table)}") from None


def _frozen(array):
    array.setflags(write=False)
    return array
