"""A folder of videos as interleaved samples: a keyframe of every shot, with what is said in it (paper section 5.1.4)."""

import contextlib
import hashlib
import importlib.util
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nextstep_jax.data import files, image_output, images, records
from nextstep_jax.data.source import Unused
from nextstep_jax.errors import InputError, one_line
from nextstep_jax.untrusted import check_inside

EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi")
SUBTITLES = ("srt", "vtt")

# The program that takes a file apart is chosen by its first bytes: one that FFmpeg chose could be a playlist that names other
# files and hosts.
_CONTAINERS = {"mov": rb".{4}ftyp", "matroska": rb"\x1aE\xdf\xa3", "avi": rb"RIFF.{4}AVI "}
_OPTIONS = {"protocol_whitelist": "file"}

_CUT = 27.0  # of scenedetect's ContentDetector: change of hue, saturation and brightness that makes a cut
_SHORTEST = 0.6  # seconds of a shot
_WIDTH = 256  # pixels of what cuts and sharpness are looked for in
MAX_SHOTS = 256
MAX_SECONDS = 6 * 3600
_MAX_SUBTITLES = 8 << 20  # bytes


class Shot(NamedTuple):
    """From one cut to the next, in seconds."""

    start: float
    stop: float


class VideoFolder:
    """Videos in a folder and its subfolders, one interleaved sample each, sorted by path.

    Of every shot the sharpest frame of its middle half, after the text that VIDEO.srt or VIDEO.vtt has for
    the shot. `metadata["shots"]` has their [start, stop] in seconds.

    Attributes:
      names: the videos' paths within the folder, sorted; they are the samples' keys.
      unused: what is in the folder and in no sample.
    """

    def __init__(self, directory: str | os.PathLike, max_side: int = 1024):
        for module, package in (("av", "av"), ("scenedetect", "scenedetect"), ("pysubs2", "pysubs2")):
            if importlib.util.find_spec(module) is None:
                raise InputError(f"videos need the package {package}: pip install 'nextstep_jax[curate]'")
        self.directory = pathlib.Path(directory)
        if not self.directory.is_dir():
            raise InputError(f"{directory}: no such folder")
        self.name = self.directory.resolve().name
        self.unused = Unused()
        self._max_side = max_side
        found: dict[str, str] = {}
        subtitles: dict[str, str] = {}
        for name in files.walk(self.directory, self.unused.add):
            stem, extension = os.path.splitext(name)
            kind = extension[1:].lower()
            if kind in EXTENSIONS:
                found[name] = stem
            elif kind in SUBTITLES and stem not in subtitles:
                subtitles[stem] = name
            else:
                self.unused.add("other file", name)
        self.names = sorted(found)
        if not self.names:
            raise InputError(f"{directory}: no videos ({', '.join(EXTENSIONS)})")
        self._subtitles = {name: subtitles[stem] for name, stem in found.items() if stem in subtitles}
        for stem, name in subtitles.items():
            if stem not in found.values():
                self.unused.add("subtitles without a video", name)

    def __len__(self) -> int:
        return len(self.names)

    def without_subtitles(self) -> list[str]:
        """Names of the videos that have none."""
        return [name for name in self.names if name not in self._subtitles]

    def __getitem__(self, index: int) -> records.Sample:
        """Raises ImageError naming a video that cannot be decoded, CaptionError for subtitles that cannot be read, InputError
        for a link out of the folder."""
        name = self.names[index]
        path = self.directory / name
        check_inside(path, self.directory)
        said = []
        if name in self._subtitles:
            check_inside(self.directory / self._subtitles[name], self.directory)
            said = read_subtitles(self.directory / self._subtitles[name])
        shots = find_shots(path)
        parts: list[records.TextPart | records.ImagePart] = []
        for shot, frame in zip(shots, keyframes(path, shots, self._max_side), strict=True):
            text = " ".join(line for start, stop, line in said if shot.start <= (start + stop) / 2 < shot.stop)
            if text.strip():
                parts.append(records.TextPart(text.strip()))
            parts.append(records.ImagePart.from_bytes(image_output.encode_image(frame, "JPEG"), str(path)))
        times = [[round(shot.start, 3), round(shot.stop, 3)] for shot in shots]
        return records.Sample(tuple(parts), "interleaved", name, {}, {"shots": times})

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the files of the samples start..stop-1 do."""
        read = [file for name in self.names[start:stop] for file in (name, self._subtitles.get(name)) if file]
        return " ".join([str(self._max_side), *read, *(files.fingerprint(self.directory / file) for file in read)])

    def identity(self) -> str:
        """Changes with the videos' names and sizes."""
        sizes = [(name, os.stat(self.directory / name).st_size) for name in self.names]
        return hashlib.sha256(repr(sizes).encode("utf-8", "backslashreplace")).hexdigest()


def read_subtitles(path: pathlib.Path) -> list[tuple[float, float, str]]:
    """(start, stop, text) of every line of a SubRip or WebVTT file, in seconds. CaptionError names the file."""
    import pysubs2

    text = files.read_bytes(path, _MAX_SUBTITLES).decode("utf-8-sig", "replace")
    try:
        events = pysubs2.SSAFile.from_string(text, format_=path.suffix[1:].lower())
    except Exception as error:  # a parser of untrusted text
        raise records.CaptionError(f"{path}: not subtitles ({one_line(error, 100)})") from error
    return [(event.start / 1000, event.end / 1000, " ".join(event.plaintext.split())) for event in events]


