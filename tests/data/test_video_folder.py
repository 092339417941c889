"""Videos made here: cuts at known frames, the sharpest frames, subtitles, and files that are no videos."""

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from nextstep_jax.data import images, records, video_folder
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.video_folder import VideoFolder, find_shots
from nextstep_jax.errors import InputError
from tests.data.curation.scenes import photograph


def write_video(path, frames, rate=12, codec="libx264"):
    """Frames as a video; H.264 in MP4 or Matroska."""
    height, width = np.asarray(frames[0]).shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"x264-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())


def shot(seed, frames):
    """A camera that moves a little over one photograph."""
    image = photograph(seed, 120, 160)
    return [np.asarray(image.crop((n // 2, 0, n // 2 + 128, 96))) for n in range(frames)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three shots of 24, 36 and 12 frames at 12 frames a second, with subtitles."""
    directory = tmp_path_factory.mktemp("films")
    write_video(directory / "film.mp4", shot(1, 24) + shot(2, 36) + shot(3, 12))
    (directory / "film.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,500\nFirst <i>words</i>\nin two lines\n\n"
        "2\n00:00:02,500 --> 00:00:03,000\nsecond\n\n3\n00:00:04,000 --> 00:00:04,800\nand third\n"
    )
    return directory


def difference(a, b) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def test_cuts_are_found_where_they_are(film):
    assert [(round(a, 3), round(b, 3)) for a, b in find_shots(film / "film.mp4")] == [(0, 2), (2, 5), (5, 6)]


def test_a_video_is_a_sequence_of_keyframes_after_what_is_said(film):
    source = open_source(f"videos:{film}")
    sample = source[0]
    assert (len(source), sample.kind, sample.key) == (1, "interleaved", "film.mp4")
    assert sample.metadata == {"shots": [[0, 2], [2, 5], [5, 6]]}
    texts = [part.text if isinstance(part, records.TextPart) else "*" for part in sample.parts]
    assert texts == ["First words in two lines", "*", "second and third", "*", "*"]
    for part, seed, frames in zip(sample.images, (1, 2, 3), (24, 36, 12), strict=True):
        middle = shot(seed, frames)[frames // 4 : frames - frames // 4 + 1]
        assert min(difference(part.pixels(), frame) for frame in middle) < 8  # what JPEG and H.264 change
        assert part.format == "jpeg" and (part.height, part.width) == (96, 128)


def test_the_sharpest_frame_of_the_middle_is_taken(tmp_path):
    frames = [Image.fromarray(frame) for frame in shot(4, 24)]
    blurred = [frame.filter(ImageFilter.GaussianBlur(4)) for frame in frames]
    blurred[0], blurred[12] = frames[0], frames[12]  # the first one is sharp, too, but not in the middle half
    write_video(tmp_path / "v.mkv", blurred)
    image = VideoFolder(tmp_path)[0].images[0].pixels()
    assert difference(image, frames[12]) < 8 < difference(image, blurred[11])


def test_large_frames_are_shrunk(film):
    assert VideoFolder(film, max_side=64)[0].images[0].width == 64


def test_short_shots_and_one_frame(tmp_path):
    write_video(tmp_path / "one.mp4", shot(1, 1))
    write_video(tmp_path / "two.webm", shot(1, 12) + shot(2, 12), codec="libvpx")
    one, two = VideoFolder(tmp_path)
    assert len(one.images) == 1 and len(two.images) == 2


def test_webvtt_and_what_is_left_over(film, tmp_path):
    import shutil

    shutil.copy(film / "film.mp4", tmp_path / "a.mp4")
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:01.500\nhello\n")
    (tmp_path / "b.srt").write_text("")
    (tmp_path / "notes.txt").write_text("")
    source = VideoFolder(tmp_path)
    assert source[0].texts[0].text == "hello"
    assert source.unused.counts == {"other file": 1, "subtitles without a video": 1}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an MP4, Matroska, WebM or AVI video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not an MP4"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not an MP4"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 100, "damaged video"),
        (b"\x1aE\xdf\xa3" + b"\0" * 100, "damaged video|without"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, content, message):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(images.ImageError, match=f"v.mp4: .*({message})"):
        VideoFolder(tmp_path)[0]


@pytest.mark.parametrize("name", ["film.mp4", "film.srt"])
def test_a_link_out_of_the_folder_is_not_followed(film, tmp_path, name):
    import shutil

    shutil.copytree(film, tmp_path / "films")
    (tmp_path / "films" / name).rename(tmp_path / name)
    (tmp_path / "films" / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: a link out of the folder"):
        VideoFolder(tmp_path / "films")[0]


def test_a_cut_off_video_is_damaged_or_shorter(film, tmp_path):
    data = (film / "film.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(images.ImageError, match="v.mp4: "):
        VideoFolder(tmp_path)[0]


@pytest.mark.parametrize("name, message", [("v.srt", "no videos"), ("gone", "no such folder")])
def test_folders_without_videos(tmp_path, name, message):
    (tmp_path / "v.srt").write_text("")
    with pytest.raises(InputError, match=message):
        open_source(f"videos:{tmp_path / name if name == 'gone' else tmp_path}")


def test_limits(film, monkeypatch):
    monkeypatch.setattr(video_folder, "MAX_SHOTS", 2)
    with pytest.raises(images.SizeError, match="over 2 shots"):
        find_shots(film / "film.mp4")
    monkeypatch.setattr(video_folder, "MAX_SECONDS", 3)
    with pytest.raises(images.SizeError, match="longer than"):
        find_shots(film / "film.mp4")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(images.SizeError, match="128x96 pixels"):
        find_shots(film / "film.mp4")
