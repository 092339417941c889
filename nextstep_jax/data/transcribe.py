"""What is said in videos without subtitles, written as subtitles: speech recognition by faster-whisper (section 5.1.4)."""

import importlib.util
import os
import pathlib

from nextstep_jax.data import files
from nextstep_jax.data.video_folder import VideoFolder, read_audio
from nextstep_jax.errors import InputError, one_line
from nextstep_jax.progress import progress_bar
from nextstep_jax.untrusted import check_inside

RATE = 16_000  # samples a second, as Whisper hears


def transcribe(
    directory: str | os.PathLike, model: str | os.PathLike, language: str | None = None, progress: bool = False
) -> dict[str, int]:
    """Write VIDEO.srt beside every video in a folder that has no subtitles; one without sound or speech gets an empty file.

    Files are written one by one and whole, so that the same call continues after an interruption.

    Args:
      model: folder of a Whisper model as CTranslate2 has it (model.bin, tokenizer.json, ...). Nothing is downloaded.
      language: code of what is spoken, such as "en"; None: found out for each video.

    Returns:
      Counts: videos, transcribed (now), lines (written now), skipped (damaged or too long; they are named when curated).

    Raises:
      InputError: the package or the model is not there, the folder has no videos or cannot be written.
    """
    source, folder = VideoFolder(directory), pathlib.Path(model)
    if importlib.util.find_spec("faster_whisper") is None:
        raise InputError("transcribing needs the package faster-whisper: pip install 'nextstep_jax[asr]'")
    if not (folder / "model.bin").is_file():
        raise InputError(f"{model}: expected a folder with a Whisper model of CTranslate2 (no model.bin there)")
    import faster_whisper
    import pysubs2

    try:
        whisper = faster_whisper.WhisperModel(str(folder), local_files_only=True)
    except Exception as error:  # whatever CTranslate2 and its readers raise
        raise InputError(f"{model}: not a Whisper model of CTranslate2 ({one_line(error)})") from error
    counts = {"videos": len(source), "transcribed": 0, "lines": 0, "skipped": 0}
    names = source.without_subtitles()
    with progress_bar("transcribing", "video", len(names), progress) as bar:
        for name in names:
            path = source.directory / name
            check_inside(path, source.directory)
            try:
                audio = read_audio(path, RATE)
            except InputError:
                counts["skipped"] += 1
                bar.update()
                continue
            segments = whisper.transcribe(audio, language=language, vad_filter=True)[0] if len(audio) else ()
            subtitles = pysubs2.SSAFile()
            for segment in segments:
                if segment.text.strip():
                    start, end = (round(1000 * seconds) for seconds in (segment.start, segment.end))
                    subtitles.append(pysubs2.SSAEvent(start=start, end=end, text=segment.text.strip()))
            files.write_bytes(path.with_suffix(".srt"), subtitles.to_string("srt").encode())
            counts["transcribed"] += 1
            counts["lines"] += len(subtitles)
            bar.update()
    return counts
