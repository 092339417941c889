"""Faces in images by OpenCV, with two model files that the user brings: YuNet finds them, SFace tells whose they are."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from nextstep_jax.data.curation.embedders import unit
from nextstep_jax.data.curation.stages import require_package
from nextstep_jax.errors import InputError, one_line

FILES = {"detector": "face_detection_yunet_2023mar.onnx", "recognizer": "face_recognition_sface_2021dec.onnx"}
_SIDE = 640  # pixels of the longer side while looking for faces


class Face(NamedTuple):
    """A face found.

    Attributes:
      box: [x, y, width, height] in pixels of the image.
      confidence: 0 to 1.
      vector: [D], a unit vector; those of one person have a high cosine.
    """

    box: tuple[int, int, int, int]
    confidence: float
    vector: Float[np.ndarray, " D"]


FindFaces = Callable[[UInt8[np.ndarray, "height width 3"]], list[Face]]


def open_face_finder(detector: str, recognizer: str, min_confidence: float, min_side: int) -> FindFaces:
    """A function that finds an image's faces, the largest first.

    Args:
      detector, recognizer: ONNX files as OpenCV's model zoo has them (`FILES`).
      min_confidence: of a face.
      min_side: pixels, in the image, of the shorter side of a face.

    Raises:
      InputError: a file that is not set, missing, or not such a model.
    """
    cv2 = require_package("cv2", "opencv-python", "faces")
    for name, path in (("detector", detector), ("recognizer", recognizer)):
        if not path:
            raise InputError(f"{name} is not set (expected an ONNX file such as {FILES[name]} of OpenCV's model zoo)")
        if not pathlib.Path(path).is_file():
            raise InputError(f"{name}: {path}: no such file")
    found: list[Any] = []
    for name, make in (
        ("detector", lambda: cv2.FaceDetectorYN.create(detector, "", (_SIDE, _SIDE), min_confidence)),
        ("recognizer", lambda: cv2.FaceRecognizerSF.create(recognizer, "")),
    ):
        try:
            found.append(make())
        except cv2.error as error:
            path = detector if name == "detector" else recognizer
            raise InputError(f"{name}: {path}: not a model that OpenCV can run ({one_line(error)})") from error
    detect, recognize = found

    def find(pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[:2]
        scale = min(1.0, _SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(np.ascontiguousarray(pixels[..., ::-1]), size, interpolation=cv2.INTER_AREA)
        try:
            detect.setInputSize(size)
            rows = detect.detect(image)[1]
            rows = [] if rows is None else [row for row in rows if min(row[2:4]) >= min_side * scale]
            vectors = [recognize.feature(recognize.alignCrop(image, row)).ravel() for row in rows]
        except cv2.error as error:
            raise InputError(f"{detector}, {recognizer}: cannot be run ({one_line(error)})") from error
        faces = []
        for row, vector in zip(rows, vectors, strict=True):
            x, y, w, h = (round(float(value) / scale) for value in row[:4])
            faces.append(Face((x, y, w, h), float(row[14]), unit(vector, recognizer)))
        return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))

    find(np.full((64, 64, 3), 127, np.uint8))
    return find


def cluster(faces: Sequence[Sequence[Face]], min_cosine: float) -> list[list[tuple[int, int]]]:
    """Who is who in the frames of one video: [(frame, face of that frame), ...] of each person, in the order they appear.

    Greedy: a face joins the person whose mean vector is nearest by cosine, if that is at least `min_cosine`; of one frame, no
    two faces are the same person.
    """
    people: list[list[tuple[int, int]]] = []
    sums: list[np.ndarray] = []
    for frame, found in enumerate(faces):
        cosines = [
            (float(face.vector @ total) / float(np.linalg.norm(total)), number, person)
            for number, face in enumerate(found)
            for person, total in enumerate(sums)
        ]
        matched: dict[int, int] = {}
        for cosine, number, person in sorted(cosines, key=lambda entry: (-entry[0], *entry[1:])):
            if cosine >= min_cosine and number not in matched and person not in matched.values():
                matched[number] = person
        for number, face in enumerate(found):
            person = matched.get(number, len(people))
            if person == len(people):
                people.append([])
                sums.append(np.zeros_like(face.vector))
            people[person].append((frame, number))
            sums[person] = sums[person] + face.vector
    return people
