"""Subtitles from speech: sound is read as it is, and lines stand where the recognizer (a stand-in) hears them."""

import sys
import types

import av
import numpy as np
import pytest

from nextstep_jax import cli
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.video_folder import read_audio
from tests.data.test_video_folder import shot

TONE = 440


def write_talk(path, seconds: int = 2, sound: bool = True) -> None:
    """A video of one shot a second, with a tone in both channels of 44.1 kHz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"x264-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        voice = container.add_stream("aac", rate=44100, layout="stereo") if sound else None
        for frame in [frame for n in range(seconds) for frame in shot(n, 12)]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        if voice:
            tone = 0.5 * np.sin(2 * np.pi * TONE * np.arange(44100 * seconds) / 44100).astype(np.float32)
            for start in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(np.stack([tone[start : start + 1024]] * 2), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, start
                container.mux(voice.encode(frame))
            container.mux(voice.encode())


def test_sound_is_read_at_the_rate_asked_for(tmp_path):
    write_talk(tmp_path / "talk.mp4")
    audio = read_audio(tmp_path / "talk.mp4", 16_000)
    assert audio.dtype == np.float32 and len(audio) == pytest.approx(32_000, abs=2_500)  # AAC adds some silence
    middle = audio[8_000:24_000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == TONE and np.abs(middle).max() == pytest.approx(0.5, abs=0.05)
    write_talk(tmp_path / "mute.mp4", sound=False)
    assert len(read_audio(tmp_path / "mute.mp4", 16_000)) == 0


@pytest.fixture
def whisper(monkeypatch, tmp_path):
    """A stand-in for faster_whisper that hears a line a second; the folder of its model, and what it was given."""
    heard = []

    class Model:
        def __init__(self, folder, local_files_only):
            assert local_files_only

        def transcribe(self, audio, language, vad_filter):
            heard.append((len(audio), language))
            lines = (types.SimpleNamespace(start=n + 0.25, end=n + 0.75, text=f" line {n} ") for n in range(2))
            return lines, None

    module = types.ModuleType("faster_whisper")
    module.WhisperModel = Model
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    folder = tmp_path / "whisper"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"")
    return folder, heard


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["nextstep-jax", "data", "transcribe", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


def test_videos_without_subtitles_get_them(whisper, tmp_path, monkeypatch, capsys):
    folder, heard = whisper
    videos = tmp_path / "videos"
    videos.mkdir()
    write_talk(videos / "talk.mp4")
    write_talk(videos / "mute.mp4", sound=False)
    write_talk(videos / "known.mp4")
    (videos / "known.srt").write_text("1\n00:00:00,100 --> 00:00:00,900\nas it was\n")
    (videos / "damaged.mp4").write_bytes((videos / "talk.mp4").read_bytes()[:400])
    code, out, err = run(monkeypatch, capsys, videos, "--model", folder, "--language", "en")
    assert code == 0 and "2 of 4 videos transcribed, 2 lines, 1 skipped" in out, err
    assert [language for _, language in heard] == ["en"]
    talk = open_source(f"videos:{videos}")
    said = {sample.key: [part.text for part in sample.texts] for sample in (talk[1], talk[2], talk[3])}
    assert said == {"known.mp4": ["as it was"], "mute.mp4": [], "talk.mp4": ["line 0", "line 1"]}
    assert run(monkeypatch, capsys, videos, "--model", folder)[1].startswith(f"{videos}: 0 of 4 videos transcribed")


def test_a_model_that_is_not_there_is_named(whisper, tmp_path, monkeypatch, capsys):
    write_talk(tmp_path / "talk.mp4", 1)
    code, _, err = run(monkeypatch, capsys, tmp_path, "--model", tmp_path / "nowhere")
    assert code == 2 and "expected a folder with a Whisper model of CTranslate2" in err and err.count("\n") == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "faster_whisper" else object())
    code, _, err = run(monkeypatch, capsys, tmp_path, "--model", whisper[0])
    assert code == 2 and "needs the package faster-whisper: pip install 'nextstep_jax[asr]'" in err