def find_shots(path: pathlib.Path) -> list[Shot]:
    """The shots of a video: cuts by scenedetect's ContentDetector. ImageError names a video that cannot be decoded."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    cuts: list[float] = []
    times: list[float] = []
    with _opened(path) as (rate, frames):
        detector = ContentDetector(_CUT, min_scene_len=max(1, round(_SHORTEST * rate)))
        for time, frame in frames:
            found = detector.process_frame(FrameTimecode(len(times), rate), _small(frame, "bgr24"))
            times.append(time)
            cuts += [times[cut.frame_num] for cut in found]
    if not times:
        raise images.ImageError(f"{path}: a video without frames")
    if len(cuts) >= MAX_SHOTS:
        raise images.SizeError(f"{path}: over {MAX_SHOTS} shots")
    edges = [times[0], *cuts, times[-1] + 1 / rate]
    return [Shot(start, stop) for start, stop in itertools.pairwise(edges)]


def keyframes(path: pathlib.Path, shots: Sequence[Shot], max_side: int) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The sharpest frame of the middle half of each shot, with sides of at most `max_side` pixels."""
    import cv2

    chosen: list[np.ndarray] = []
    best, best_sharpness = None, -1.0
    with _opened(path) as (_, frames):
        for time, frame in frames:
            while len(chosen) < len(shots) - 1 and time >= shots[len(chosen)].stop:
                chosen.append(_pixels(frame if best is None else best, max_side))
                best, best_sharpness = None, -1.0
            start, stop = shots[len(chosen)]
            early, late = start + (stop - start) / 4, stop - (stop - start) / 4
            if best is None:
                best = frame  # of a shot without a frame in its middle half
            if early <= time <= late:
                sharpness = float(cv2.Laplacian(_small(frame, "gray8"), cv2.CV_32F).var())
                if sharpness > best_sharpness:
                    best, best_sharpness = frame, sharpness
        if best is not None:
            chosen.append(_pixels(best, max_side))
    return chosen


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[float, Iterator[tuple[float, Any]]]]:
    """Frames a second, and (time in seconds, frame) of a video's first picture stream, decoded one by one."""
    with _container(path) as container:
        if not container.streams.video:
            raise images.ImageError(f"{path}: a video without pictures")
        stream = container.streams.video[0]
        codec: Any = stream.codec_context
        if codec is None:  # FFmpeg does not know it, which the types leave out
            raise images.ImageError(f"{path}: a video of an unknown codec")
        if codec.width * codec.height > images.MAX_PIXELS:
            raise images.SizeError(f"{path}: {stream.width}x{stream.height} pixels, at most {images.MAX_PIXELS}")
        yield float(stream.average_rate or 25), _frames(path, container.decode(stream))


@contextlib.contextmanager
def _container(path: pathlib.Path) -> Iterator[Any]:
    """A video, opened by what its first bytes say. ImageError names one that is something else, or cannot be decoded."""
    import av

    with files.open_regular(path) as file:
        beginning = file.read(12)
    kind = next((kind for kind, start in _CONTAINERS.items() if re.match(start, beginning, re.DOTALL)), None)
    if kind is None:
        raise images.ImageError(f"{path}: not an MP4, Matroska, WebM or AVI video")
    try:
        with av.open(str(path), format=kind, options=_OPTIONS, metadata_errors="replace") as container:
            yield container
    except InputError:
        raise
    except Exception as error:  # decoders raise anything at all on damaged bytes
        raise images.ImageError(f"{path}: damaged video ({one_line(error, 100)})") from error


def read_audio(path: pathlib.Path, rate: int) -> Float[np.ndarray, " samples"]:
    """The first sound stream of a video in [-1, 1], mono, `rate` samples a second; empty for a video without sound.

    Raises:
      ImageError: naming a video that cannot be decoded, SizeError one that is too long.
    """
    import av

    with _container(path) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
        pieces, count = [], 0
        for frame in itertools.chain(container.decode(container.streams.audio[0]), (None,)):  # None: what is left over
            for piece in resampler.resample(frame):
                pieces.append(piece.to_ndarray()[0])
                count += len(pieces[-1])
            if count > MAX_SECONDS * rate:
                raise images.SizeError(f"{path}: longer than {MAX_SECONDS // 3600} hours")
    return (np.concatenate(pieces) / 32768).astype(np.float32) if pieces else np.zeros(0, np.float32)


def _frames(path: pathlib.Path, decoded: Iterator[Any]) -> Iterator[tuple[float, Any]]:
    for frame in decoded:
        if frame.time is not None:
            if frame.time > MAX_SECONDS:
                raise images.SizeError(f"{path}: longer than {MAX_SECONDS // 3600} hours")
            yield frame.time, frame


def _small(frame: Any, format: str) -> np.ndarray:
    height = max(1, round(_WIDTH * frame.height / frame.width))
    return frame.reformat(width=_WIDTH, height=height, format=format).to_ndarray()


def _pixels(frame: Any, max_side: int) -> np.ndarray:
    image = Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4))
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return np.asarray(image)
