"""From the views of an object to a sequence of camera moves (paper section 5.1.4)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

import numpy as np

from nextstep_jax.data.curation.stages import Dropped, Make, Values
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.errors import InputError
from nextstep_jax.schema import at_least


@dataclasses.dataclass(frozen=True)
class Moves:
    """Some of the views that `ViewFolder` reads: the caption, a view that is given (no target), and after
    it moves, each a text ("Move the camera 40 degrees to the right and 10 degrees up.") and the view it leads to.

    Attributes:
      views: how many in a sequence.
      sequences: how many of one object.
      min_angle, max_angle: degrees between a view and the next along the great circle. Objects without such views are dropped.
    """

    views: Annotated[int, at_least(2)] = 4
    sequences: Annotated[int, at_least(1)] = 1
    min_angle: float = 15.0
    max_angle: float = 90.0
    version: ClassVar[int] = 1

    def __post_init__(self):
        if not 0 <= self.min_angle < self.max_angle <= 180:
            raise InputError(
                f"min_angle must be less than max_angle, in [0, 180], found {self.min_angle:g}, {self.max_angle:g}"
            )

    def prepare(self) -> Make:
        return self._make

    def _make(self, sample: Sample, signals: Mapping[str, Values], rng: np.random.Generator) -> Iterable[Sample]:
        cameras = sample.metadata.get("cameras")
        if not isinstance(cameras, list) or len(cameras) != len(sample.images):
            raise Dropped("no cameras", f"{sample.key}: no camera for each view")
        angles = np.asarray(cameras, float)
        made = []
        for number in range(self.sequences):
            chosen = self._walk(angles, rng)
            if chosen is None:
                raise Dropped(
                    "too few views", f"{sample.key}: no {self.views} views {self.min_angle:g} to {self.max_angle:g} apart"
                )
            first = dataclasses.replace(sample.images[chosen[0]], loss=False)
            parts: list[TextPart | ImagePart] = [*sample.texts, first]
            for before, after in zip(chosen, chosen[1:], strict=False):
                parts += [TextPart(describe_move(angles[before], angles[after])), sample.images[after]]
            metadata = {**sample.metadata, "cameras": [cameras[n] for n in chosen]}
            made.append(Sample(tuple(parts), "interleaved", f"{sample.key}#{number}", {}, metadata))
        return made

    def _walk(self, angles: np.ndarray, rng: np.random.Generator) -> list[int] | None:
        """Different views, each within the angles of the one before; None if 20 tries found no such walk."""
        apart = angles_between(angles)
        for _ in range(20):
            walk = [int(rng.integers(len(angles)))]
            while len(walk) < self.views:
                reach = (apart[walk[-1]] >= self.min_angle) & (apart[walk[-1]] <= self.max_angle)
                reach[walk] = False
                if not reach.any():
                    break
                walk.append(int(rng.choice(np.flatnonzero(reach))))
            if len(walk) == self.views:
                return walk
        return None


def angles_between(angles: np.ndarray) -> np.ndarray:
    """[n, n] degrees along the great circle between directions [n, 2] of azimuth and elevation in degrees."""
    azimuth, elevation = np.radians(angles).T
    flat = np.cos(elevation)
    directions = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    return np.degrees(np.arccos(np.clip(directions @ directions.T, -1, 1)))


def describe_move(before: np.ndarray, after: np.ndarray) -> str:
    """The camera's move around the object in words, to whole degrees; before and after are [azimuth, elevation] in degrees.

    A camera that looks at the object goes to its right as its azimuth grows.
    """
    across = round((float(after[0] - before[0]) + 180) % 360 - 180)
    up = round(float(after[1] - before[1]))
    moves = [
        f"{abs(amount)} degree{'s' if abs(amount) != 1 else ''} {words[amount < 0]}"
        for amount, words in ((across, ("to the right", "to the left")), (up, ("up", "down")))
        if amount
    ]
    return f"Move the camera {' and '.join(moves)}." if moves else "Keep the camera where it is."
