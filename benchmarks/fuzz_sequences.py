"""Inputs for the readers of videos, subtitles and views, as rows of `fuzz_targets.TARGETS`."""

import functools
import io
import json
import pathlib
from typing import Any

import av
import numpy as np
from hypothesis import strategies as st

from benchmarks.fuzz_inputs import Files, as_json, changed_bytes, changed_json
from nextstep_jax.data import image_output
from nextstep_jax.data.video_folder import VideoFolder, read_subtitles
from nextstep_jax.data.view_folder import ViewFolder
from nextstep_jax.errors import InputError

_SRT = b"1\n00:00:00,500 --> 00:00:01,500\nsome <i>words</i>\n\n2\n00:00:02,500 --> 00:00:03,000\nmore\n"
_VTT = b"WEBVTT\n\nNOTE a\n\n00:01.000 --> 00:01.500 align:start\n<v Roger>hello\n"
_PNG = image_output.encode_image(np.zeros((16, 16, 3), np.uint8))
_MATRIX = [[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
_CAMERAS = {"camera_angle_x": 0.7, "frames": [{"file_path": f"./r_{n}", "transform_matrix": _MATRIX} for n in range(2)]}


@functools.cache
def _video(container: str) -> bytes:
    """Eight frames with a cut in the middle."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for n in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 + 100 * (n // 4), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


@st.composite
def videos(draw) -> Files:
    """A video of one of three containers, changed, with subtitles beside it or not."""
    name, container = draw(st.sampled_from([("v.mp4", "mp4"), ("v.mkv", "matroska"), ("v.avi", "avi")]))
    files = {name: draw(changed_bytes(_video(container)))}
    return files | ({"v.srt": draw(changed_bytes(_SRT))} if draw(st.booleans()) else {})


@st.composite
def subtitles(draw) -> Files:
    """Files of both formats, changed."""
    return {"a.srt": draw(changed_bytes(_SRT)), "b.vtt": draw(changed_bytes(_VTT))}


@st.composite
def views(draw) -> Files:
    """An object of two views, with cameras changed as JSON or as bytes."""
    cameras = draw(st.one_of(as_json(changed_json(_CAMERAS)), changed_bytes(json.dumps(_CAMERAS).encode())))
    return {"o/transforms.json": cameras, "o/r_0.png": _PNG, "o/r_1.png": _PNG, "o/caption.txt": b"a mug"}


def read_videos(folder: pathlib.Path) -> None:
    """Every shot and its keyframe."""
    _read_all(VideoFolder(folder))


def read_both_subtitles(folder: pathlib.Path) -> None:
    """Both files; each that is none says so."""
    for name in ("a.srt", "b.vtt"):
        try:
            read_subtitles(folder / name)
        except InputError:
            continue


def read_views(folder: pathlib.Path) -> None:
    """Every object."""
    _read_all(ViewFolder(folder))


def _read_all(source: Any) -> None:
    for index in range(len(source)):
        try:
            source[index]
        except InputError:
            continue
