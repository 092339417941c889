"""Objects seen from several sides as interleaved samples: folders of images with a transforms.json (paper section 5.1.4)."""

import hashlib
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from nextstep_jax.data import files, images, records
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import InputError
from nextstep_jax.untrusted import check_inside

CAMERAS = "transforms.json"
CAPTION = "caption.txt"
MAX_VIEWS = 512
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp")  # a file_path often lacks its suffix


class ViewFolder:
    """Folders that each hold the views of one object, sorted by path: an interleaved sample each.

    A folder's transforms.json is as renderers for NeRF write it: `frames`, each with a `file_path` relative to it and a
    `transform_matrix`, camera to world in Blender's convention (z up, the object at the origin). caption.txt, if there is one,
    is the first part. `metadata["cameras"]` has [azimuth, elevation] in degrees of every view.

    Attributes:
      names: the folders' paths; they are the samples' keys.
      unused: what is in the folders and in no sample.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        if not self.directory.is_dir():
            raise InputError(f"{directory}: no such folder")
        self.name = self.directory.resolve().name
        self.unused = Unused()
        found = list(files.walk(self.directory, self.unused.add))
        self.names = sorted(os.path.dirname(name) for name in found if os.path.basename(name) == CAMERAS)
        if not self.names:
            raise InputError(f"{directory}: no {CAMERAS} in it or its folders")
        for name in found:
            if not any(folder == "" or name.startswith(f"{folder}/") for folder in self.names):
                self.unused.add("file beside the objects", name)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> records.Sample:
        """InputError names a transforms.json that is none; ImageError an image that cannot be used."""
        folder = self.directory / self.names[index]
        check_inside(folder / CAMERAS, self.directory)
        views = read_cameras(folder / CAMERAS)
        parts: list[records.TextPart | records.ImagePart] = []
        caption = folder / CAPTION
        if caption.is_file():
            check_inside(caption, self.directory)
            text = files.read_bytes(caption, records.MAX_TEXT).decode("utf-8", "replace").strip()
            parts += [records.TextPart(text)] if text else []
        for path in views:
            check_inside(path, self.directory)
            parts.append(records.ImagePart.from_bytes(files.read_bytes(path, images.MAX_FILE_BYTES), str(path)))
        cameras = [list(angles) for angles in views.values()]
        return records.Sample(tuple(parts), "interleaved", self.names[index] or self.name, {}, {"cameras": cameras})

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the files of the samples start..stop-1 do."""
        found = []
        for name in self.names[start:stop]:
            inner = sorted(files.walk(self.directory / name, lambda reason, entry: None))
            found += [name, *(f"{entry} {files.fingerprint(self.directory / name / entry)}" for entry in inner)]
        return hashlib.sha256("\n".join(found).encode("utf-8", "backslashreplace")).hexdigest()

    def identity(self) -> str:
        """Changes with the objects' names and the sizes of their cameras' files."""
        sizes = [(name, os.stat(self.directory / name / CAMERAS).st_size) for name in self.names]
        return hashlib.sha256(repr(sizes).encode("utf-8", "backslashreplace")).hexdigest()


def read_cameras(path: pathlib.Path) -> dict[pathlib.Path, tuple[float, float]]:
    """{image: (azimuth, elevation)} in degrees, of a transforms.json. InputError names the file and what is wrong with it."""
    value = files.read_json(path)
    frames = value.get("frames") if isinstance(value, dict) else None
    if not isinstance(frames, list) or not 0 < len(frames) <= MAX_VIEWS:
        raise InputError(f"{path}: expected a list of 1 to {MAX_VIEWS} frames")
    found = {}
    for number, frame in enumerate(frames):
        where = f"{path}: frame {number}"
        if not isinstance(frame, Mapping) or not isinstance(frame.get("file_path"), str):
            raise InputError(f"{where}: expected a file_path and a transform_matrix")
        name = frame["file_path"].removeprefix("./")
        if not re.fullmatch(r"[^\0]{1,300}", name) or name.startswith("/") or ".." in pathlib.PurePosixPath(name).parts:
            raise InputError(f"{where}: file_path must be a name inside the folder, found {name!r:.100}")
        image = next((path.parent / f"{name}{s}" for s in _SUFFIXES if (path.parent / f"{name}{s}").is_file()), None)
        if image is None:
            raise InputError(f"{where}: no image {name!r:.100}")
        found[image] = _angles(frame.get("transform_matrix"), where)
    return found


def _angles(matrix: Any, where: str) -> tuple[float, float]:
    try:
        x, y, z = np.asarray(matrix, float).reshape(-1, 4)[:3, 3].tolist()
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: transform_matrix must be 3x4 or 4x4 numbers") from error
    if not all(map(math.isfinite, (x, y, z))) or x == y == z == 0:
        raise InputError(f"{where}: the camera is at {x:g}, {y:g}, {z:g}, expected a place away from the origin")
    return round(math.degrees(math.atan2(y, x)), 3), round(math.degrees(math.atan2(z, math.hypot(x, y))), 3)
